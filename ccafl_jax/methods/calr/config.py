"""The options of CALR, grouped as the parts of the method are.

Defaults are the published recipe for Market-1501 with its accidents put right. What differs between
data sets, and what the released code does otherwise, is an option here and a line in a file under
configs/.
"""

import dataclasses

from ccafl_jax.data.augment import AugmentConfig
from ccafl_jax.methods.options import (
    DataConfig,
    EvaluationConfig,
    InputConfig,
    at_batch,
    require_run,
)
from ccafl_jax.options import require, require_choice
from ccafl_jax.pseudo_labels import refinement
from ccafl_jax.pseudo_labels.agglomerative import number_of_clusters
from ccafl_jax.training.scale import ScaleConfig

STAGES = ("local", "global")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The image tower and its heads.

    Attributes:
      weights: folder or Hub id of an ImageNet ResNet (50, 101 or 152 layers, or IBN-a) as
        torchvision, timm or IBN-Net name its tensors, or of a CLIP checkpoint; or `tiny_clip`, the
        small one shipped with the package.
      pooling: of a ResNet's last map: `gem`, the generalised mean, or `mean`.
      last_stride: stride of a ResNet's fourth stage, 1 (published) or 2.
      bn_group: rows per batch-norm statistic in training (0: the whole batch). Released: 64, a
        quarter of the batch.
      calibrate_neck: set the neck's running statistics from the images of a camera before stage 1
        trains on it, and from all before stage 2; released: False, they start at (0, 1).
      compute_dtype: dtype inside the image encoder, `float32` or `bfloat16`.
      remat: compute the inside of blocks again for the gradient: less memory, more work.
    """

    weights: str = ""
    pooling: str = "gem"
    last_stride: int = 1
    bn_group: int = 0
    calibrate_neck: bool = True
    compute_dtype: str = "float32"
    remat: bool = False

    def __post_init__(self):
        require_choice("pooling", self.pooling, ("gem", "mean"))
        require_choice("compute_dtype", self.compute_dtype, ("float32", "bfloat16"))
        require(self.last_stride in (1, 2), "last_stride must be 1 or 2")
        require(self.bn_group >= 0, "bn_group must be 0 (whole batch) or a number of rows")


@dataclasses.dataclass(frozen=True)
class LocalConfig:
    """Stage 1: a network and clusters for each camera alone (specification 3).

    Attributes:
      labels: folder of the local clusters of an earlier run (its `local`), or of the published
        ones (`cam1/pseudo_label.npy` and so on); stage 1 is then left out.
      clusters: of a camera: a number, or `n//5`, one for every five of its images.
      k1, k2: neighbours of the Jaccard distance.
      epochs, iterations: epochs for each camera, and steps per epoch.
      classes, images: clusters in a batch, and images of each.
    """

    labels: str = ""
    clusters: int | str = "n//5"
    k1: int = 15
    k2: int = 4
    epochs: int = 20
    iterations: int = 100
    classes: int = 16
    images: int = 4

    def __post_init__(self):
        number_of_clusters(self.clusters, 1)
        require(1 <= self.k2 <= self.k1, "k2 must be at least 1 and at most k1")
        require(self.epochs >= 1 and self.iterations >= 1, "epochs and iterations must be positive")
        require(self.classes >= 1 and self.images >= 1, "classes and images must be positive")


@dataclasses.dataclass(frozen=True)
class ClusteringConfig:
    """Clusters of all cameras: modules of the graph of nearest neighbours (specification 4.1).

    Attributes:
      k: length of the neighbour lists, the image itself included.
      min_similarity: least cosine of an edge.
      min_size: fewest images of a cluster.
    """

    k: int = 15
    min_similarity: float = 0.5
    min_size: int = 5

    def __post_init__(self):
        require(self.k >= 2, "k must be at least 2, the image itself and a neighbour")
        require(
            0 < self.min_similarity <= 1,
            f"min_similarity is {self.min_similarity}, must lie above 0 and up to 1",
        )
        require(self.min_size >= 1, "min_size must be at least 1")


@dataclasses.dataclass(frozen=True)
class RefinementConfig:
    """Camera-aware label refinement (specification 4.2 and 4.3).

    Attributes:
      enabled: leave it out with False.
      pivot: `max` takes the image with the most close neighbours of a cluster, `max_per_camera`
        one for each of its cameras, `last` (released) the last image above the mean.
      probability: of a removal: `one` (released), or `cosine`, which falls to 0.75.
    """

    enabled: bool = True
    pivot: str = "max"
    probability: str = "one"

    def __post_init__(self):
        require_choice("pivot", self.pivot, refinement.RULES)
        require_choice("probability", self.probability, refinement.SCHEDULES)


@dataclasses.dataclass(frozen=True)
class ContrastConfig:
    """Contrast with the memory of clusters, in both stages (specification 4.4).

    Attributes:
      temperature: of the softmax.
      memory_update: `each` row of the batch in its order (published), or the `hard`est of
        each cluster.
      memory_momentum: weight of the old value.
      weights_from: first epoch of stage 2 in which clusters are weighted by the entropy of their
        cameras; -1 for none.
    """

    temperature: float = 0.05
    memory_update: str = "each"
    memory_momentum: float = 0.1
    weights_from: int = 5

    def __post_init__(self):
        require_choice("memory_update", self.memory_update, ("each", "hard"))
        require(self.weights_from >= -1, "weights_from must be -1 (never) or an epoch")


@dataclasses.dataclass(frozen=True)
class AlignmentConfig:
    """Camera alignment in stage 2: a classifier of cameras behind reversed gradients.

    Attributes:
      epochs: how many epochs of stage 2 it lasts from the first on: 0 none, -1 all.
      weight: of its loss.
      loss: `ce`, the cross-entropy, or `released`, whose gradient is about 1 / cameras of that.
      reversal: what the gradient is multiplied by, with its sign changed.
      hidden: channels inside the classifier.
      dropout: share of channels that are dropped.
    """

    epochs: int = 3
    weight: float = 0.1
    loss: str = "ce"
    reversal: float = 1.0
    hidden: int = 100
    dropout: float = 0.5

    def __post_init__(self):
        require_choice("loss", self.loss, ("ce", "released"))
        require(self.epochs >= -1, "epochs must be -1 (all), 0 (none) or a number")
        require(0 <= self.dropout < 1, f"dropout is {self.dropout}, must be at least 0 and below 1")
        require(self.hidden >= 1, "hidden must be positive")


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Batches of stage 2.

    Attributes:
      classes, images: clusters in a batch, and images of each.
      across_cameras: take the images of a cluster from other cameras than the first of them.
    """

    classes: int = 16
    images: int = 16
    across_cameras: bool = True

    def __post_init__(self):
        require(self.classes >= 1 and self.images >= 1, "classes and images must be positive")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam with coupled L2, in both stages."""

    base_lr: float = 3.5e-4
    weight_decay: float = 5e-4
    milestones: tuple[int, ...] = (20, 40)
    gamma: float = 0.1


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Stage 2: epochs, and steps per epoch."""

    epochs: int = 50
    iterations: int = 200

    def __post_init__(self):
        require(self.epochs >= 1 and self.iterations >= 1, "epochs and iterations must be positive")


