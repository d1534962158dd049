"""Video models from and to the tensor names of the code published for TF-CLIP."""

import re
from collections.abc import Mapping

import numpy as np

from ccafl_jax.models.clip.naming import OPENAI_TOWER
from ccafl_jax.models.clip.weights import UNUSED
from ccafl_jax.models.named_tensors import (
    LINEAR,
    affine,
    batch_norm,
    export,
    fill,
    linear,
    prefixed,
    row,
    where,
)
from ccafl_jax.models.video import VideoModel

TOWER = "image_encoder."
_NECKS = {
    "image": "bottleneck",
    "joint": "bottleneck_proj",
    "frame": "bottleneck_proj_temp",
    "time": "bottleneck_proj_temp2",
}
_CLASSIFIERS = {
    "image": "classifier2",
    "joint": "classifier_proj",
    "time": "classifier_proj_temp",
}

PROMPT_LAYER = (
    *affine("self_norm", "norm1"),
    *affine("cross_norm", "norm2"),
    *affine("mlp_norm", "norm3"),
    *(
        row(f"{ours}/{part}_proj/kernel", f"{theirs}.{part}_proj.weight", LINEAR)
        for ours, theirs in (("self_attention", "self_attn"), ("cross_attention", "cross_attn"))
        for part in "qkv"
    ),
    *linear("self_attention/out_proj", "self_attn.proj"),
    *linear("cross_attention/out_proj", "cross_attn.proj"),
    *linear("mlp_in", "mlp.0"),
    *linear("mlp_out", "mlp.3"),
)
PROMPT = (
    *affine("context_norm", "memory_proj.0"),
    *linear("context_proj", "memory_proj.1"),
    *affine("context_out_norm", "memory_proj.2"),
    *affine("memory_norm", "text_proj.0"),
    *linear("memory_proj", "text_proj.1"),
    *affine("out_norm", "out_proj.0"),
    *linear("out_proj", "out_proj.1"),
    *prefixed(PROMPT_LAYER, r"layers/(\d+)/", r"decoder.\1."),
)
DIFFUSION = (
    *linear("message", "message_fc"),
    *affine("message_norm", "message_ln"),
    row("in_proj/kernel", "message_attn.in_proj_weight", LINEAR),
    row("in_proj/bias", "message_attn.in_proj_bias"),
    *linear("out_proj", "message_attn.out_proj"),
    *affine("block/ln_1", "ln_1"),
    *affine("block/ln_2", "ln_2"),
    row("block/in_proj/kernel", "attn.in_proj_weight", LINEAR),
    row("block/in_proj/bias", "attn.in_proj_bias"),
    *linear("block/out_proj", "attn.out_proj"),
    *linear("block/c_fc", "mlp.c_fc"),
    *linear("block/c_proj", "mlp.c_proj"),
)
VIDEO = (
    *prefixed(OPENAI_TOWER, "visual/", TOWER),
    row("camera_embedding", "cv_embed"),
    *prefixed(PROMPT, "prompt/", "SSP."),
    *prefixed(DIFFUSION, "diffusion/", "TMD.resblocks.0."),
    *(each for ours, theirs in _NECKS.items() for each in batch_norm(f"necks/{ours}", theirs)),
    *(
        row(f"classifiers/{ours}/kernel", f"{theirs}.weight", LINEAR)
        for ours, theirs in _CLASSIFIERS.items()
    ),
)
"""What the released module calls the parameters and statistics of a `VideoModel`."""

DEAD = {
    "batch counters": UNUSED["batch counters"],
    "shifts of the necks": r"bottleneck(_proj(_temp2?)?)?\.bias",
    "parameters of the prompts that nothing reads": r"SSP\.(alpha|norm\.(weight|bias))",
    "a classifier that nothing reads": r"classifier_proj_temp2\.weight",
}
"""Tensors of released checkpoints that no computation reads, by what they are."""


def load_video_tensors(
    model: VideoModel, tensors: Mapping[str, np.ndarray]
) -> dict[str, list[str]]:
    """Fills a video model from the names of published checkpoints; see `VIDEO`.

    The shifts of the necks must be 0, as they are never trained.

    Args:
      model: changed in place.
      tensors: by name, in torch's axis order.

    Returns:
      What was passed over: what it is -> names.

    Raises:
      ValueError: as `load_clip`.
    """
    shifts = [name for name in tensors if re.fullmatch(DEAD["shifts of the necks"], name)]
    for name in shifts:
        if np.any(tensors[name] != 0):
            raise ValueError(
                f"{where(tensors, name)} is not 0; the shifts of the necks are fixed at 0 here"
            )
    return fill(model, tensors, table=VIDEO, unused=DEAD)


def video_tensors(model: VideoModel) -> dict[str, np.ndarray]:
    """The parameters and statistics of a video model, named and ordered as published."""
    return export(model, VIDEO)
