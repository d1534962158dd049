"""Weights from and to safetensors files in the naming of OpenAI and open_clip.

One table says what a parameter of ours is called in a file and how its axes are ordered there.
Nothing is matched loosely: every tensor of a file and every parameter or statistic of a model is
accounted for, or loading fails with both lists. Other namings join as further tables.
"""

import json
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx

from ccafl_jax.models.clip.config import CLIPConfig, read_config
from ccafl_jax.models.clip.model import CLIP
from ccafl_jax.models.layers import Compute, resize_positions

POSITIONS = "visual.attnpool.positional_embedding"


def load_clip(
    directory: str | pathlib.Path,
    *,
    image_size: tuple[int, int] | None = None,
    last_stride: int | None = None,
    activation: str | None = None,
    compute: Compute | None = None,
) -> CLIP:
    """Loads a CLIP model from a local directory.

    Args:
      directory: with open_clip_config.json or config.json, and *.safetensors in open_clip naming.
      image_size: height and width of the images; None keeps those of the file. The positions of
        the attention pool are resized to the grid that follows.
      last_stride: stride of the fourth stage: 1 for re-identification; None keeps the file's.
      activation: "quick_gelu" or "gelu" where the configuration does not state it.
      compute: arithmetic. Half-precision tensors are raised to its parameter dtype.

    Raises:
      FileNotFoundError: on a missing directory or file, naming what to place where.
      ValueError: if tensors and parameters do not match one to one, or a shape differs.
    """
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(
            f"no directory {directory}; place there open_clip_config.json, the *.safetensors "
            "weights and the tokenizer files of a CLIP model"
        )
    config = read_config(directory, activation=activation)
    tensors = read_tensors(directory)
    stored_size = config.vision.image_size
    config = config.for_images(
        image_size or stored_size,
        last_stride=config.vision.last_stride if last_stride is None else last_stride,
    )
    return clip_from_tensors(config, tensors, stored_size=stored_size, compute=compute)


def clip_from_tensors(
    config: CLIPConfig,
    tensors: Mapping[str, np.ndarray],
    *,
    stored_size: tuple[int, int] | None = None,
    compute: Compute | None = None,
) -> CLIP:
    """Builds a CLIP model from named tensors.

    Args:
      config: sizes of the model to build.
      tensors: by name, in the naming and axis order of OpenAI.
      stored_size: image height and width that the tensors were made for; None: those of `config`.
      compute: arithmetic.

    Raises:
      ValueError: as `load_clip`.
    """
    model = nnx.eval_shape(lambda: CLIP(config, compute=compute, rngs=nnx.Rngs(0)))
    tensors = dict(tensors)
    if POSITIONS in tensors:
        tensors[POSITIONS] = _fit_positions(
            tensors[POSITIONS], stored_size or config.vision.image_size, config.vision.grid
        )
    _fill(model, tensors, table=OPENAI)
    return model


def load_reid_tensors(model: nnx.Module, tensors: Mapping[str, np.ndarray]) -> None:
    """Fills a re-identification model from the names that published checkpoints use.

    Those are `image_encoder.*`, `gap.p` and `bottleneck.*`; the unused `bottleneck_proj.*` is
    passed over, and `bottleneck.bias` must be 0, as it is never trained.

    Args:
      model: a `models.reid.CLIPReID`, changed in place.
      tensors: by name, in torch's axis order.

    Raises:
      ValueError: as `load_clip`.
    """
    tensors = {k: v for k, v in tensors.items() if not k.startswith("bottleneck_proj.")}
    shift = np.asarray(tensors.pop("bottleneck.bias", 0.0))
    if np.any(shift != 0):
        raise ValueError("bottleneck.bias is not 0; the shift of the BN neck is fixed at 0 here")
    _fill(model, tensors, table=REID)


