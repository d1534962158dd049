"""Galleries in fewer bytes, made float32 again block by block.

| form | row of D numbers | bytes a row |
|---|---|---|
| `float32` | as it is | 4 D |
| `float16` | rounded | 2 D |
| `int8` | less the mean row, in 255 steps over the largest magnitude of the row | D + 4 |
| `int8_dim` | the same, over the largest magnitude of each dimension | D |
| `pca-N` | its projection on the N directions that hold most of all products | 4 N |
"""

import dataclasses
import re

import numpy as np

from ccafl_jax.options import require

FORMS = ("float32", "float16", "int8", "int8_dim")
"""Beside `pca-N`."""

_STEPS = 127
_PCA = re.compile(r"pca-([1-9][0-9]*)")
_SAMPLE = 200_000  # rows that directions are found from
_ROWS = 65_536  # of a block


@dataclasses.dataclass(frozen=True, eq=False)
class Compressed:
    """A gallery in one of the forms; arrays may be mapped from files.

    Attributes:
      form: see the module.
      codes: [N, D] of float32, float16 or int8, or float32[N, n] for `pca-n`.
      scale: float32[N] (`int8`) or float32[D] (`int8_dim`), what a step is worth.
      shift: float32[D], taken off the rows before they were coded; or None.
      basis: float32[D, n], orthonormal columns; or None.
    """

    form: str
    codes: np.ndarray
    scale: np.ndarray | None = None
    shift: np.ndarray | None = None
    basis: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def dim(self) -> int:
        """D, of the features that were compressed."""
        return self.codes.shape[1] if self.basis is None else len(self.basis)

    @property
    def nbytes(self) -> int:
        """Of all arrays."""
        return sum(array.nbytes for array in self.arrays().values())

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, without those that are None."""
        names = ("codes", "scale", "shift", "basis")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows as float32[stop - start, D or n]; products with `queries` are those of features."""
        codes = np.asarray(self.codes[start:stop])
        if self.form == "float32" or self.basis is not None:
            return codes
        rows = codes.astype(np.float32)
        if self.scale is not None:
            rows *= self.scale[start:stop, None] if self.form == "int8" else self.scale
            rows += self.shift
        return rows

    def queries(self, query: np.ndarray) -> np.ndarray:
        """Queries, float32[Q, D], as the rows take them."""
        return query if self.basis is None else query @ self.basis


def compress(features: np.ndarray, form: str) -> Compressed:
    """Compresses a gallery.

    Args:
      features: float32[N, D].
      form: see the module.

    Raises:
      ValueError: an unknown form, or more directions than there are dimensions.
    """
    features = np.asarray(features, np.float32)
    components = check_form(form, features.shape[1])
    if form == "float32":
        return Compressed(form, features)
    if form == "float16":
        return Compressed(form, features.astype(np.float16))
    if components:
        basis = _directions(features, components)
        return Compressed(form, _by_blocks(features, lambda x: x @ basis), basis=basis)
    shift = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    axis = 1 if form == "int8" else 0
    reach = _reach(features, shift, axis)
    scale = np.where(reach > 0, reach / _STEPS, 1.0).astype(np.float32)
    codes = np.empty(features.shape, np.int8)
    for first in range(0, len(features), _ROWS):
        part = slice(first, first + _ROWS)
        step = scale[part, None] if axis else scale
        codes[part] = np.clip(np.rint((features[part] - shift) / step), -_STEPS, _STEPS)
    return Compressed(form, codes, scale=scale, shift=shift)


def check_form(form: str, dim: int) -> int:
    """Directions of `pca-N`; 0 for the other forms.

    Raises:
      ValueError: an unknown form, or more directions than `dim`.
    """
    match = _PCA.fullmatch(form)
    require(
        form in FORMS or match is not None,
        f"form {form!r} of a gallery: must be one of {', '.join(FORMS)} or pca-N (pca-128)",
    )
    components = int(match[1]) if match else 0
    require(components <= dim, f"{form} of features of {dim} dimensions: choose pca-{dim} or less")
    return components


def _reach(features: np.ndarray, shift: np.ndarray, axis: int) -> np.ndarray:
    """Largest magnitudes along an axis once the shift is off."""
    if axis:
        return _by_blocks(features, lambda x: np.abs(x - shift).max(axis=1))
    return np.maximum(features.max(axis=0) - shift, shift - features.min(axis=0))


def _directions(features: np.ndarray, components: int) -> np.ndarray:
    """float32[D, n]: eigenvectors of the mean of x x^T, by descending eigenvalue.

    The mean is not taken off: products, unlike distances, would change by it.
    """
    rows = np.linspace(0, len(features) - 1, min(len(features), _SAMPLE)).round().astype(np.int64)
    moment = np.zeros((features.shape[1],) * 2)
    for first in range(0, len(rows), _ROWS):
        part = features[rows[first : first + _ROWS]]
        moment += part.T @ part
    vectors = np.linalg.eigh(moment)[1]
    return np.ascontiguousarray(vectors[:, ::-1][:, :components], np.float32)


def _by_blocks(features: np.ndarray, work) -> np.ndarray:
    starts = range(0, len(features), _ROWS)
    return np.concatenate([work(features[first : first + _ROWS]) for first in starts])
