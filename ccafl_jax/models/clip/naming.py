"""What CLIP's and CLIP-ReID's parameters are called in published files."""

from ccafl_jax.models.named_tensors import (
    CONV,
    LINEAR,
    SCALAR,
    THREE_BIASES,
    THREE_LINEAR,
    Table,
    affine,
    batch_norm,
    linear,
    prefixed,
    row,
    rows_at,
)

_OPENAI_BLOCKS = prefixed(
    (
        *affine(r"(ln_\d)", r"\2"),
        row(r"in_proj/kernel", r"attn.in_proj_weight", LINEAR),
        row(r"in_proj/bias", r"attn.in_proj_bias"),
        *linear(r"out_proj", r"attn.out_proj"),
        *linear(r"(c_\w+)", r"mlp.\2"),
    ),
    r"blocks/(\d+)/",
    r"transformer.resblocks.\1.",
)
OPENAI_STEM = (
    row(r"(conv\d)/kernel", r"\1.weight", CONV),
    *batch_norm(r"(bn\d)", r"\1"),
    row(r"kernel", r"conv1.weight", CONV),  # of a ViT
)
OPENAI_TOWER = (
    *prefixed(OPENAI_STEM, "stem/", ""),
    # ResNets
    row(r"(layer\d)/(\d+)/(conv\d)/kernel", r"\1.\2.\3.weight", CONV),
    *batch_norm(r"(layer\d)/(\d+)/(bn\d)", r"\1.\2.\3"),
    row(r"(layer\d)/(\d+)/downsample_conv/kernel", r"\1.\2.downsample.0.weight", CONV),
    *batch_norm(r"(layer\d)/(\d+)/downsample_bn", r"\1.\2.downsample.1"),
    row(r"attnpool/positional_embedding", r"attnpool.positional_embedding"),
    *linear(r"attnpool/([qkvc]_proj)", r"attnpool.\1"),
    # ViTs
    row(r"(class_embedding|positional_embedding|proj)", r"\1"),
    *affine(r"(ln_pre|ln_post)", r"\1"),
    *_OPENAI_BLOCKS,
)
_OPENAI_TEXT = (
    row(r"token_embedding", r"token_embedding.weight"),
    row(r"(positional_embedding|text_projection)", r"\1"),
    *affine(r"ln_final", r"ln_final"),
    *_OPENAI_BLOCKS,
)
OPENAI = (
    *prefixed(OPENAI_TOWER, "visual/", "visual."),
    *prefixed(_OPENAI_TEXT, "text/", ""),
    row(r"logit_scale", r"logit_scale"),
)
"""OpenAI's and open_clip's."""

_TRANSFORMERS_BLOCKS = prefixed(
    (
        *affine(r"ln_(\d)", r"layer_norm\2"),
        row(
            r"in_proj/kernel",
            tuple(f"self_attn.{part}_proj.weight" for part in "qkv"),
            THREE_LINEAR,
        ),
        row(r"in_proj/bias", tuple(f"self_attn.{part}_proj.bias" for part in "qkv"), THREE_BIASES),
        *linear(r"out_proj", r"self_attn.out_proj"),
        *linear(r"c_fc", r"mlp.fc1"),
        *linear(r"c_proj", r"mlp.fc2"),
    ),
    r"blocks/(\d+)/",
    r"encoder.layers.\1.",
)
TRANSFORMERS = (
    *prefixed(
        (
            row(r"stem/kernel", r"embeddings.patch_embedding.weight", CONV),
            row(r"class_embedding", r"embeddings.class_embedding"),
            row(r"positional_embedding", r"embeddings.position_embedding.weight"),
            *affine(r"ln_pre", r"pre_layrnorm"),  # spelt so
            *affine(r"ln_post", r"post_layernorm"),
            *_TRANSFORMERS_BLOCKS,
        ),
        "visual/",
        "vision_model.",
    ),
    *prefixed(
        (
            row(r"token_embedding", r"embeddings.token_embedding.weight"),
            row(r"positional_embedding", r"embeddings.position_embedding.weight"),
            *affine(r"ln_final", r"final_layer_norm"),
            *_TRANSFORMERS_BLOCKS,
        ),
        "text/",
        "text_model.",
    ),
    row(r"visual/proj", r"visual_projection.weight", LINEAR),
    row(r"text/text_projection", r"text_projection.weight", LINEAR),
    row(r"logit_scale", r"logit_scale"),
)
"""The `CLIPModel` of transformers."""

NAMINGS = {"openai": OPENAI, "transformers": TRANSFORMERS}


def reid_table(*, tower: str, features: int, joint: bool) -> Table:
    """Names of a re-identification model: those of CLIP-ReID and of the code published for CCAFL.

    Args:
      tower: prefix of the image tower, "image_encoder." in published checkpoints.
      features: size of the pooled feature of the tower.
      joint: whether the neck covers the feature of the joint space too; published checkpoints
        then hold two necks.
    """
    parts = (("weight", "scale"), ("running_mean", "mean"), ("running_var", "var"))
    if joint:
        halves = ("bottleneck", "bottleneck_proj")
        neck = [
            row(f"neck/{ours}", tuple(f"{half}.{theirs}" for half in halves), rows_at(features))
            for theirs, ours in parts
        ]
    else:
        neck = [row(f"neck/{ours}", f"bottleneck.{theirs}") for theirs, ours in parts]
    return (
        *prefixed(OPENAI_TOWER, "visual/", tower),
        row(r"gem/p", r"gap.p", SCALAR),
        row(r"camera_embedding", r"cv_embed"),
        *neck,
    )
