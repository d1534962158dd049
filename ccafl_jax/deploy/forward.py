"""The function that is embedded, exported and compared: uint8 images in, retrieval features out."""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from ccafl_jax.data.augment import normalize
from ccafl_jax.deploy.bundle import ModelBundle
from ccafl_jax.models.layers import Compute
from ccafl_jax.models.named_tensors import variables_by_path
from ccafl_jax.models.reid import ReIDModel, build_reid
from ccafl_jax.models.video import VideoConfig, VideoModel, build_video
from ccafl_jax.training.description import ModelConfig, Preprocess
from ccafl_jax.training.state import FlatDict, merge_model

DTYPES = ("float32", "bfloat16")

Embed = Callable[..., jax.Array]


def embed_function(
    model: ModelConfig, preprocess: Preprocess, *, compute_dtype: str = "float32"
) -> Embed:
    """Builds `embed(arrays, images, cameras=None) -> float32[b, features]`, L2-normalised.

    Args:
      model: sizes.
      preprocess: mean and standard deviation of the colours.
      compute_dtype: of the activations: "float32" (products at HIGHEST) or "bfloat16".

    Returns:
      A pure function of parameters and running statistics by path (see `all_arrays`),
      uint8[b, height, width, 3] and, with a camera embedding only, int32[b].

    Raises:
      ValueError: another dtype, or a model of clips.
    """
    if isinstance(model, VideoConfig):
        raise ValueError(
            "this is a model of clips, and single images are asked for: score it on tracklets with "
            "scripts/evaluate.py"
        )
    if compute_dtype not in DTYPES:
        raise ValueError(f"compute dtype is {compute_dtype!r}; choose one of {DTYPES}")
    abstract = abstract_model(model, compute=Compute(dtype=jnp.dtype(compute_dtype)))
    graphdef = nnx.split(abstract, nnx.Param, nnx.BatchStat)[0]
    statistics = shapes_of(abstract, nnx.BatchStat).keys()
    mean, std = tuple(preprocess.mean), tuple(preprocess.std)

    def embed(arrays: FlatDict, images: jax.Array, cameras: jax.Array | None = None) -> jax.Array:
        params = {path: x for path, x in arrays.items() if path not in statistics}
        batch_stats = {path: x for path, x in arrays.items() if path in statistics}
        pixels = normalize(images, mean, std, dtype=jnp.float32)
        return merge_model(graphdef, params, batch_stats).embed(pixels, cameras)

    return embed


@functools.lru_cache(maxsize=8)
def compiled_embed(model: ModelConfig, preprocess: Preprocess, compute_dtype: str) -> Embed:
    """`embed_function` under jit; models of the same sizes share its compilations."""
    return jax.jit(embed_function(model, preprocess, compute_dtype=compute_dtype))


def all_arrays(bundle: ModelBundle) -> dict[str, jax.Array]:
    """Parameters and running statistics in one dictionary; their paths differ."""
    return {**bundle.params, **bundle.batch_stats}


def abstract_model(model: ModelConfig, *, compute: Compute | None = None) -> ReIDModel | VideoModel:
    """The model with shapes in place of arrays."""
    build = build_video if isinstance(model, VideoConfig) else build_reid
    return nnx.eval_shape(lambda: build(model, compute=compute))


def shapes_of(model: nnx.Module, kind: type) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every variable of a kind, by path."""
    variables = variables_by_path(model, kind)
    return {path: variable.get_value() for path, variable in variables.items()}


def check_arrays(found: Mapping[str, jax.Array], model: nnx.Module, kind: type, where: str) -> None:
    """Compares arrays with what the model needs.

    Raises:
      ValueError: a missing or unknown array, or another shape or dtype.
    """
    expected = shapes_of(model, kind)
    if found.keys() != expected.keys():
        missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected)
        raise ValueError(
            f"{where} does not hold the model that its manifest describes: {len(missing)} arrays "
            f"missing {missing[:3]}, {len(extra)} unknown {extra[:3]}; export again"
        )
    for path, shape in expected.items():
        value = found[path]
        if value.shape != shape.shape or value.dtype != shape.dtype:
            raise ValueError(
                f"{where}: {path} is {value.dtype}{list(value.shape)}, the model of the manifest "
                f"needs {shape.dtype}{list(shape.shape)}; export again"
            )
