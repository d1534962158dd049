"""The options of CCLNet, grouped as the parts of the method are.

Defaults are the published recipe for SYSU-MM01 with its accidents put right. What differs between
data sets, and what the released code does otherwise, is an option here and a line in a file under
configs/.
"""

import dataclasses

from ccafl_jax.data.augment import AugmentConfig
from ccafl_jax.data.samplers import DRAWS
from ccafl_jax.evaluation.protocols import CHOICES
from ccafl_jax.methods import options
from ccafl_jax.methods.options import InputConfig, require_run
from ccafl_jax.models.layers import ATTENTION
from ccafl_jax.options import require, require_choice
from ccafl_jax.training.scale import ScaleConfig

STAGES = ("prepare", "prompts", "train")


@dataclasses.dataclass(frozen=True)
class DataConfig(options.DataConfig):
    """Which images, and how they reach the model.

    Attributes, beside those of all methods:
      split: of RegDB, 1 to 10, each with a model of its own; SYSU-MM01 has one alone.
    """

    name: str = "sysumm01"
    height: int = 288
    width: int = 144
    split: int = 1

    def __post_init__(self):
        super().__post_init__()
        require(1 <= self.split <= 10, f"split is {self.split}, must be 1 to 10")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The image and text towers.

    Attributes:
      weights: folder or Hub id of a CLIP checkpoint, whose config tells the kind of tower; or
        `tiny_clip`, the small one shipped with the package. A ResNet (published) has its three
        stem convolutions once for each modality, a ViT its patch embedding.
      tower: `resnet` or `vit`, the kind that the recipe is made for; empty takes both.
      activation: `quick_gelu` or `gelu`, for checkpoints whose config does not state it.
      last_stride: stride of a ResNet's layer4, 1 (published) or 2.
      patch_stride: pixels between the patches of a ViT; 0 means that of the checkpoint.
      compute_dtype: dtype inside the image encoder, `float32` or `bfloat16`.
      calibrate_neck: set the neck's running statistics from the training images before the first
        extraction; released: False, they start at (0, 1).
      remat: compute the inside of blocks again for the gradient: less memory, more work.
      attention: in the blocks of transformers: `plain`, `cudnn` or `auto`, see CCAFL's.
    """

    weights: str = ""
    tower: str = ""
    activation: str = ""
    last_stride: int = 1
    patch_stride: int = 0
    compute_dtype: str = "float32"
    calibrate_neck: bool = True
    remat: bool = False
    attention: str = "auto"

    def __post_init__(self):
        require_choice("tower", self.tower, ("", "resnet", "vit"))
        require_choice("activation", self.activation, ("", "quick_gelu", "gelu"))
        require_choice("compute_dtype", self.compute_dtype, ("float32", "bfloat16"))
        require_choice("attention", self.attention, ("auto", *ATTENTION))
        require(self.last_stride in (1, 2), "last_stride must be 1 or 2")
        require(self.patch_stride >= 0, "patch_stride must be 0 (as stored) or a number of pixels")


@dataclasses.dataclass(frozen=True)
class ClusteringConfig:
    """Clusters of each modality alone, before every epoch of stages 0 and 2 (specification 5.1).

    Attributes:
      k1, k2: neighbours of the Jaccard distance.
      eps: distance of DBSCAN.
      min_samples: images within it that make one a core.
    """

    k1: int = 30
    k2: int = 6
    eps: float = 0.6
    min_samples: int = 4

    def __post_init__(self):
        require(1 <= self.k2 <= self.k1, "k2 must be at least 1 and at most k1")
        require(0 < self.eps < 1, f"eps is {self.eps}, must lie between 0 and 1")
        require(self.min_samples >= 1, "min_samples must be at least 1")


@dataclasses.dataclass(frozen=True)
class ContrastConfig:
    """Contrast with the memory of each modality's clusters.

    Attributes:
      temperature: of the softmax.
      memory_update: `each` row of the batch in its order (published), or the `hard`est of
        each cluster.
      memory_momentum: weight of the old value.
    """

    temperature: float = 0.05
    memory_update: str = "each"
    memory_momentum: float = 0.1

    def __post_init__(self):
        require_choice("memory_update", self.memory_update, ("each", "hard"))


@dataclasses.dataclass(frozen=True)
class SwapConfig:
    """Matching of clusters across modalities, and swapping of their prototypes, after every step.

    Attributes:
      start: first epoch of stage 0, and of stage 2, that swaps (counted from 0); -1 for none.
      scale: weight of a prototype's own value; the rest is its partner's.
      min_similarity: least similarity of partners.
      aliased: infrared prototypes read visible ones that are swapped already, as released.
    """

    start: int = 60
    scale: float = 0.1
    min_similarity: float = 0.0
    aliased: bool = False

    def __post_init__(self):
        require(self.start >= -1, "start must be -1 (never) or an epoch")
        require(0 <= self.scale <= 1, f"scale is {self.scale}, must be 0 to 1")


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """What stage 2 learns from descriptions of the clusters of stage 0.

    Attributes:
      weight: of the image-to-text losses; 0 leaves them out, and needs no prompts.
      smoothing: of their labels.
      labels: folder of label files of an earlier run (its `pseudo_labels`), or of the published
        ones, in place of stage 0.
    """

    weight: float = 1.0
    smoothing: float = 0.1
    labels: str = ""

    def __post_init__(self):
        require(self.weight >= 0, f"weight is {self.weight}, must be 0 or more")
        require(
            0 <= self.smoothing < 1, f"smoothing is {self.smoothing}, must be 0 or more, below 1"
        )


@dataclasses.dataclass(frozen=True)
class PromptsConfig:
    """Stage 1: descriptions of clusters (specification 6.1).

    Attributes:
      epochs: of all labelled images.
      batch: images of each modality.
      base_lr, warmup_from, warmup_epochs, min_lr: of the cosine schedule.
      weight_decay: coupled L2.
    """

    epochs: int = 60
    batch: int = 128
    base_lr: float = 3.5e-4
    warmup_from: float = 1e-5
    warmup_epochs: int = 5
    min_lr: float = 1e-6
    weight_decay: float = 1e-4

    def __post_init__(self):
        require(self.epochs >= 1 and self.batch >= 2, "epochs must be >= 1 and batch >= 2")


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Batches of stages 0 and 2.

    Attributes:
      classes, images: clusters of each modality in a batch, and images of each cluster.
      draws: `stream`, where every cluster comes equally often, or `released`, where each batch
        draws clusters and, with replacement, images anew.
    """

    classes: int = 4
    images: int = 16
    draws: str = "stream"

    def __post_init__(self):
        require(self.classes >= 1 and self.images >= 1, "classes and images must be positive")
        require_choice("draws", self.draws, DRAWS)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam with coupled L2, in stages 0 and 2.

    Attributes:
      base_lr: after the warm-up.
      bias_lr_factor: of shifts.
      weight_decay: coupled L2.
      warmup_epochs, warmup_factor: linear warm-up from that share of the rate.
      milestones: epochs, counted from 1, from which on the rate is `gamma` times as large.
      gamma: see there.
      swap_lr: rate of the epochs that swap; 0 means that of the schedule.
      idle: what happens to the attention pool while no loss reaches it: `hold` or `decay`, by L2
        alone.
    """

    base_lr: float = 3.5e-4
    bias_lr_factor: float = 2.0
    weight_decay: float = 5e-4
    warmup_epochs: int = 10
    warmup_factor: float = 0.01
    milestones: tuple[int, ...] = (30, 50)
    gamma: float = 0.1
    swap_lr: float = 0.0
    idle: str = "hold"

    def __post_init__(self):
        require_choice("idle", self.idle, ("hold", "decay"))


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Epochs of stages 0 and 2, and steps per epoch.

    Attributes:
      prepare_epochs: of stage 0.
      train_epochs: of stage 2.
      iterations: steps per epoch; 0 (published): as many as the modality with more labelled images
        has batches, and one more.
    """

    prepare_epochs: int = 120
    train_epochs: int = 120
    iterations: int = 0

    def __post_init__(self):
        require(self.prepare_epochs >= 1, "prepare_epochs must be positive")
        require(self.train_epochs >= 1, "train_epochs must be positive")
        require(self.iterations >= 0, "iterations must be 0 (by the labels) or a number of steps")

    @property
    def epochs(self) -> int:
        """Epochs of both stages together."""
        return self.prepare_epochs + self.train_epochs


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(options.EvaluationConfig):
    """When and how the test set is ranked.

    Attributes, beside those of all methods:
      mode: cameras of SYSU-MM01's gallery: `all`, or the `indoor` ones.
      shots: gallery images of each identity and camera.
      draw: `seeded`, as most published code draws the gallery, or `official`, by the permutations
        that come with the data set.
      trials: draws, over which figures are averaged.
      direction: of RegDB's headline; both are measured.
    """

    every: int = 5
    mode: str = "all"
    shots: int = 1
    draw: str = "seeded"
    trials: int = 10
    direction: str = "visible_to_thermal"

    def __post_init__(self):
        super().__post_init__()
        for name in ("mode", "draw", "direction"):
            require_choice(name, getattr(self, name), CHOICES[name])
        require(self.shots >= 1 and self.trials >= 1, "shots and trials must be positive")


