"""Checkpoints of PyTorch as named tensors, and what a pickled file is by its bytes alone.

Reading pickled files is left to scripts/convert_weights.py.
"""

import pathlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ccafl_jax.models.named_tensors import PREFIXES
from ccafl_jax.models.tensor_files import check_finite

_AGAIN = "fetch it again"


class Checkpoint(Mapping[str, np.ndarray]):
    """Tensors by name, without a prefix that all names share, and checked when they are read.

    Attributes:
      source: the file, for messages.
      prefix: what was taken off every name.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray], source: str | pathlib.Path):
        """Args:
        tensors: by name, in torch's axis order.
        source: the file they come from.

        Raises:
          ValueError: no tensors, or a prefix that only some of the names carry.
        """
        self.source = str(source)
        if not tensors:
            raise ValueError(f"{source} holds no tensors; pass the checkpoint of a trained model")
        self.prefix = _common_prefix(list(tensors), self.source)
        self._tensors = tensors

    def __getitem__(self, name: str) -> np.ndarray:
        """One tensor.

        Raises:
          KeyError: if there is none of that name.
          ValueError: if it holds values that are not finite.
        """
        value = np.asarray(self._tensors[self.prefix + name])
        check_finite(value, f"{self.source}: tensor {name}")
        return value

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self.prefix) for name in self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.prefix + name in self._tensors


def check_pickled(path: pathlib.Path) -> None:
    """Tells by its bytes whether torch.save wrote a file, without unpickling anything.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is empty, cut short, a TorchScript archive, or something else altogether.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; pass the checkpoint of a trained model")
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise ValueError(f"{path} is empty; {_AGAIN}")
    if start.startswith(b"PK\x03\x04"):
        _check_archive(path)
    elif start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a pointer of Git LFS, not the weights; run git lfs pull")
    elif start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise ValueError(f"{path} is a web page, as failed downloads leave behind; {_AGAIN}")
    elif start[8:9] == b"{":
        raise ValueError(f"{path} is a safetensors file inside; give it the suffix .safetensors")
    elif start[:1] != b"\x80":
        raise ValueError(f"{path} was not written by torch.save, by its first bytes; {_AGAIN}")


def _common_prefix(names: Sequence[str], source: str) -> str:
    prefix = ""
    while True:
        carried = {p: [n for n in names if n.startswith(prefix + p)] for p in PREFIXES}
        for part, found in carried.items():
            if len(found) == len(names):
                prefix += part
                break
            if found:
                other = next(name for name in names if name not in set(found))
                raise ValueError(
                    f"{source}: {len(found)} of {len(names)} tensors are named {prefix}{part}*, "
                    f"others, such as {other}, are not; a prefix is taken off only where all "
                    "carry it: rename them"
                )
        else:
            return prefix


def _check_archive(path: pathlib.Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            files = {pathlib.PurePosixPath(name).name for name in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is cut short or damaged ({error}); {_AGAIN}") from error
    if "constants.pkl" in files:
        raise ValueError(
            f"{path} is a TorchScript archive, a program, and is not read; OpenAI's CLIPs, which "
            "are published so, are on the Hub as safetensors too, e.g. timm/resnet50_clip.openai "
            "and openai/clip-vit-base-patch16"
        )
    if "data.pkl" not in files:
        raise ValueError(f"{path} is a zip archive that torch.save did not write; {_AGAIN}")