@dataclasses.dataclass(frozen=True)
class CALRConfig:
    """All options of a CALR run.

    Attributes:
      method: `calr`.
      seed: of every random draw of the run.
      stages: which of `local`, `global` to run, in this order.
      devices: devices of the mesh (0: all).
      keep_checkpoints: how many of the latest checkpoints stay.
      keep_best: also keep the checkpoint of the best evaluation on `test`, whose figures are then
        no longer those of an unseen set; "" keeps none.
      skip_nonfinite: steps with a loss or gradient that is NaN or infinite to pass over before the
        run stops.
      published: figures of the paper, copied into the summary beside ours.
      published_on: the data set (`data.name`) they were measured on; beside any other they are
        left out.
    """

    method: str = "calr"
    seed: int = 1
    stages: tuple[str, ...] = STAGES
    devices: int = 0
    keep_checkpoints: int = 2
    keep_best: str = ""
    skip_nonfinite: int = 0
    published: str = ""
    published_on: str = ""
    scale: ScaleConfig = ScaleConfig()
    data: DataConfig = DataConfig()
    input: InputConfig = InputConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    local: LocalConfig = LocalConfig()
    clustering: ClusteringConfig = ClusteringConfig()
    refinement: RefinementConfig = RefinementConfig()
    contrast: ContrastConfig = ContrastConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    sampler: SamplerConfig = SamplerConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    def __post_init__(self):
        require_choice("method", self.method, ("calr",))
        require_run(self, stages=STAGES, keep_best=("", "test"))

    def scaled(self) -> "CALRConfig":
        """These options at `scale.batch` times the batch, where that is 1 again."""
        return at_batch(
            self,
            sizes=("local.classes", "sampler.classes"),
            rates=("optimizer.base_lr",),
            steps=("local.iterations", "schedule.iterations"),
        )
