"""The options of CCAFL, grouped as the parts of the method are.

Defaults are the preset `clean`: the published recipe for Market-1501 with its accidents put right.
What differs between data sets, and what the released code does otherwise, is an option here and a
line in a file under configs/.
"""

import dataclasses
import functools
from collections.abc import Callable

from ccafl_jax.data.augment import AugmentConfig
from ccafl_jax.methods import options
from ccafl_jax.methods.cameras import camera_names
from ccafl_jax.methods.options import EvaluationConfig, InputConfig, require_run
from ccafl_jax.models.layers import ATTENTION
from ccafl_jax.options import require, require_choice
from ccafl_jax.pseudo_labels.agglomerative import number_of_clusters
from ccafl_jax.pseudo_labels.associations import ASSOCIATIONS
from ccafl_jax.pseudo_labels.cross_camera import AUTO
from ccafl_jax.pseudo_labels.labels import Labels, labeller, options_taken
from ccafl_jax.training.scale import ScaleConfig

STAGES = ("prompts", "intra", "inter")


@dataclasses.dataclass(frozen=True)
class DataConfig(options.DataConfig):
    """Which images, which of them are labelled, and how they reach the model.

    Attributes, beside those of all methods:
      allow_single_identity: accept cameras with one identity, whose intra-camera losses are 0.
      val_fraction: share of each camera's training identities that is held out of training, as
        an alarm of overfitting (docs/ccafl.md); it selects nothing.
      unlabelled: training images without an identity: `drop` them, or `cluster` those of each
        camera and take the clusters for its identities.
      unlabelled_cameras: codes of cameras whose identities are not looked at, as if nobody had
        labelled them.
      local_clusters: how many clusters a camera gets: a number, or `n//5`, one for every five of
        its images.
    """

    allow_single_identity: bool = False
    val_fraction: float = 0.0
    unlabelled: str = "drop"
    unlabelled_cameras: tuple[int | str, ...] = ()
    local_clusters: int | str = "n//5"

    def __post_init__(self):
        super().__post_init__()
        require_choice("unlabelled", self.unlabelled, ("drop", "cluster"))
        number_of_clusters(self.local_clusters, 1)
        require(
            0 <= self.val_fraction < 1,
            f"val_fraction is {self.val_fraction}, must be at least 0 and below 1",
        )
        object.__setattr__(self, "unlabelled_cameras", camera_names(self.unlabelled_cameras))


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The image and text towers.

    Attributes:
      weights: folder or Hub id of a CLIP checkpoint, whose config tells the kind of tower; or
        `tiny_clip`, the small one shipped with the package.
      tower: `resnet` or `vit`, the kind that the recipe is made for: weights of the other kind
        are an error; empty takes both.
      activation: `quick_gelu` or `gelu`, for checkpoints whose config does not state it.
      last_stride: stride of a ResNet's layer4, 1 (published) or 2.
      patch_stride: pixels between the patches of a ViT; 0 means that of the checkpoint (no
        overlap), 12 is CLIP-ReID's overlap of patches of 16.
      camera_embedding: add a learned vector of the image's camera to a ViT's class token
        (CLIP-ReID's SIE); `camera_scale` is its factor.
      bn_group: rows per batch-norm statistic in training (0: the whole batch). Published: 64.
      compute_dtype: dtype inside the image encoder, `float32` or `bfloat16`.
      calibrate_neck: set the neck's running statistics from the training images before the
        first extraction.
      remat: compute the inside of blocks again for the gradient: less memory, more work.
      attention: in the blocks of transformers: `plain`; `cudnn`, one fused kernel for GPUs of
        NVIDIA with `bfloat16`; or `auto`, the fused one where it is to be had.
    """

    weights: str = ""
    tower: str = ""
    activation: str = ""
    last_stride: int = 1
    patch_stride: int = 0
    camera_embedding: bool = False
    camera_scale: float = 1.0
    bn_group: int = 64
    compute_dtype: str = "float32"
    calibrate_neck: bool = True
    remat: bool = False
    attention: str = "auto"

    def __post_init__(self):
        require_choice("attention", self.attention, ("auto", *ATTENTION))
        require(
            self.attention != "cudnn" or self.compute_dtype == "bfloat16",
            "attention='cudnn' needs compute_dtype='bfloat16'",
        )
        require_choice("tower", self.tower, ("", "resnet", "vit"))
        require_choice("activation", self.activation, ("", "quick_gelu", "gelu"))
        require(
            self.camera_embedding or self.camera_scale == 1.0,
            "camera_scale needs camera_embedding=True",
        )
        require_choice("compute_dtype", self.compute_dtype, ("float32", "bfloat16"))
        require(self.last_stride in (1, 2), "last_stride must be 1 or 2")
        require(self.patch_stride >= 0, "patch_stride must be 0 (as stored) or a number of pixels")
        require(self.bn_group >= 0, "bn_group must be 0 (whole batch) or a number of rows")


@dataclasses.dataclass(frozen=True)
class PromptsConfig:
    """Stage 1: prompt learning inside cameras (specification 2.3).

    Attributes:
      prefix_tokens: tokens between the start token and the learned vectors. 4 puts them on the
        four X of "A photo of a X X X X person."; the release used 5 (Market, MSMT17) or 6
        (Duke), which overwrites "person".
      scope: contrast inside `camera` (published) or over the whole `batch` (CLIP-ReID).
    """

    epochs: int = 60
    batch: int = 64
    prefix_tokens: int = 4
    scope: str = "camera"
    base_lr: float = 3.5e-4
    warmup_from: float = 1e-5
    warmup_epochs: int = 5
    min_lr: float = 1e-6
    weight_decay: float = 1e-4

    def __post_init__(self):
        require_choice("scope", self.scope, ("camera", "batch"))
        require(self.epochs >= 1 and self.batch >= 2, "epochs must be >= 1 and batch >= 2")
        require(self.prefix_tokens in (4, 5, 6), "prefix_tokens must be 4, 5 or 6")


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """P x K batches over accumulated classes, or over pseudo identities in stage 3."""

    classes: int = 16
    images: int = 8
    kind: str = "acc_pk"

    def __post_init__(self):
        require_choice("kind", self.kind, ("acc_pk", "cluster_pk"))
        require(self.classes >= 1 and self.images >= 1, "classes and images must be positive")

    def check_classes(self, found: int) -> None:
        """Raises ValueError unless a batch can be filled with different classes."""
        require(
            self.classes <= found,
            f"sampler.classes is {self.classes} and the training set has {found} (camera, id) "
            f"classes: set --config.sampler.classes={found} or fewer",
        )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The encoder's and the classifier's optimisers (specification 2.4).

    Attributes:
      idle: what happens to parameters that no active loss reaches (the attention pool while no
        text loss is on): `hold` leaves values, moments and count alone; `decay` steps them with
        zero gradients, as the release does, which erases them by weight decay.
    """

    base_lr: float = 3.5e-4
    bias_lr_factor: float = 2.0
    weight_decay: float = 5e-4
    warmup_epochs: int = 10
    warmup_factor: float = 0.01
    milestones: tuple[int, ...] = (40, 50)
    gamma: float = 0.1
    classifier_lr: float = 3.5e-4
    classifier_weight_decay: float = 5e-4
    idle: str = "hold"

    def __post_init__(self):
        require_choice("idle", self.idle, ("hold", "decay"))


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Epochs and the windows of the losses.

    Attributes:
      epochs, iterations: epochs of stages 2 and 3 together, and steps per epoch.
      intra_epochs: how many of them are stage 2.
      text_start: first epoch of the inter-camera text loss.
      ical_start, ical_end: ICAL is on in [start, end).
      unit: `epochs`, or `fraction`: the four borders are shares of `epochs`, rounded.
    """

    epochs: int = 80
    iterations: int = 200
    intra_epochs: float = 5.0
    text_start: float = 10.0
    ical_start: float = 40.0
    ical_end: float = 50.0
    unit: str = "epochs"

    def __post_init__(self):
        require_choice("unit", self.unit, ("epochs", "fraction"))
        require(self.epochs >= 1 and self.iterations >= 1, "epochs and iterations must be positive")
        for name in ("intra_epochs", "text_start", "ical_start", "ical_end"):
            value = getattr(self, name)
            if self.unit == "fraction":
                require(0 <= value <= 1, f"{name} is {value}, a fraction lies between 0 and 1")
            else:
                require(value >= 0 and value == int(value), f"{name} must be a whole epoch")

    def border(self, name: str) -> int:
        """A border in whole epochs."""
        value = getattr(self, name)
        return round(value * self.epochs) if self.unit == "fraction" else int(value)


@dataclasses.dataclass(frozen=True)
class ICDLConfig:
    """Intra-camera discriminative loss over centroids and instances (specification 2.5).

    Attributes:
      w: weight of the centroid term; 1 - w goes to the instances.
      instances: slots per class, drawn with replacement; 0 keeps every image of every class.
      centroid_update: `mean` of the batch rows (published) or the `hard`est row.
    """

    w: float = 0.6
    temperature: float = 0.05
    instances: int = 32
    centroid_update: str = "mean"
    memory_momentum: float = 0.1

    def __post_init__(self):
        require_choice("centroid_update", self.centroid_update, ("mean", "hard"))
        require(0 <= self.w <= 1, f"w is {self.w}, must lie between 0 and 1")
        require(self.instances >= 0, "instances must be 0 (all images) or a number of slots")


@dataclasses.dataclass(frozen=True)
class InterConfig:
    """Cluster contrast (specification 2.6).

    Attributes:
      temperature: of the similarities.
      memory_update: by the `hard`est row of each cluster (published), by the `mean` of its rows, or
        by `each` row of the batch in its order.
      memory_momentum: weight of the old value.
    """

    temperature: float = 0.05
    memory_update: str = "hard"
    memory_momentum: float = 0.1

    def __post_init__(self):
        require_choice("memory_update", self.memory_update, ("hard", "mean", "each"))


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Image-to-text cross-entropy in stages 2 (`intra`) and 3 (`inter`).

    Attributes:
      smoothing: label smoothing.
      inter_denominator: classes over which the inter-camera smoothing is spread; 0 means the
        true number of clusters, the release always used 4821.
      cluster_text: description of a cluster: mean over its images or its classes, or the class
        text nearest to the image mean.
    """

    intra: bool = True
    inter: bool = True
    smoothing: float = 0.1
    inter_denominator: int = 0
    cluster_text: str = "image_mean"

    def __post_init__(self):
        require_choice("cluster_text", self.cluster_text, ("image_mean", "class_mean", "medoid"))


@dataclasses.dataclass(frozen=True)
class TripletConfig:
    """Memory and batch triplets; in the released code, not in the published figure."""

    enabled: bool = True
    margin: float = 0.3


@dataclasses.dataclass(frozen=True)
class ICALConfig:
    """Inter-camera adversarial loss (specification 2.8).

    Attributes:
      epsilon: weight moved from the own class to all positives.
      margin: additive angular margin of the own class, radians.
      inflation: t, how much same-camera negatives are inflated.
      scale: of the cosine classifier, for GID and ICAL.
    """

    enabled: bool = True
    epsilon: float = 0.8
    margin: float = 0.7
    inflation: float = 0.2
    scale: float = 16.0


@dataclasses.dataclass(frozen=True)
class CameraHeadConfig:
    """Gradient reversal, which is no part of CCAFL: a control for ICAL, in ICAL's window.

    A cosine classifier of the cameras begins every epoch at the cameras' mean features and takes a
    step of gradient descent with every batch; the encoder gets its gradient reversed.

    Attributes:
      weight: of the reversed gradient; 0 leaves all of it out.
      scale: of the cosines.
      lr: rate of the classifier.
    """

    weight: float = 0.0
    scale: float = 16.0
    lr: float = 0.1

    def __post_init__(self):
        require(self.weight >= 0, f"weight is {self.weight}, must be 0 (off) or above")


@dataclasses.dataclass(frozen=True)
class AssociationConfig:
    """Cross-camera association of classes (specification 3; docs/ccafl.md has a table).

    Attributes:
      method: `greedy_cc` (published); `greedy_cc_cam`, which also refuses to join components that
        share a camera; `mnn`, `greedy_groups`, `dbscan`; or `package.module:function` of your own.
      rate: candidate pairs per class, or `auto`: as many pairs as are estimated to be true.
      mutual: k above 0 leaves only candidates that are mutually among the k nearest classes.
      max_distance: largest squared distance of two class means, 0..4.
      nearest: k of the mutual nearest classes that `mnn` links.
      k1, k2: neighbours of the Jaccard distance of images.
      group_distance: Jaccard distance below which `greedy_groups` merges classes.
      eps, min_samples: Jaccard distance and core size of `dbscan`.
      every: epochs between two associations in stage 3.
      center_cameras: subtract each camera's mean feature before anything else.
    """

    method: str = "greedy_cc"
    rate: float | str = 1.7
    mutual: int = 0
    max_distance: float = 4.0
    nearest: int = 1
    k1: int = 30
    k2: int = 6
    group_distance: float = 0.4
    eps: float = 0.6
    min_samples: int = 4
    every: int = 1
    center_cameras: bool = False

    def __post_init__(self):
        is_number = isinstance(self.rate, int | float) and self.rate is not True
        require(
            self.rate == AUTO or (is_number and 0 < self.rate < float("inf")),
            f"rate is {self.rate!r}, must be a number above 0 (candidate pairs per class) or auto",
        )
        require(self.mutual >= 0, "mutual must be 0 (off) or a number of classes")
        require(
            0 < self.max_distance <= 4,
            f"max_distance is {self.max_distance}, must lie above 0 and up to 4 (no limit)",
        )
        require(self.nearest >= 1, "nearest must be at least 1")
        require(1 <= self.k2 <= self.k1, "k2 must be at least 1 and at most k1")
        for name in ("group_distance", "eps"):
            value = getattr(self, name)
            require(0 < value < 1, f"{name} is {value}, must lie between 0 and 1")
        require(self.min_samples >= 1 and self.every >= 1, "min_samples and every must be positive")
        if ":" not in self.method:  # a function of the user's own is looked for when a run starts
            self.function()

    def function(self) -> Callable[..., Labels]:
        """The association with its options, a function of features, label and cam_of.

        Raises:
          ValueError: no such method, or an option was changed that it does not take.
        """
        function = labeller(self.method, ASSOCIATIONS)
        defaults = {
            field.name: field.default
            for field in dataclasses.fields(self)
            if field.name not in ("method", "every", "center_cameras")
        }
        options = {name: getattr(self, name) for name in defaults}
        return functools.partial(function, **options_taken(function, options, defaults))


@dataclasses.dataclass(frozen=True)
class CCAFLConfig:
    """All options of a CCAFL run.

    Attributes:
      method: `ccafl`.
      seed: of every random draw of the run.
      stages: which of `prompts`, `intra`, `inter` to run, in this order.
      reduce: sum over cameras of per-camera means (`sum_cam_mean`, published) or their mean.
      devices: devices of the mesh (0: all).
      keep_checkpoints: how many of the latest checkpoints stay.
      keep_best: also keep the checkpoint of the best evaluation on `val`, the held-out identities,
        or on `test`, whose figures are then no longer those of an unseen set; "" keeps none.
      skip_nonfinite: steps with a loss or gradient that is NaN or infinite to pass over before the
        run stops.
      init_from: folder of a CCAFL run, or its checkpoints folder, whose newest model this one
        starts from in place of CLIP's (docs/ccafl.md): image tower and heads, and by the name of
        the class prompts and rows of the classifier. Optimisers start anew. A resumed run does
        not read it again.
      published: figures of the paper, copied into the summary beside ours.
      published_on: the data set (`data.name`) they were measured on; beside any other they are
        left out.
    """

    method: str = "ccafl"
    seed: int = 1
    stages: tuple[str, ...] = STAGES
    reduce: str = "sum_cam_mean"
    devices: int = 0
    keep_checkpoints: int = 2
    keep_best: str = ""
    skip_nonfinite: int = 0
    init_from: str = ""
    published: str = ""
    published_on: str = ""
    scale: ScaleConfig = ScaleConfig()
    data: DataConfig = DataConfig()
    input: InputConfig = InputConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    prompts: PromptsConfig = PromptsConfig()
    sampler: SamplerConfig = SamplerConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    icdl: ICDLConfig = ICDLConfig()
    inter: InterConfig = InterConfig()
    text: TextConfig = TextConfig()
    triplet: TripletConfig = TripletConfig()
    ical: ICALConfig = ICALConfig()
    camera_head: CameraHeadConfig = CameraHeadConfig()
    association: AssociationConfig = AssociationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    def __post_init__(self):
        require_choice("method", self.method, ("ccafl",))
        require_choice("reduce", self.reduce, ("sum_cam_mean", "mean_cam_mean"))
        require_run(self, stages=STAGES, keep_best=("", "val", "test"))
        require(
            self.keep_best != "val" or self.data.val_fraction > 0,
            "keep_best=val needs identities to be held out: set data.val_fraction above 0",
        )

    def scaled(self) -> "CCAFLConfig":
        """These options at `scale.batch` times the batch, where that is 1 again."""
        return options.at_batch(
            self,
            sizes=("prompts.batch", "sampler.classes"),
            rates=("prompts.base_lr", "optimizer.base_lr", "optimizer.classifier_lr"),
            steps=("schedule.iterations",),
        )
