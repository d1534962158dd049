"""Integers in MATLAB files: tracks, splits and lists of queries, as data sets publish them."""

import os
import pathlib

import numpy as np
import scipy.io

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_HDF5_OFFSETS = (0, 512)  # MATLAB puts a text of 512 bytes before it
_LARGEST = 2.0**53  # up to here, MATLAB's numbers tell integers apart


def read_integers(path: str | os.PathLike, variable: str) -> np.ndarray:
    """An array of integers from a .mat file, up to MATLAB 7 or of MATLAB 7.3 (HDF5).

    Args:
      path: of the file.
      variable: name of the array.

    Returns:
      int64, in MATLAB's orientation.

    Raises:
      ImportError: the file is of MATLAB 7.3 and h5py is not installed.
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, has no such variable, or it holds no integers.
    """
    path = pathlib.Path(path)
    with open(path, "rb") as file:
        start = file.read(_HDF5_OFFSETS[-1] + len(_HDF5_SIGNATURE))
    is_hdf5 = any(start[at:].startswith(_HDF5_SIGNATURE) for at in _HDF5_OFFSETS)
    values = np.asarray((_read_hdf5 if is_hdf5 else _read_old)(path, variable))
    if values.dtype.kind not in "biuf" or not np.all(
        (values == np.trunc(values)) & (np.abs(values) < _LARGEST)
    ):
        raise ValueError(f"{path}: {variable} holds {values.dtype}, expected integers")
    return values.astype(np.int64)


def zero_based(positions: np.ndarray, count: int, *, source: str, of: str) -> np.ndarray:
    """Positions counted from 1, as MATLAB does, counted from 0.

    Args:
      positions: integers of any shape.
      count: of the things that they point at.
      source: the file, for messages.
      of: what the positions point at, for messages.

    Returns:
      int64, one-dimensional.

    Raises:
      ValueError: a position lies outside 1 to count or stands twice.
    """
    positions = np.ravel(positions)
    outside = positions[(positions < 1) | (positions > count)]
    if outside.size:
        raise ValueError(
            f"{source}: {len(outside)} of {len(positions)} numbers, the first {outside[0]}, lie "
            f"outside 1 to {count}, the number of {of}; take all files from one release"
        )
    unique, times = np.unique(positions, return_counts=True)
    if len(unique) < len(positions):
        raise ValueError(
            f"{source}: {unique[times > 1][0]} stands twice among the numbers of {of}, expected "
            "each once; download the file again"
        )
    return positions - 1


def _read_old(path: pathlib.Path, variable: str) -> np.ndarray:
    try:
        content = scipy.io.loadmat(path)
    except Exception as error:  # scipy raises many kinds; all mean a damaged file.
        raise ValueError(_damaged(path, error)) from error
    if variable not in content:
        raise ValueError(_lacks(path, variable, [key for key in content if key[:2] != "__"]))
    return content[variable]


def _read_hdf5(path: pathlib.Path, variable: str) -> np.ndarray:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            f"{path} is of MATLAB 7.3, which needs h5py: pip install 'ccafl_jax[lsvid]'"
        ) from error
    try:
        with h5py.File(path, "r") as file:
            names = [name for name, entry in file.items() if isinstance(entry, h5py.Dataset)]
            # HDF5 has the first index last.
            values = np.asarray(file[variable]).T if variable in names else None
    except OSError as error:
        raise ValueError(_damaged(path, error)) from error
    if values is None:
        raise ValueError(_lacks(path, variable, names))
    return values


def _damaged(path: pathlib.Path, error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{path} is not a readable MATLAB file ({reason}); download it again"


def _lacks(path: pathlib.Path, variable: str, names: list[str]) -> str:
    found = ", ".join(names) or "nothing"
    return f"{path} holds {found}, expected the variable {variable}; download it again"
