"""CLIP models from and to directories of safetensors files."""

import json
import math
import pathlib
from collections.abc import Callable, Mapping

import numpy as np
from flax import nnx

from ccafl_jax.models.clip import config_files
from ccafl_jax.models.clip.config import CLIPConfig, VisionConfig, ViTConfig
from ccafl_jax.models.clip.model import CLIP
from ccafl_jax.models.clip.naming import NAMINGS, OPENAI, TRANSFORMERS
from ccafl_jax.models.hub import local_directory
from ccafl_jax.models.layers import Compute, resize_positions
from ccafl_jax.models.named_tensors import export, fill
from ccafl_jax.models.tensor_files import TensorFiles, write_tensors

POSITIONS = ("visual/attnpool/positional_embedding", "visual/positional_embedding")

UNUSED = {
    # Counters that torch keeps beside running statistics.
    "batch counters": r".*\.num_batches_tracked",
    "position numbers": r"(text|vision)_model\.embeddings\.position_ids",
    "sizes": r"(input_resolution|context_length|vocab_size)",
}
"""Tensors of CLIP files that no computation here reads, by what they are."""


def load_clip(
    name: str | pathlib.Path,
    *,
    image_size: tuple[int, int] | None = None,
    last_stride: int | None = None,
    patch_stride: int | None = None,
    activation: str | None = None,
    compute: Compute | None = None,
) -> CLIP:
    """Loads a CLIP model.

    Args:
      name: a local directory with open_clip_config.json or config.json and *.safetensors (one
        file, or shards with an index) in the naming of OpenAI and open_clip or of transformers'
        `CLIPModel`; or a Hub id, which is fetched.
      image_size: height and width of the images; None keeps those of the file. The positions are
        resized to the grid that follows.
      last_stride: stride of a ResNet's fourth stage: 1 for re-identification; None keeps the
        file's.
      patch_stride: stride of a ViT's patches; None keeps the file's.
      activation: "quick_gelu" or "gelu" where the configuration does not state it.
      compute: arithmetic. Half-precision tensors are raised to its parameter dtype.

    Raises:
      FileNotFoundError: on a missing directory or file, naming what to place where.
      ValueError: on a damaged file, or if tensors and parameters do not match one to one.
    """
    directory = local_directory(name)
    stored = config_files.read_config(directory, activation=activation)
    config = stored.for_images(image_size, last_stride=last_stride, patch_stride=patch_stride)
    with TensorFiles(directory) as tensors:
        return clip_from_tensors(config, tensors, stored=stored, compute=compute)


def clip_from_tensors(
    config: CLIPConfig,
    tensors: Mapping[str, np.ndarray],
    *,
    stored: CLIPConfig | None = None,
    compute: Compute | None = None,
) -> CLIP:
    """Builds a CLIP model from named tensors.

    Args:
      config: sizes of the model to build.
      tensors: by name, in the naming and axis order of OpenAI or of transformers.
      stored: sizes that the tensors were made for; None: those of `config`.
      compute: arithmetic.

    Raises:
      ValueError: as `load_clip`.
    """
    model = nnx.eval_shape(lambda: CLIP(config, compute=compute, rngs=nnx.Rngs(0)))
    in_transformers = any(name.startswith("vision_model.") for name in tensors)
    if in_transformers and not isinstance(config.vision, ViTConfig):
        raise ValueError(
            "the weights are those of a CLIPModel, which has a ViT, and the configuration states a "
            "ResNet; check that configuration and weights belong together"
        )
    fill(
        model,
        tensors,
        table=TRANSFORMERS if in_transformers else OPENAI,
        unused=UNUSED,
        fits=position_fits((stored or config).vision, config.vision),
    )
    return model


def save_clip(
    model: CLIP,
    directory: str | pathlib.Path,
    *,
    naming: str = "openai",
    half: bool = False,
    preprocess: Mapping | None = None,
) -> pathlib.Path:
    """Writes a configuration and model.safetensors.

    Args:
      model: to be written.
      directory: made if absent.
      naming: "openai" (with open_clip_config.json) or "transformers" (with config.json).
      half: store parameters as float16; running statistics stay float32.
      preprocess: what to note about the images, e.g. `{"mean": [...], "std": [...]}`.

    Returns:
      The path of the weights.
    """
    directory = pathlib.Path(directory)
    if naming == "transformers":
        file, config = "config.json", config_files.config_to_transformers(model.config)
    else:
        file = "open_clip_config.json"
        config = {"model_cfg": config_files.config_to_json(model.config)}
        if preprocess:
            config["preprocess_cfg"] = dict(preprocess)
    tensors = export_tensors(model, naming=naming)
    if half:
        tensors = {
            name: value if ".running_" in name else value.astype(np.float16)
            for name, value in tensors.items()
        }
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "model.safetensors"
    write_tensors(path, tensors)
    (directory / file).write_text(json.dumps(config, indent=2) + "\n")
    return path


def export_tensors(model: CLIP, *, naming: str = "openai") -> dict[str, np.ndarray]:
    """The parameters and statistics of a model, named and ordered as in a file."""
    if naming not in NAMINGS:
        raise ValueError(f"naming is {naming!r}; choose one of {sorted(NAMINGS)}")
    if naming == "transformers" and not isinstance(model.config.vision, ViTConfig):
        raise ValueError(config_files.NO_RESNET)
    return export(model, NAMINGS[naming])


def position_fits(stored: VisionConfig, vision: VisionConfig) -> dict[str, Callable]:
    """What turns tables of image positions made for one grid into those for another.

    Args:
      stored: sizes that the tables were made for.
      vision: sizes asked for.

    Returns:
      Path of a table -> function, for :func:`ccafl_jax.models.named_tensors.fill`.
    """

    def fit(table: np.ndarray, where: str) -> np.ndarray:
        if table.ndim != 2 or len(table) < 2:
            raise ValueError(
                f"{where} has shape {list(table.shape)}, expected [1 + positions, channels]; check "
                "that configuration and weights belong together"
            )
        old_grid = _stored_grid(table.shape[0] - 1, stored, where)
        return np.asarray(resize_positions(table, old_grid=old_grid, new_grid=vision.grid))

    return dict.fromkeys(POSITIONS, fit)


def _stored_grid(rows: int, stored: VisionConfig, where: str) -> tuple[int, int]:
    """Height and width of a grid of positions: that of the configuration, or of its aspect."""
    if rows == stored.grid[0] * stored.grid[1]:
        return stored.grid
    tall, wide = stored.image_size
    height = round(math.sqrt(rows * tall / wide))
    width = rows // max(height, 1)
    if height * width != rows or height * wide != width * tall:
        raise ValueError(
            f"{where} has {rows} grid rows, which is no grid of the shape of {tall}x{wide} "
            "images; check image_size in the configuration"
        )
    return height, width
