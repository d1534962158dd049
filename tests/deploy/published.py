"""Checkpoints under the names that CLIP-ReID and CCAFL publish, with the vectors' weights."""

import numpy as np

from tests.golden_data import golden

VIT_OPTIONS = {"stride": 16, "heads": 4, "camera_scale": 3.0}
"""What the tensors of the small ViT do not say."""


def ccafl():
    """64x32 images. The neck of the projection was never trained."""
    data = golden("03_wrapper_s0")
    neck = {
        f"bottleneck.{name}": data[f"bottleneck_{name}"]
        for name in ("weight", "bias", "running_mean", "running_var")
    }
    return _resnet() | neck | {"gap.p": data["gap_p"]} | _proj_neck(16) | _texts()


def clipreid_resnet():
    """64x32 images."""
    tensors = ccafl() | {
        "classifier.weight": np.ones((5, 256), np.float32),
        "classifier_proj.weight": np.ones((5, 16), np.float32),
        "bottleneck_proj.num_batches_tracked": np.asarray(3),
    }
    del tensors["gap.p"]
    return tensors


def clipreid_vit():
    """64x32 images, three cameras; the positions are those of a trained model."""
    tensors = {
        name.replace("visual.", "image_encoder."): value
        for name, value in golden("04_vit_s0_weights").items()
    }
    tensors["image_encoder.positional_embedding"] = golden("04_vit_s0")["posemb_new"]
    return tensors | _texts()


def _resnet():
    return {
        name.replace("visual.", "image_encoder."): value
        for name, value in golden("03_resnet_s0_weights").items()
        if name.startswith("visual.")
    }


def _proj_neck(size):
    values = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}
    tensors = {f"bottleneck_proj.{n}": np.full(size, v, np.float32) for n, v in values.items()}
    return tensors | {
        "bottleneck.num_batches_tracked": np.asarray(3),
        "bottleneck_proj.num_batches_tracked": np.asarray(0),
    }


def _texts():
    """Parts that retrieval does not use."""
    names = (
        "prompt_learner.cls_ctx",
        "prompt_learner.token_prefix",
        "prompt_learner.token_suffix",
        "text_encoder.positional_embedding",
        "text_encoder.text_projection",
        "text_encoder.ln_final.weight",
        "text_encoder.ln_final.bias",
        "text_encoder.transformer.resblocks.0.attn.in_proj_weight",
    )
    return {name: np.ones((2, 3), np.float32) for name in names}
