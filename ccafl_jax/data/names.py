"""Millions of strings as two arrays: file names that need no Python object each."""

from collections.abc import Iterable, Iterator

import numpy as np

from ccafl_jax.ragged import ranges

_NAMES_AT_A_TIME = 100_000


class Names:
    """An immutable sequence of strings, packed as UTF-8 into one byte array.

    `names[3]` is a str; `names[rows]` (indices, a mask or a slice) is another `Names` over the
    same bytes. The arrays may be memory-mapped. File names that are not valid UTF-8 survive.
    """

    __slots__ = ("_data", "_start", "_stop")

    def __init__(self, data: np.ndarray, start: np.ndarray, stop: np.ndarray):
        """Args:
        data: uint8[bytes].
        start: int64[n], first byte of each string.
        stop: int64[n], byte after the last one of each string.
        """
        self._data, self._start, self._stop = data, start, stop

    @classmethod
    def pack(cls, texts: Iterable[str]) -> "Names":
        """Packs strings."""
        if isinstance(texts, Names):
            return texts
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        lengths = np.fromiter((len(text) for text in encoded), np.int64, len(encoded))
        stop = np.cumsum(lengths)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), stop - lengths, stop)

    @classmethod
    def join(cls, parts: "list[Names]") -> "Names":
        """The strings of several sequences, one after the other."""
        packed = [part.packed() for part in parts]
        data = np.concatenate([np.asarray(data) for data, _ in packed])
        lengths = np.concatenate([np.diff(offsets) for _, offsets in packed])
        stop = np.cumsum(lengths)
        return cls(data, stop - lengths, stop)

    def packed(self) -> tuple[np.ndarray, np.ndarray]:
        """Bytes without gaps and their offsets: uint8[bytes], int64[n + 1]."""
        lengths = self._stop - self._start
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        if len(self) and np.array_equal(self._start - self._start[0], offsets[:-1]):
            return self._data[self._start[0] : self._stop[-1]], offsets
        data = np.empty(offsets[-1], np.uint8)
        for first in range(0, len(self), _NAMES_AT_A_TIME):  # an index is eight bytes a letter
            part = slice(first, first + _NAMES_AT_A_TIME)
            begin, end = offsets[first], offsets[min(first + _NAMES_AT_A_TIME, len(self))]
            data[begin:end] = self._data[ranges(self._start[part], lengths[part])]
        return data, offsets

    def __len__(self) -> int:
        return len(self._start)

    def __getitem__(self, key):
        if isinstance(key, (int, np.integer)):
            return self._decode(self._start[key], self._stop[key])
        return Names(self._data, self._start[key], self._stop[key])

    def __iter__(self) -> Iterator[str]:
        for start, stop in zip(self._start, self._stop, strict=True):
            yield self._decode(start, stop)

    def __repr__(self) -> str:
        shown = ", ".join(repr(self[i]) for i in range(min(3, len(self))))
        return f"Names({shown}{', ...' if len(self) > 3 else ''}; {len(self)} in all)"

    def _decode(self, start: int, stop: int) -> str:
        return bytes(self._data[start:stop]).decode("utf-8", "surrogateescape")
