"""Named tensors from and to safetensors files, whatever model they belong to.

Only safetensors are read. Files that torch.save or pickle wrote can run code while they are read
and are refused here, with the reason.
"""

import contextlib
import json
import pathlib
import re
from collections.abc import Iterator, Mapping

import jax.numpy as jnp
import numpy as np

from ccafl_jax.files import replacing

# The file to read where a directory has several. open_clip's name comes first because timm keeps
# the same weights beside it as model.safetensors, in names of its own.
PREFERRED = ("open_clip_model.safetensors", "model.safetensors")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

_SUFFIX = ".safetensors"
_INDEX = "*.safetensors.index.json"
_SHARD = r".+-\d{5}-of-(?!00001)\d{5}"  # stem of a file that holds a part of a model
_REFUSED = (
    "pickled files can run code when they are read and are refused; "
    "scripts/convert_weights.py converts those it knows, safely"
)
_AGAIN = "fetch it again"
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "C64": np.complex64,
}


def weight_files(directory: str | pathlib.Path) -> list[pathlib.Path]:
    """The files that hold the weights of a model.

    In a directory these are open_clip_model.safetensors, else model.safetensors, else the shards
    of the one *.safetensors.index.json, else the one *.safetensors there is.

    Args:
      directory: of the model; or one *.safetensors file.

    Returns:
      One path, or those of all shards, sorted.

    Raises:
      FileNotFoundError: if there are no such files (or only pickled ones), or a shard or the index
        of shards is missing.
      ValueError: if it is unclear which file to read, an index is broken, or a file is pickled.
    """
    return _locate(pathlib.Path(directory))[0]


