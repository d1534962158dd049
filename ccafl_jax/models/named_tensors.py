"""Named tensors of files and the parameters of our models: tables that lead both ways.

A table says what each parameter is called in a file and how its axes are ordered there. A row gives
the path of a parameter as a regular expression, the name (or, where a file splits what is one here,
the names) of its tensors, and the layout that turns one form into the other.

Nothing is matched loosely: every tensor of a file and every parameter or statistic of a model is
accounted for, or loading fails naming both sides.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from ccafl_jax.models.tensor_files import TensorFiles, raised

PREFIXES = ("module.", "model.", "_orig_mod.")
"""What wrappers (data parallelism, Lightning, torch.compile) put before every name."""


class Layout(NamedTuple):
    """How tensors of a file become one array of ours (`join`), and back (`split`)."""

    join: Callable[..., np.ndarray]
    split: Callable[[np.ndarray], tuple[np.ndarray, ...]]


class Row(NamedTuple):
    """A row of a table: path (regular expression), names in a file, layout."""

    path: str
    names: tuple[str, ...]
    layout: Layout


Table = Sequence[Row]


def rows_at(start: int) -> Layout:
    """A vector that a file splits in two, the second part from `start` on."""
    return Layout(
        lambda first, second: np.concatenate([first, second]), lambda x: (x[:start], x[start:])
    )


SAME = Layout(lambda x: x, lambda x: (x,))
LINEAR = Layout(np.transpose, lambda x: (np.transpose(x),))  # file: [out, in]
CONV = Layout(  # file: [out, in, h, w]
    lambda x: np.transpose(x, (2, 3, 1, 0)), lambda x: (np.transpose(x, (3, 2, 0, 1)),)
)
SCALAR = Layout(lambda x: np.reshape(x, ()), lambda x: (np.reshape(x, (1,)),))
THREE_LINEAR = Layout(  # file: query, key and value apart, [out, in] each
    lambda *parts: np.transpose(np.concatenate(parts)),
    lambda x: tuple(np.split(np.transpose(x), 3)),
)
THREE_BIASES = Layout(lambda *parts: np.concatenate(parts), lambda x: tuple(np.split(x, 3)))


def row(path: str, name: str | tuple[str, ...], layout: Layout = SAME) -> Row:
    """A row of one name or several."""
    return Row(path, (name,) if isinstance(name, str) else name, layout)


def prefixed(table: Table, path: str, name: str) -> Table:
    """A table with something put before all paths, and before all names."""
    return tuple(
        Row(path + each.path, tuple(name + part for part in each.names), each.layout)
        for each in table
    )


def affine(path: str, name: str) -> Table:
    """Scale and shift of layer norms and the like."""
    return row(rf"{path}/scale", rf"{name}.weight"), row(rf"{path}/bias", rf"{name}.bias")


def batch_norm(path: str, name: str) -> Table:
    """Scale, shift and running statistics."""
    return (
        *affine(path, name),
        row(rf"{path}/mean", rf"{name}.running_mean"),
        row(rf"{path}/var", rf"{name}.running_var"),
    )


def linear(path: str, name: str) -> Table:
    """Kernel and bias of an affine map."""
    return (
        row(rf"{path}/kernel", rf"{name}.weight", LINEAR),
        row(rf"{path}/bias", rf"{name}.bias"),
    )


def variables_by_path(model: nnx.Module, *kinds: type[nnx.Variable]) -> dict[str, nnx.Variable]:
    """The variables of some kinds by path; by default parameters and running statistics."""
    wanted = nnx.filterlib.Any(*(kinds or (nnx.Param, nnx.BatchStat)))
    flat = nnx.to_flat_state(nnx.state(model, wanted))
    return {"/".join(map(str, path)): variable for path, variable in flat}


def names_of(path: str, table: Table) -> tuple[tuple[str, ...], Layout]:
    """Names in the file and layout of the parameter at `path` ("visual/stem/conv1/kernel").

    Raises:
      ValueError: if no row of the table fits.
    """
    for row in table:
        match = re.fullmatch(row.path, path)
        if match:
            return tuple(match.expand(name) for name in row.names), row.layout
    raise ValueError(f"no rule names the parameter {path}; add one to its table")


def split_shapes(shape: tuple[int, ...], layout: Layout) -> list[tuple[int, ...]]:
    """Shapes in the file of a parameter of `shape`."""
    return [part.shape for part in layout.split(np.broadcast_to(np.int8(0), shape))]


def fill(
    model: nnx.Module,
    tensors: Mapping[str, np.ndarray],
    *,
    table: Table,
    unused: Mapping[str, str],
    fits: Mapping[str, Callable[[np.ndarray, str], np.ndarray]] | None = None,
) -> dict[str, list[str]]:
    """Fills a model, perhaps of shapes only, in place.

    Args:
      model: of arrays or of their shapes.
      tensors: by name; a `TensorFiles` is read one tensor at a time and names its files in errors.
      table: naming of the tensors.
      unused: what may be in the file without being read: what it is -> regular expression.
      fits: path -> function of (array, its name for messages) that turns an array of another size
        into the one the model needs, such as a table of positions.

    Returns:
      What was passed over: what it is -> names.

    Raises:
      ValueError: if tensors and parameters do not match one to one, or a shape differs.
    """
    variables, fits = variables_by_path(model), fits or {}
    names = {path: names_of(path, table) for path in variables}
    expected = {name for group, _ in names.values() for name in group}
    passed = {what: [] for what in unused}
    extra = []
    for name in sorted(set(tensors) - expected):
        what = matches(name, unused)
        (passed[what] if what else extra).append(name)
    missing = sorted(expected - set(tensors))
    if missing or extra:
        raise ValueError(
            f"{_source(tensors)}weights do not match the model: {_listed(missing)} missing from "
            f"the file; {_listed(extra)} unknown to the model; {_advice(tensors)}"
        )
    filled = []
    for path, variable in variables.items():
        group, layout = names[path]
        fit = fits.get(path)
        shapes = [None] * len(group) if fit else split_shapes(variable.shape, layout)
        parts = [_read(tensors, name, shape) for name, shape in zip(group, shapes, strict=True)]
        value = layout.join(*parts)
        if fit:
            value = fit(value, where(tensors, group[0]))
            if value.shape != variable.shape:
                raise ValueError(_misshapen(tensors, group[0], value.shape, variable.shape))
        value = jnp.asarray(np.asarray(value, order="C"), variable.dtype)
        filled.append((tuple(_part(p) for p in path.split("/")), variable.replace(value)))
    nnx.update(model, nnx.from_flat_state(filled))
    return {what: found for what, found in passed.items() if found}


def export(model: nnx.Module, table: Table) -> dict[str, np.ndarray]:
    """The parameters and statistics of a model, named and ordered as in a file."""
    result = {}
    for path, variable in variables_by_path(model).items():
        names, layout = names_of(path, table)
        parts = layout.split(np.asarray(variable[...]))
        result.update(zip(names, parts, strict=True))
    return result


def matches(name: str, patterns: Mapping[str, str]) -> str | None:
    """The first entry of `patterns` (what it is -> regular expression) that covers a name."""
    return next((what for what, regex in patterns.items() if re.fullmatch(regex, name)), None)


def where(tensors: Mapping, name: str) -> str:
    """A tensor's name for messages, with its file where there is one."""
    return tensors.where(name) if isinstance(tensors, TensorFiles) else f"tensor {name}"