@dataclasses.dataclass(frozen=True)
class CCLNetConfig:
    """All options of a CCLNet run.

    Attributes:
      method: `cclnet`.
      seed: of every random draw of the run.
      stages: which of `prepare`, `prompts`, `train` to run, in this order.
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

    method: str = "cclnet"
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
    augment: AugmentConfig = AugmentConfig(
        grey=0.5, erase_area=(0.02, 0.33), erase_law="log", erase_tries=10, erase_fill="zero"
    )
    model: ModelConfig = ModelConfig()
    clustering: ClusteringConfig = ClusteringConfig()
    contrast: ContrastConfig = ContrastConfig()
    swap: SwapConfig = SwapConfig()
    text: TextConfig = TextConfig()
    prompts: PromptsConfig = PromptsConfig()
    sampler: SamplerConfig = SamplerConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    def __post_init__(self):
        require_choice("method", self.method, ("cclnet",))
        require_run(self, stages=STAGES, keep_best=("", "test"))

    def scaled(self) -> "CCLNetConfig":
        """These options at `scale.batch` times the batch, where that is 1 again."""
        return options.at_batch(
            self,
            sizes=("prompts.batch", "sampler.classes"),
            rates=("prompts.base_lr", "optimizer.base_lr", "optimizer.swap_lr"),
            steps=("schedule.iterations",),
        )