class TensorFiles(Mapping[str, np.ndarray]):
    """The tensors of a model by name, each read from disk when it is asked for.

    Nothing that was read is kept: a caller who wants a tensor twice keeps it or reads it twice.
    Iteration goes through the names in sorted order. Use it in a `with` statement; closing it
    leaves arrays that were read untouched.
    """

    def __init__(self, path: str | pathlib.Path):
        """Opens the files and reads their headers.

        Args:
          path: a directory or a file, as for `weight_files`.

        Raises:
          FileNotFoundError: as `weight_files`.
          ValueError: as `weight_files`; if a file is not a complete safetensors file, two of them
            hold a tensor of the same name, or one lacks a tensor that the index places there.
        """
        self.path = pathlib.Path(path)
        self._homes: dict[str, tuple[pathlib.Path, object]] = {}
        files, index = _locate(self.path)
        with contextlib.ExitStack() as stack:
            for file in files:
                handle = stack.enter_context(_open(file))
                for name in handle.keys():
                    if name in self._homes:
                        raise ValueError(
                            f"{file}: tensor {name} is in {self._homes[name][0].name} too; "
                            "keep the shards of one model only"
                        )
                    self._homes[name] = (file, handle)
            for name, shard in index.items():
                if name not in self._homes or self._homes[name][0].name != shard:
                    raise ValueError(
                        f"{self.path / shard}: tensor {name} is not there, though the index of "
                        "the shards lists it; fetch the shards and their index again"
                    )
            self._stack = stack.pop_all()

    def __getitem__(self, name: str) -> np.ndarray:
        """Reads one tensor.

        Raises:
          KeyError: if there is none of that name.
          ValueError: if it holds values that are not finite, the file was cut short since it was
            opened, or numpy has no such dtype.
        """
        self.dtype(name)  # the library fails obscurely on dtypes that numpy lacks
        try:
            value = self._homes[name][1].get_tensor(name)
        except _library().SafetensorError as error:
            raise ValueError(
                f"{self.where(name)} cannot be read ({_one_line(error)}); {_AGAIN}"
            ) from error
        check_finite(value, self.where(name))
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._homes))

    def __len__(self) -> int:
        return len(self._homes)

    def __contains__(self, name: object) -> bool:
        return name in self._homes

    def __repr__(self) -> str:
        return f"TensorFiles({str(self.path)!r}, {len(self)} tensors)"

    def __enter__(self) -> "TensorFiles":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files; reading is an error from then on."""
        self._stack.close()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""
        return tuple(self._header(name).get_shape())

    def dtype(self, name: str) -> np.dtype:
        """Dtype of a tensor as it is stored, from the header.

        Raises:
          ValueError: if numpy has no such dtype.
        """
        stored = self._header(name).get_dtype()
        if stored not in _DTYPES:
            raise ValueError(
                f"{self.where(name)} is stored as {stored}, which is not read here; "
                f"store it as one of {sorted(_DTYPES)}"
            )
        return np.dtype(_DTYPES[stored])

    def where(self, name: str) -> str:
        """File and name of a tensor, for messages."""
        return f"{self._homes[name][0]}: tensor {name}"

    def _header(self, name: str):
        try:
            return self._homes[name][1].get_slice(name)
        except _library().SafetensorError as error:
            raise ValueError(f"{self.where(name)} cannot be read ({_one_line(error)})") from error


def check_finite(value: np.ndarray, where: str) -> None:
    """Fails where a tensor holds NaN or infinity; `where` names file and tensor.

    Raises:
      ValueError: saying how many of its values are not finite.
    """
    if jnp.issubdtype(value.dtype, jnp.inexact):
        finite = np.isfinite(value)
        if not finite.all():
            raise ValueError(
                f"{where} holds {np.sum(~finite)} of {value.size} values that are not finite (NaN "
                f"or infinity); the file is damaged: {_AGAIN}"
            )


def raised(value: np.ndarray) -> np.ndarray:
    """Half precision (float16, bfloat16) raised to float32; anything else as it is."""
    half = jnp.issubdtype(value.dtype, jnp.floating) and value.dtype.itemsize == 2
    return value.astype(np.float32) if half else value


def write_tensors(
    path: str | pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> pathlib.Path:
    """Writes one safetensors file: whole, or not at all.

    Args:
      path: of the file; one that is there is replaced. Its directory exists.
      tensors: arrays of any memory order, numpy or jax, by name.
      metadata: texts for the header.

    Returns:
      The path.

    Raises:
      ValueError: on a name that does not end in .safetensors, or an array of a dtype that is not
        read here either.
    """
    path = pathlib.Path(path)
    if path.suffix != _SUFFIX:
        raise ValueError(f"{path} does not end in {_SUFFIX}; name it so that readers know it")
    # A 0-d array stays one, unlike with np.ascontiguousarray.
    arrays = {name: np.asarray(value, order="C") for name, value in sorted(tensors.items())}
    known = {np.dtype(dtype) for dtype in _DTYPES.values()}
    for name, value in arrays.items():
        if value.dtype.newbyteorder("=") not in known:
            raise ValueError(f"{path}: tensor {name} is {value.dtype}, which is not written here")
    with replacing(path) as partial:
        _library().numpy.save_file(arrays, partial, metadata=dict(metadata) if metadata else None)
    return path


def write_shards(
    directory: str | pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    count: int,
    stem: str = "model",
) -> pathlib.Path:
    """Writes tensors to several files of about equal size, and their index.

    Args:
      directory: made if absent; without safetensors files.
      tensors: arrays by name, at least `count`.
      count: number of files.
      stem: the files are STEM-00001-of-0000N.safetensors and STEM.safetensors.index.json.

    Returns:
      The path of the index, which is written last.

    Raises:
      FileExistsError: if the directory holds safetensors files or an index of such.
      ValueError: if `count` is below 1 or above the number of tensors; as `write_tensors`.

    Source: the layout of the Hugging Face Hub for sharded safetensors.
    """
    directory = pathlib.Path(directory)
    if not 1 <= count <= len(tensors):
        raise ValueError(f"{len(tensors)} tensors do not make {count} files; choose fewer, from 1")
    directory.mkdir(parents=True, exist_ok=True)
    present = sorted(p.name for p in (*directory.glob(f"*{_SUFFIX}"), *directory.glob(_INDEX)))
    if present:
        raise FileExistsError(f"{directory} already holds {present}; choose another directory")
    sizes = {name: int(value.nbytes) for name, value in sorted(tensors.items())}
    shards = [
        (f"{stem}-{number:05d}-of-{count:05d}{_SUFFIX}", names)
        for number, names in enumerate(_divide(sizes, count), 1)
    ]
    index = {
        "metadata": {"total_size": sum(sizes.values())},
        "weight_map": {name: file for file, names in shards for name in names},
    }
    path = directory / f"{stem}{_SUFFIX}.index.json"
    try:
        for file, names in shards:
            write_tensors(directory / file, {name: tensors[name] for name in names})
        with replacing(path) as partial:
            partial.write_text(json.dumps(index, indent=2) + "\n")
    except BaseException:
        for file, _ in shards:
            (directory / file).unlink(missing_ok=True)
        raise
    return path


def _locate(path: pathlib.Path) -> tuple[list[pathlib.Path], dict[str, str]]:
    """The files to read and, where an index lists them, the file of each tensor."""
    if path.is_file():
        if path.suffix in PICKLED:
            raise ValueError(f"{path} is a pickled file by its name: {_REFUSED}")
        if path.suffix != _SUFFIX:
            raise ValueError(f"{path} does not end in {_SUFFIX}; pass such a file or its directory")
        _check_start(path)
        return [path], {}
    if not path.is_dir():
        raise FileNotFoundError(f"no file or directory {path}; place the *{_SUFFIX} weights there")
    files, index = _choose(path)
    for file in files:
        _check_start(file)
    return files, index


def _choose(directory: pathlib.Path) -> tuple[list[pathlib.Path], dict[str, str]]:
    files = sorted(directory.glob(f"*{_SUFFIX}"))
    for name in PREFERRED:
        if directory / name in files:
            return [directory / name], {}
    indexes = sorted(directory.glob(_INDEX))
    if len(indexes) == 1:
        index = _read_index(indexes[0])
        names = sorted(set(index.values()))
        absent = [name for name in names if not (directory / name).is_file()]
        if absent:
            raise FileNotFoundError(f"{indexes[0]} lists {absent}; place them in {directory}")
        return [directory / name for name in names], index
    if not files:
        pickled = sorted(p.name for p in directory.iterdir() if p.suffix in PICKLED)
        raise FileNotFoundError(
            f"{directory} has no *{_SUFFIX} file, only {pickled}: {_REFUSED}"
            if pickled
            else f"{directory} has no *{_SUFFIX} file; place the weights of the model there"
        )
    if not indexes and all(re.fullmatch(_SHARD, file.stem) for file in files):
        raise FileNotFoundError(
            f"{directory} has shards of a model, {[f.name for f in files]}, without their index: "
            f"place the model's {_INDEX} there too"
        )
    if len(files) > 1:
        raise ValueError(
            f"{directory} has several weight files {[f.name for f in files]}; keep one, or name "
            f"it {PREFERRED[0]}"
        )
    return files, {}


def _read_index(path: pathlib.Path) -> dict[str, str]:
    try:
        index = json.loads(path.read_text())
    except ValueError as error:  # bad JSON or bad UTF-8
        raise ValueError(f"{path} is not JSON ({_one_line(error)}); {_AGAIN}") from error
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{path} has no weight_map from tensors to files; {_AGAIN}")
    for tensor, name in names.items():
        if not isinstance(name, str) or set(name) & set("/\\\0") or not name.endswith(_SUFFIX):
            raise ValueError(
                f"{path} places tensor {tensor} in {name!r}; expected the plain name of a "
                f"*{_SUFFIX} file beside the index"
            )
    return names


def _check_start(path: pathlib.Path) -> None:
    """Says so where a file is something else by its first bytes."""
    with path.open("rb") as file:
        start = file.read(24)
    # A safetensors file starts with 8 bytes of header size and a brace; the bytes of a size alone
    # may look like those of a pickle.
    if start[8:9] == b"{":
        return
    if start.startswith(b"PK\x03\x04"):
        raise ValueError(f"{path} is a zip archive inside, as torch.save writes them: {_REFUSED}")
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise ValueError(f"{path} is a pickle inside: {_REFUSED}")
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a pointer of Git LFS, not the weights; run git lfs pull")


def _open(path: pathlib.Path):
    library = _library()
    try:
        # Memory-mapped pages would count as memory of the process until the file is closed.
        return library.safe_open(str(path), framework="np", backend="pread")
    except library.SafetensorError as error:
        raise ValueError(
            f"{path} is not a complete safetensors file ({_one_line(error)}): {_AGAIN}"
        ) from error


def _divide(sizes: Mapping[str, int], count: int) -> list[list[str]]:
    """Splits names, in their order, into `count` runs of about equal size, none empty."""
    runs, names = [], list(sizes)
    total, filled = sum(sizes.values()), 0
    for number in range(1, count + 1):
        run = [names.pop(0)]
        filled += sizes[run[0]]
        spare = len(names) - (count - number)  # names that later runs do not need
        while spare and (number == count or filled + sizes[names[0]] / 2 <= total * number / count):
            filled += sizes[names[0]]
            run.append(names.pop(0))
            spare -= 1
        runs.append(run)
    return runs


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _library():
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("weights need safetensors: pip install safetensors") from error
    return safetensors