def _part(part: str) -> str | int:
    return int(part) if part.isdigit() else part


def _read(tensors: Mapping, name: str, shape: tuple[int, ...] | None) -> np.ndarray:
    value = np.asarray(tensors[name])
    if shape is not None and value.shape != shape:
        raise ValueError(_misshapen(tensors, name, value.shape, shape))
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"{where(tensors, name)} is of {value.dtype}, expected floating-point numbers; the "
            "file holds no weights of this model"
        )
    if value.dtype.itemsize > 4:  # beyond the range of float32 there would be infinities
        limit = np.finfo(np.float32).max
        if np.any(np.abs(value) > limit):
            raise ValueError(
                f"{where(tensors, name)} holds values beyond {limit:.1e}; fetch it again"
            )
    return raised(value)


def _misshapen(tensors: Mapping, name: str, found: Sequence[int], shape: Sequence[int]) -> str:
    turned = sorted(found) == sorted(shape)
    hint = "its axes are in another order; " if turned else ""
    return (
        f"{where(tensors, name)} has shape {list(found)}, the model expects {list(shape)}; {hint}"
        "check that configuration and weights belong together"
    )


def _listed(names: list[str], *, most: int = 6) -> str:
    shown = names if len(names) <= most else [*names[:most], "..."]
    return f"{len(names)} {shown}" if names else "0"


def _advice(tensors: Mapping) -> str:
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            return (
                f"every name starts with {prefix}, which "
                "scripts/convert_weights.py --to-safetensors FILE takes off"
            )
    return "check that configuration and weights belong together"


def _source(tensors: Mapping) -> str:
    return f"{tensors.path}: " if isinstance(tensors, TensorFiles) else ""
