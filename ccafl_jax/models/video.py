"""The model of TF-CLIP: features of clips, and the heads they are trained with."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ccafl_jax import numerics
from ccafl_jax.models.clip.config import ResNetConfig, VisionConfig, ViTConfig
from ccafl_jax.models.clip.model import ImageTower, build_tower
from ccafl_jax.models.layers import BNNeck, Compute, Linear
from ccafl_jax.models.temporal import (
    PromptSizes,
    SequencePrompt,
    TemporalDiffusion,
    memory_logits,
)
from ccafl_jax.models.towers import patch_map, tower_from_json, tower_to_json

FEATURES = ("pooled", "neck", "neck_released")

_CLASSIFIER_STDDEV = 0.001
_CAMERA_STDDEV = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """All sizes of a video model.

    Attributes:
      vision: CLIP's image tower, of either kind.
      embed_dim: size of the joint space.
      activation: of the blocks of a ViT.
      classes: training identities.
      cameras: rows of the camera embedding that is added to the class token; 0 means none.
      camera_scale: factor of the camera embedding.
      prompt: of the sequence-specific prompts, or None for a memory that no clip changes.
      diffusion: whether a memory is diffused over the frames; without, clips are means of frames.
      diffusion_heads: heads of its attentions; 0 means one for 64 channels.
      feature: retrieve by what enters the necks (`pooled`, as published); by what leaves them
        (`neck`); or by that without the feature of the diffusion, which the released code drops
        there (`neck_released`).
    """

    vision: VisionConfig
    embed_dim: int
    activation: str
    classes: int
    cameras: int = 0
    camera_scale: float = 1.0
    prompt: PromptSizes | None = PromptSizes()
    diffusion: bool = True
    diffusion_heads: int = 0
    feature: str = "pooled"

    def __post_init__(self):
        if not isinstance(self.vision, (ViTConfig, ResNetConfig)):
            raise ValueError(
                f"the image tower is a {type(self.vision).__name__}; a video model needs one of "
                "CLIP's, which has a joint space"
            )
        if self.cameras and isinstance(self.vision, ResNetConfig):
            raise ValueError(
                f"a ResNet has no class token for an embedding of {self.cameras} cameras; choose "
                "no camera embedding"
            )
        if self.feature not in FEATURES:
            raise ValueError(f"feature is {self.feature!r}; choose one of {FEATURES}")
        if self.classes < 1:
            raise ValueError(f"classes is {self.classes}; there must be an identity to train on")

    @property
    def features(self) -> int:
        """Size of the retrieval feature."""
        time = self.vision.features if self.diffusion and self.feature != "neck_released" else 0
        return self.vision.features + self.embed_dim + time

    @property
    def kinds(self) -> int:
        """Kinds of images that the model tells apart: its cameras; 0 for none."""
        return self.cameras

    @property
    def dual_stream(self) -> bool:
        """Whether visible and infrared images have a stem each: clips are of one light."""
        return False

    def to_json(self) -> dict:
        """As JSON values."""
        sizes = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        sizes["prompt"] = None if self.prompt is None else dataclasses.asdict(self.prompt)
        return sizes | {"kind": "video", "vision": tower_to_json(self.vision)}

    @classmethod
    def from_json(cls, raw: Mapping) -> "VideoConfig":
        """Inverse of `to_json`."""
        sizes = {name: value for name, value in raw.items() if name != "kind"}
        prompt = sizes["prompt"]
        sizes["prompt"] = None if prompt is None else PromptSizes(**prompt)
        return cls(**sizes | {"vision": tower_from_json(raw["vision"])})


class ClipOutputs(NamedTuple):
    """What training reads of a batch of clips.

    Attributes:
      features: float32[clips, dim] by name, before the necks: `image` (the tower's), `joint` (of
        the joint space) and, with the diffusion, `time`.
      logits: float32[clips, classes] by name: of the three features, `frame` (float32[clips *
        frames, classes], of every frame after the diffusion) and `memory` (video to memory).
    """

    features: dict[str, jax.Array]
    logits: dict[str, jax.Array]


class VideoModel(nnx.Module):
    """CLIP's image tower over the frames of a clip, with what TF-CLIP adds.

    A frame is the tower's tokens: of a ViT the class token and the patches, of a ResNet the mean of
    the last map and its positions, as its attention pool takes them. The first one stands for the
    frame. Each feature has a neck and a classifier; both features of the diffusion share one.
    """

    def __init__(
        self,
        visual: ImageTower,
        sizes: VideoConfig,
        *,
        remat_prompt: bool = False,
        rngs: nnx.Rngs,
    ):
        """Args:
        visual: the image tower, e.g. `load_clip(...).visual`.
        sizes: of the model; its `vision` is that of the tower.
        remat_prompt: see `SequencePrompt`.
        rngs: random streams of the initial parameters.

        Raises:
          ValueError: sizes that the tower does not have, or heads that divide no width.
        """
        if (visual.config, visual.out_features) != (sizes.vision, sizes.embed_dim):
            raise ValueError(
                f"the image tower is {visual.config} with a joint space of {visual.out_features}, "
                f"but the sizes are for {sizes.vision} with one of {sizes.embed_dim}"
            )
        compute = visual.compute
        dtype, width = compute.param_dtype, sizes.vision.features
        self.visual = visual
        if sizes.cameras:
            table = jax.random.normal(rngs.params(), (sizes.cameras, width), jnp.dtype(dtype))
            self.camera_embedding = nnx.Param(table * jnp.asarray(_CAMERA_STDDEV, dtype))
        self.prompt = (
            SequencePrompt(
                sizes.embed_dim, sizes.prompt, remat=remat_prompt, compute=compute, rngs=rngs
            )
            if sizes.prompt
            else None
        )
        self.diffusion = (
            TemporalDiffusion(width, heads=sizes.diffusion_heads, compute=compute, rngs=rngs)
            if sizes.diffusion
            else None
        )
        dims = {"image": width, "joint": sizes.embed_dim}
        if sizes.diffusion:
            dims |= {"time": width}
        full = Compute(param_dtype=dtype)  # logits are float32, whatever the encoder computes in

        def classifier(features: int) -> Linear:
            return Linear(
                features,
                sizes.classes,
                stddev=_CLASSIFIER_STDDEV,
                use_bias=False,
                compute=full,
                rngs=rngs,
            )

        frame = {"frame": width} if sizes.diffusion else {}
        necks = {name: BNNeck(dim, param_dtype=dtype) for name, dim in (dims | frame).items()}
        self.necks = nnx.Dict(necks)
        self.classifiers = nnx.Dict({name: classifier(dim) for name, dim in dims.items()})
        self.sizes = sizes

    def __call__(
        self,
        clips: jax.Array,
        cameras: jax.Array | None,
        memory: jax.Array | None,
        *,
        key: jax.Array | None = None,
        train: bool = True,
    ) -> ClipOutputs:
        """Features and logits for training.

        Args:
          clips: float[clips, frames, height, width, 3], normalised.
          cameras: int32[clips], counted from 0; only with a camera embedding.
          memory: float[classes, embed_dim]; None leaves out the logits against it.
          key: of the dropout; None drops nothing.
          train: batch statistics instead of running ones.
        """
        features, frame, context = self._encode(
            clips, cameras, train=train, context=memory is not None and self.prompt is not None
        )
        logits = {
            name: self.classifiers[name](self.necks[name](value, train=train))
            for name, value in features.items()
        }
        if frame is not None:
            flat = frame.reshape(-1, frame.shape[-1])
            logits["frame"] = self.classifiers["time"](self.necks["frame"](flat, train=train))
        if memory is not None:
            prompt = None if context is None else self.prompt(memory, context, key)
            logits["memory"] = memory_logits(features["joint"], memory, prompt)
        return ClipOutputs(features, logits)

    def embed(self, clips: jax.Array, cameras: jax.Array | None = None) -> jax.Array:
        """Retrieval features of clips in evaluation mode: float32[clips, dim], not normalised."""
        features, *_ = self._encode(clips, cameras, train=False, context=False)
        if self.sizes.feature == "neck_released":
            features.pop("time", None)
        if self.sizes.feature != "pooled":
            features = {n: self.necks[n](value, train=False) for n, value in features.items()}
        return jnp.concatenate(list(features.values()), axis=1)

    def last_map(self, images: jax.Array, cameras: jax.Array | None = None) -> jax.Array:
        """As `ReIDModel.last_map`, of single frames: the tower alone, before the diffusion."""
        return patch_map(self.visual, images, **self._class_offset(cameras, 1))

    def joint_means(self, clips: jax.Array) -> jax.Array:
        """Means of the frames' features in the joint space, without cameras, in evaluation mode.

        Args:
          clips: float[clips, frames, height, width, 3], normalised.

        Returns:
          float32[clips, embed_dim], not normalised: what CLIP-Memory is made of.
        """
        count, frames = clips.shape[:2]
        images = clips.reshape(count * frames, *clips.shape[2:])
        return _over_frames(self.visual(images, train=False), frames)

    def _encode(
        self, clips: jax.Array, cameras: jax.Array | None, *, train: bool, context: bool
    ) -> tuple[dict[str, jax.Array], jax.Array | None, jax.Array | None]:
        """Features of the clips, of their frames after the diffusion, context of the prompts."""
        count, frames = clips.shape[:2]
        images = clips.reshape(count * frames, *clips.shape[2:])
        per_token = context and self.prompt.context == "tokens"
        options = {"train": train} | self._class_offset(cameras, frames)
        if self.diffusion is None and not per_token and isinstance(self.sizes.vision, ViTConfig):
            tokens = self.visual.encode_class(images, **options)[1][:, None]
            joint = self.visual.project(tokens)
        else:
            tokens, joint = self._tokens(images, per_token=per_token, **options)
        features = {
            "image": _over_frames(tokens[:, 0], frames),
            "joint": _over_frames(joint[:, 0], frames),
        }
        frame = found = None
        if self.diffusion is not None:
            # The diffusion never trains the tower, as released.
            held = jax.lax.stop_gradient(tokens.reshape(count, frames, *tokens.shape[1:]))
            frame = self.diffusion(held)
            features["time"] = jnp.mean(frame, axis=1)
        if context:
            found = _over_frames(joint, frames) if per_token else features["joint"][None]
        return features, frame, found

    def _tokens(self, images: jax.Array, *, per_token: bool, **options) -> tuple:
        """Tokens of the last layer and in the joint space, of which the first one may suffice."""
        last = self.visual.encode(images, **options)[1]
        if isinstance(self.sizes.vision, ViTConfig):
            return last, self.visual.project(last if per_token else last[:, :1])
        flat = last.reshape(last.shape[0], -1, last.shape[-1])
        mean = jnp.mean(numerics.at_least_float32(flat), axis=1, keepdims=True)
        tokens = jnp.concatenate([mean.astype(flat.dtype), flat], axis=1)
        if per_token:
            return tokens, numerics.at_least_float32(self.visual.attnpool.all_tokens(last))
        return tokens, self.visual.project(last)[:, None]

    def _class_offset(self, cameras: jax.Array | None, frames: int) -> dict[str, jax.Array]:
        if not self.sizes.cameras:
            return {}
        if cameras is None:
            raise ValueError(
                "this model has a camera embedding: pass the camera of each clip, "
                f"0 to {self.sizes.cameras - 1}"
            )
        offset = self.sizes.camera_scale * self.camera_embedding[...][cameras]
        return {"class_offset": jnp.repeat(offset, frames, axis=0)}


def build_video(config: VideoConfig, *, compute: Compute | None = None) -> VideoModel:
    """The model that a configuration describes, with random parameters.

    Where only shapes are needed, wrap the call in `nnx.eval_shape`.
    """
    rngs = nnx.Rngs(0)
    visual = build_tower(
        config.vision,
        out_features=config.embed_dim,
        activation=config.activation,
        compute=compute,
        rngs=rngs,
    )
    return VideoModel(visual, config, rngs=rngs)


def _over_frames(x: jax.Array, frames: int) -> jax.Array:
    """Means over the frames of each clip: float[clips * frames, ...] to float32[clips, ...]."""
    return jnp.mean(numerics.at_least_float32(x).reshape(-1, frames, *x.shape[1:]), axis=1)