def save_clip(
    model: CLIP,
    directory: str | pathlib.Path,
    *,
    half: bool = False,
    preprocess: Mapping | None = None,
) -> pathlib.Path:
    """Writes open_clip_config.json and model.safetensors in open_clip naming.

    Args:
      model: to be written.
      directory: made if absent.
      half: store parameters as float16; running statistics stay float32.
      preprocess: what to note about the images, e.g. `{"mean": [...], "std": [...]}`.

    Returns:
      The path of the weights.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = export_tensors(model)
    if half:
        tensors = {
            name: value if ".running_" in name else value.astype(np.float16)
            for name, value in tensors.items()
        }
    config = {"model_cfg": _config_json(model.config)}
    if preprocess:
        config["preprocess_cfg"] = dict(preprocess)
    (directory / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    path = directory / "model.safetensors"
    _safetensors().save_file(
        {k: np.array(v, order="C") for k, v in sorted(tensors.items())}, str(path)
    )
    path.chmod(0o644)  # safetensors makes files that only their owner may read
    return path


def export_tensors(model: CLIP) -> dict[str, np.ndarray]:
    """The parameters and statistics of a model, named and ordered as in a file."""
    result = {}
    for path, variable in _variables(model).items():
        name, (_, to_file) = _name(path, OPENAI)
        result[name] = to_file(np.asarray(variable[...]))
    return result


def read_tensors(directory: str | pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of the weights in a directory, half precision raised to float32.

    Raises:
      FileNotFoundError: if there is no *.safetensors file.
      ValueError: if it is unclear which files to read.
    """
    tensors = {}
    for path in _weight_files(pathlib.Path(directory)):
        tensors.update(_safetensors().load_file(str(path)))
    return {name: _raised(value) for name, value in tensors.items()}


Transform = tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]
SAME: Transform = (lambda x: x, lambda x: x)
LINEAR: Transform = (np.transpose, np.transpose)  # file: [out, in]
CONV: Transform = (  # file: [out, in, h, w]
    lambda x: np.transpose(x, (2, 3, 1, 0)),
    lambda x: np.transpose(x, (3, 2, 0, 1)),
)
SCALAR: Transform = (lambda x: np.reshape(x, ()), lambda x: np.reshape(x, (1,)))

# Our path, its name in a file, and the transforms (from the file, to the file).
_NORM = ((r"scale", r"weight"), (r"bias", r"bias"), (r"mean", r"running_mean"))
_NORM = (*_NORM, (r"var", r"running_var"))
_TOWER = (
    (r"(conv\d)/kernel", r"\1.weight", CONV),
    *((rf"(bn\d)/{ours}", rf"\1.{theirs}", SAME) for ours, theirs in _NORM),
    (r"(layer\d)/(\d+)/(conv\d)/kernel", r"\1.\2.\3.weight", CONV),
    *((rf"(layer\d)/(\d+)/(bn\d)/{ours}", rf"\1.\2.\3.{theirs}", SAME) for ours, theirs in _NORM),
    (r"(layer\d)/(\d+)/downsample_conv/kernel", r"\1.\2.downsample.0.weight", CONV),
    *(
        (rf"(layer\d)/(\d+)/downsample_bn/{ours}", rf"\1.\2.downsample.1.{theirs}", SAME)
        for ours, theirs in _NORM
    ),
    (r"attnpool/positional_embedding", r"attnpool.positional_embedding", SAME),
    (r"attnpool/([qkvc]_proj)/kernel", r"attnpool.\1.weight", LINEAR),
    (r"attnpool/([qkvc]_proj)/bias", r"attnpool.\1.bias", SAME),
)
_TEXT = (
    (r"token_embedding", r"token_embedding.weight", SAME),
    (r"positional_embedding", r"positional_embedding", SAME),
    (r"text_projection", r"text_projection", SAME),
    (r"ln_final/scale", r"ln_final.weight", SAME),
    (r"ln_final/bias", r"ln_final.bias", SAME),
    (r"blocks/(\d+)/(ln_\d)/scale", r"transformer.resblocks.\1.\2.weight", SAME),
    (r"blocks/(\d+)/(ln_\d)/bias", r"transformer.resblocks.\1.\2.bias", SAME),
    (r"blocks/(\d+)/in_proj/kernel", r"transformer.resblocks.\1.attn.in_proj_weight", LINEAR),
    (r"blocks/(\d+)/in_proj/bias", r"transformer.resblocks.\1.attn.in_proj_bias", SAME),
    (r"blocks/(\d+)/out_proj/kernel", r"transformer.resblocks.\1.attn.out_proj.weight", LINEAR),
    (r"blocks/(\d+)/out_proj/bias", r"transformer.resblocks.\1.attn.out_proj.bias", SAME),
    (r"blocks/(\d+)/(c_\w+)/kernel", r"transformer.resblocks.\1.mlp.\2.weight", LINEAR),
    (r"blocks/(\d+)/(c_\w+)/bias", r"transformer.resblocks.\1.mlp.\2.bias", SAME),
)
OPENAI = (
    *((f"visual/{ours}", f"visual.{theirs}", t) for ours, theirs, t in _TOWER),
    *((f"text/{ours}", theirs, t) for ours, theirs, t in _TEXT),
    (r"logit_scale", r"logit_scale", SAME),
)
REID = (
    *((f"visual/{ours}", f"image_encoder.{theirs}", t) for ours, theirs, t in _TOWER),
    (r"gem/p", r"gap.p", SCALAR),
    (r"neck/scale", r"bottleneck.weight", SAME),
    (r"neck/mean", r"bottleneck.running_mean", SAME),
    (r"neck/var", r"bottleneck.running_var", SAME),
)
# Counters that torch keeps beside running statistics; no computation here reads them.
COUNTERS = ".num_batches_tracked"


