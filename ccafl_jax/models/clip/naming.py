"""What CLIP's and CLIP-ReID's parameters are called in published files."""

from ccafl_jax.models.named_tensors import (
    CONV,
    LINEAR,
    SAME,
    SCALAR,
    THREE_BIASES,
    THREE_LINEAR,
    Layout,
    Row,
    Table,
    rows_at,
)


def _row(path: str, name: str | tuple[str, ...], layout: Layout = SAME) -> Row:
    return Row(path, (name,) if isinstance(name, str) else name, layout)


def _prefixed(table: Table, path: str, name: str) -> Table:
    return tuple(
        Row(path + row.path, tuple(name + part for part in row.names), row.layout) for row in table
    )


def _affine(path: str, name: str) -> Table:
    """Layer norms and the like: scale and shift."""
    return _row(rf"{path}/scale", rf"{name}.weight"), _row(rf"{path}/bias", rf"{name}.bias")


def _batch_norm(path: str, name: str) -> Table:
    return (
        *_affine(path, name),
        _row(rf"{path}/mean", rf"{name}.running_mean"),
        _row(rf"{path}/var", rf"{name}.running_var"),
    )


def _linear(path: str, name: str) -> Table:
    return (
        _row(rf"{path}/kernel", rf"{name}.weight", LINEAR),
        _row(rf"{path}/bias", rf"{name}.bias"),
    )


_OPENAI_BLOCKS = _prefixed(
    (
        *_affine(r"(ln_\d)", r"\2"),
        _row(r"in_proj/kernel", r"attn.in_proj_weight", LINEAR),
        _row(r"in_proj/bias", r"attn.in_proj_bias"),
        *_linear(r"out_proj", r"attn.out_proj"),
        *_linear(r"(c_\w+)", r"mlp.\2"),
    ),
    r"blocks/(\d+)/",
    r"transformer.resblocks.\1.",
)
OPENAI_TOWER = (
    # ResNets
    _row(r"(conv\d)/kernel", r"\1.weight", CONV),
    *_batch_norm(r"(bn\d)", r"\1"),
    _row(r"(layer\d)/(\d+)/(conv\d)/kernel", r"\1.\2.\3.weight", CONV),
    *_batch_norm(r"(layer\d)/(\d+)/(bn\d)", r"\1.\2.\3"),
    _row(r"(layer\d)/(\d+)/downsample_conv/kernel", r"\1.\2.downsample.0.weight", CONV),
    *_batch_norm(r"(layer\d)/(\d+)/downsample_bn", r"\1.\2.downsample.1"),
    _row(r"attnpool/positional_embedding", r"attnpool.positional_embedding"),
    *_linear(r"attnpool/([qkvc]_proj)", r"attnpool.\1"),
    # ViTs
    _row(r"patch_kernel", r"conv1.weight", CONV),
    _row(r"(class_embedding|positional_embedding|proj)", r"\1"),
    *_affine(r"(ln_pre|ln_post)", r"\1"),
    *_OPENAI_BLOCKS,
)
_OPENAI_TEXT = (
    _row(r"token_embedding", r"token_embedding.weight"),
    _row(r"(positional_embedding|text_projection)", r"\1"),
    *_affine(r"ln_final", r"ln_final"),
    *_OPENAI_BLOCKS,
)
OPENAI = (
    *_prefixed(OPENAI_TOWER, "visual/", "visual."),
    *_prefixed(_OPENAI_TEXT, "text/", ""),
    _row(r"logit_scale", r"logit_scale"),
)
"""OpenAI's and open_clip's."""

_TRANSFORMERS_BLOCKS = _prefixed(
    (
        *_affine(r"ln_(\d)", r"layer_norm\2"),
        _row(
            r"in_proj/kernel",
            tuple(f"self_attn.{part}_proj.weight" for part in "qkv"),
            THREE_LINEAR,
        ),
        _row(r"in_proj/bias", tuple(f"self_attn.{part}_proj.bias" for part in "qkv"), THREE_BIASES),
        *_linear(r"out_proj", r"self_attn.out_proj"),
        *_linear(r"c_fc", r"mlp.fc1"),
        *_linear(r"c_proj", r"mlp.fc2"),
    ),
    r"blocks/(\d+)/",
    r"encoder.layers.\1.",
)
TRANSFORMERS = (
    *_prefixed(
        (
            _row(r"patch_kernel", r"embeddings.patch_embedding.weight", CONV),
            _row(r"class_embedding", r"embeddings.class_embedding"),
            _row(r"positional_embedding", r"embeddings.position_embedding.weight"),
            *_affine(r"ln_pre", r"pre_layrnorm"),  # spelt so
            *_affine(r"ln_post", r"post_layernorm"),
            *_TRANSFORMERS_BLOCKS,
        ),
        "visual/",
        "vision_model.",
    ),
    *_prefixed(
        (
            _row(r"token_embedding", r"embeddings.token_embedding.weight"),
            _row(r"positional_embedding", r"embeddings.position_embedding.weight"),
            *_affine(r"ln_final", r"final_layer_norm"),
            *_TRANSFORMERS_BLOCKS,
        ),
        "text/",
        "text_model.",
    ),
    _row(r"visual/proj", r"visual_projection.weight", LINEAR),
    _row(r"text/text_projection", r"text_projection.weight", LINEAR),
    _row(r"logit_scale", r"logit_scale"),
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
            _row(f"neck/{ours}", tuple(f"{half}.{theirs}" for half in halves), rows_at(features))
            for theirs, ours in parts
        ]
    else:
        neck = [_row(f"neck/{ours}", f"bottleneck.{theirs}") for theirs, ours in parts]
    return (
        *_prefixed(OPENAI_TOWER, "visual/", tower),
        _row(r"gem/p", r"gap.p", SCALAR),
        _row(r"camera_embedding", r"cv_embed"),
        *neck,
    )
