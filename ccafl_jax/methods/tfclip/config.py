"""The options of TF-CLIP, grouped as the parts of the method are.

Defaults are the published recipe for MARS with its accidents put right. What differs between data
sets, and what the released code does otherwise, is an option here and a line in a file under
configs/.
"""

import dataclasses

from ccafl_jax.data.augment import AugmentConfig
from ccafl_jax.data.clips import KINDS, SPLITS
from ccafl_jax.data.layouts.ilidsvid import ORIENTATIONS
from ccafl_jax.methods import options
from ccafl_jax.methods.options import EvaluationConfig, InputConfig, require_run
from ccafl_jax.models.layers import ATTENTION
from ccafl_jax.models.temporal import CONTEXTS, LAYOUTS, PromptSizes
from ccafl_jax.models.video import FEATURES
from ccafl_jax.options import require, require_choice
from ccafl_jax.training.scale import ScaleConfig

STAGES = ("clips",)
RATES = ("intended", "released")


@dataclasses.dataclass(frozen=True)
class DataConfig(options.DataConfig):
    """Which tracklets, and how their frames reach the model.

    Attributes, beside those of all methods:
      split: of a data set that has several, such as the ten of iLIDS-VID, from 1; 0 for the others.
      orientation: which half of the people of such a split trains, see `select_ilidsvid`; the
        release takes the other one (`tfclip`) than most published work (`standard`).
    """

    name: str = "mars"
    split: int = 0
    orientation: str = "standard"

    def __post_init__(self):
        super().__post_init__()
        require_choice("orientation", self.orientation, ORIENTATIONS)
        require(self.split >= 0, "split must be 0 (the data set has none) or its number, from 1")
        require(
            self.orientation == "standard" or self.split > 0,
            "orientation is for data sets with splits: state the split, too",
        )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The image tower.

    Attributes:
      weights: folder or Hub id of a CLIP checkpoint, whose config tells the kind of tower; or
        `tiny_clip`, the small one shipped with the package.
      tower: `resnet` or `vit`, the kind that the recipe is made for: weights of the other kind
        are an error; empty takes both. The release runs with a ViT only.
      activation: `quick_gelu` or `gelu`, for checkpoints whose config does not state it.
      last_stride: stride of a ResNet's layer4.
      patch_stride: pixels between the patches of a ViT; 0 means that of the checkpoint.
      camera_embedding: add a learned vector of the clip's camera to a ViT's class token, in
        training and testing; `camera_scale` is its factor.
      feature: what clips are retrieved by, see `VideoConfig`.
      compute_dtype: dtype inside tower, prompts and diffusion, `float32` or `bfloat16`.
      remat: compute the inside of blocks again for the gradient: less memory, more work.
      attention: in the blocks of transformers: `plain`; `cudnn`, one fused kernel for GPUs of
        NVIDIA with `bfloat16`; or `auto`, the fused one where it is to be had.
    """

    weights: str = ""
    tower: str = ""
    activation: str = ""
    last_stride: int = 1
    patch_stride: int = 0
    camera_embedding: bool = True
    camera_scale: float = 1.0
    feature: str = "pooled"
    compute_dtype: str = "float32"
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
        require_choice("feature", self.feature, FEATURES)
        require_choice("compute_dtype", self.compute_dtype, ("float32", "bfloat16"))
        require(
            self.camera_embedding or self.camera_scale == 1.0,
            "camera_scale needs camera_embedding=True",
        )
        require(self.last_stride in (1, 2), "last_stride must be 1 or 2")
        require(self.patch_stride >= 0, "patch_stride must be 0 (as stored) or a number of pixels")


@dataclasses.dataclass(frozen=True)
class ClipsConfig:
    """From tracklets to clips (specification 2).

    Attributes:
      frames: of a clip.
      split: how a tracklet is split into chunks of which each gives a frame, see `chunks`: `ceil`
        (published) or `even`.
      piece: cut training tracklets into pieces of so many frames; 0 leaves them whole. Published:
        48 for LS-VID.
      step: frames from one piece to the next; 0 means `piece`, so that none overlap. Published:
        pieces of 8 with a step of 4 for iLIDS-VID.
      memory: clips that the memory is made of: `dense`, all frames, or `spread`, one clip of a
        tracklet.
      during, final: clips of test tracklets in evaluations during training, and before and after
        it.
    """

    frames: int = 8
    split: str = "ceil"
    piece: int = 0
    step: int = 0
    memory: str = "dense"
    during: str = "spread"
    final: str = "dense"

    def __post_init__(self):
        require(self.frames >= 1, "frames must be 1 or more")
        require_choice("split", self.split, SPLITS)
        for name in ("memory", "during", "final"):
            require_choice(name, getattr(self, name), KINDS)
        require(0 <= self.step <= self.piece, "step must be 0 (that of piece) up to piece")


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """Sequence-specific prompts (specification 3.3); they act in training only.

    Attributes:
      enabled: without them clips are compared with the memory as it was made.
      layers: decoder layers.
      heads: of each attention; 0 means one for 64 channels.
      layout: `code` (released) or `paper`, without attention among identities.
      context: `tokens` (released) or `sequences`, see `PromptSizes`.
      dropout: share of channels that are dropped.
      remat: compute the layers again for the gradient: with many identities they take more memory
        than the tower (docs/tfclip.md).
    """

    enabled: bool = True
    layers: int = 2
    heads: int = 0
    layout: str = "code"
    context: str = "tokens"
    dropout: float = 0.1
    remat: bool = False

    def __post_init__(self):
        require_choice("layout", self.layout, LAYOUTS)
        require_choice("context", self.context, CONTEXTS)
        self.sizes()

    def sizes(self) -> PromptSizes | None:
        """Sizes of the prompts; None without them."""
        names = [field.name for field in dataclasses.fields(PromptSizes)]
        sizes = PromptSizes(**{name: getattr(self, name) for name in names})
        return sizes if self.enabled else None


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """Temporal memory diffusion (specification 3.4).

    Attributes:
      enabled: without it a clip is the mean of its frames.
      heads: of both attentions; 0 means one for 64 channels.
    """

    enabled: bool = True
    heads: int = 0

    def __post_init__(self):
        require(self.heads >= 0, "heads must be 0 (one for 64 channels) or a number")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the losses, and their settings (specification 4).

    Attributes:
      id: of the classification of clips, summed over features.
      triplet: of the batch-hard triplets, summed over features.
      memory: of the classification against the memory; 0 makes no memory and no prompts.
      frame: of the classification of frames, which is divided by the frames of a clip.
      smoothing: of labels.
      margin: of triplets.
      soft_margin: log(1 + exp(x)) in place of a margin.
    """

    id: float = 0.25
    triplet: float = 1.0
    memory: float = 1.0
    frame: float = 1.0
    smoothing: float = 0.1
    margin: float = 0.3
    soft_margin: bool = False

    def __post_init__(self):
        require(0 <= self.smoothing < 1, "smoothing must be at least 0 and below 1")
        weights = (self.id, self.triplet, self.memory, self.frame)
        require(min(weights) >= 0 and max(weights) > 0, "weights must be 0 or more, and not all 0")


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Batches: identities, and tracklets of each."""

    classes: int = 4
    tracklets: int = 4

    def __post_init__(self):
        require(self.classes >= 1 and self.tracklets >= 1, "classes and tracklets must be positive")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam with coupled L2, and rates by group (specification 5).

    Attributes:
      rates: `intended`: prompts and diffusion have `new_factor` times the rate; `released`: they
        have the rate itself, as names were changed there and a rule no longer finds them. The
        classifier of clips and frames after the diffusion has it in both.
      new_factor: of modules that begin at random.
      bias_factor: of biases elsewhere.
    """

    base_lr: float = 5e-6
    weight_decay: float = 1e-4
    rates: str = "intended"
    new_factor: float = 10.0
    bias_factor: float = 2.0
    warmup_epochs: int = 10
    warmup_factor: float = 0.1
    milestones: tuple[int, ...] = (30, 50, 70)
    gamma: float = 0.1

    def __post_init__(self):
        require_choice("rates", self.rates, RATES)


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Epochs, and steps of each.

    Attributes:
      epochs: of training.
      iterations: steps of an epoch; 0 takes as many as it takes to show each tracklet once at most
        (published).
    """

    epochs: int = 80
    iterations: int = 0

    def __post_init__(self):
        require(self.epochs >= 1, "epochs must be positive")
        require(self.iterations >= 0, "iterations must be 0 (each tracklet once) or a number")


@dataclasses.dataclass(frozen=True)
class TFCLIPConfig:
    """All options of a TF-CLIP run.

    Attributes:
      method: `tfclip`.
      seed: of every random draw of the run.
      stages: `clips`, the only one.
      devices: devices of the mesh (0: all).
      keep_checkpoints: how many of the latest checkpoints stay.
      keep_best: also keep the checkpoint of the best evaluation on `test` (the release reports that
        one), whose figures are then no longer those of an unseen set; "" keeps none.
      skip_nonfinite: steps with a loss or gradient that is NaN or infinite to pass over before the
        run stops.
      published: figures of the paper, copied into the summary beside ours.
      published_on: the data set (`data.name`) they were measured on; beside any other they are
        left out.
    """

    method: str = "tfclip"
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
    augment: AugmentConfig = AugmentConfig(pad=0, erase_area=(0.02, 0.2), erase_fill="random")
    model: ModelConfig = ModelConfig()
    clips: ClipsConfig = ClipsConfig()
    prompt: PromptConfig = PromptConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    loss: LossConfig = LossConfig()
    sampler: SamplerConfig = SamplerConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    evaluation: EvaluationConfig = EvaluationConfig(every=2)

    def __post_init__(self):
        require_choice("method", self.method, ("tfclip",))
        require_run(self, stages=STAGES, keep_best=("", "test"))
        require(
            not self.scale.shard_classes,
            "scale.shard_classes is not for TF-CLIP, whose identities attend to each other: "
            "prompt.remat saves memory",
        )

    def scaled(self) -> "TFCLIPConfig":
        """These options at `scale.batch` times the batch, where that is 1 again."""
        return options.at_batch(
            self,
            sizes=("sampler.classes",),
            rates=("optimizer.base_lr",),
            steps=("schedule.iterations",),
        )