def _fill(model: nnx.Module, tensors: Mapping[str, np.ndarray], *, table: Sequence) -> None:
    variables = _variables(model)
    names = {path: _name(path, table) for path in variables}
    expected = {name for name, _ in names.values()}
    found = {name for name in tensors if not name.endswith(COUNTERS)}
    if expected != found:
        missing, extra = sorted(expected - found), sorted(found - expected)
        raise ValueError(
            f"weights do not match the model: {len(missing)} missing from the file: {missing}; "
            f"{len(extra)} unknown to the model: {extra}; check that configuration and weights "
            "belong together"
        )
    filled = []
    for path, variable in variables.items():
        name, (from_file, to_file) = names[path]
        value = np.asarray(tensors[name])
        shape = to_file(np.broadcast_to(np.int8(0), variable.shape)).shape
        if value.shape != shape:
            raise ValueError(
                f"tensor {name} has shape {list(value.shape)}, the model expects {list(shape)}; "
                "check that configuration and weights belong together"
            )
        value = jnp.asarray(from_file(_raised(value)), variable.dtype)
        filled.append((path, variable.replace(value)))
    nnx.update(model, nnx.from_flat_state(filled))


def _variables(model: nnx.Module) -> dict[tuple, nnx.Variable]:
    kinds = (nnx.Param, nnx.BatchStat)
    return dict(nnx.to_flat_state(nnx.state(model, nnx.filterlib.Any(*kinds))))


def _name(path: tuple, table: Sequence) -> tuple[str, Transform]:
    """Name in the file and transforms of the parameter at `path`."""
    joined = "/".join(str(part) for part in path)
    for ours, theirs, transform in table:
        match = re.fullmatch(ours, joined)
        if match:
            return match.expand(theirs), transform
    raise ValueError(f"no rule names the parameter {joined}; add one to the table of this module")


def _fit_positions(
    table: np.ndarray, stored_size: tuple[int, int], grid: tuple[int, int]
) -> np.ndarray:
    """Resizes the pool's positions from the grid they were made for, if it is another one."""
    rows = table.shape[0] - 1
    if rows == grid[0] * grid[1] and stored_size[0] * grid[1] == stored_size[1] * grid[0]:
        return table
    height = round(math.sqrt(rows * stored_size[0] / stored_size[1]))
    width = rows // max(height, 1)
    if height * width != rows or height * stored_size[1] != width * stored_size[0]:
        raise ValueError(
            f"tensor {POSITIONS} has {rows} grid rows, which is no grid of the shape of "
            f"{stored_size[0]}x{stored_size[1]} images; check image_size in the configuration"
        )
    return np.asarray(resize_positions(_raised(table), old_grid=(height, width), new_grid=grid))


def _raised(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float32) if value.dtype.itemsize == 2 else value


def _safetensors():
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("weights need safetensors: pip install safetensors") from error
    return safetensors.numpy


def _weight_files(directory: pathlib.Path) -> list[pathlib.Path]:
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"{directory} has no *.safetensors file; place the weights of the model there"
        )
    for name in ("open_clip_model.safetensors", "model.safetensors"):
        if directory / name in files:
            return [directory / name]
    indexes = sorted(directory.glob("*.safetensors.index.json"))
    if len(indexes) == 1:
        names = set(json.loads(indexes[0].read_text())["weight_map"].values())
        absent = sorted(name for name in names if not (directory / name).is_file())
        if absent:
            raise FileNotFoundError(f"{indexes[0]} lists {absent}; place them in {directory}")
        return [directory / name for name in sorted(names)]
    if len(files) > 1:
        raise ValueError(
            f"{directory} has several weight files {[f.name for f in files]}; keep one, or name "
            "it open_clip_model.safetensors"
        )
    return files


def _config_json(config: CLIPConfig) -> dict:
    return {
        "embed_dim": config.embed_dim,
        "quick_gelu": config.activation == "quick_gelu",
        "vision_cfg": {
            "image_size": list(config.vision.image_size),
            "layers": list(config.vision.layers),
            "width": config.vision.width,
            "patch_size": None,
            "last_stride": config.vision.last_stride,
        },
        "text_cfg": {
            "context_length": config.text.context,
            "vocab_size": config.text.vocab,
            "width": config.text.width,
            "heads": config.text.heads,
            "layers": config.text.layers,
        },
    }
