"""Checked reading of the JSON objects that configuration files consist of."""

import json
import math
from collections.abc import Callable, Collection, Mapping

from ccafl_jax.models.clip.config import ACTIVATIONS

ANY = object()
"""Stands for every value of a key that does not change what a tower computes."""

ASK_FOR_ACTIVATION = (
    "pass --activation quick_gelu (OpenAI's weights and those tuned from them) or --activation "
    "gelu (most others); the wrong one loses accuracy silently"
)


class Section:
    """A JSON object of a file; every error names the file, the key and its value."""

    def __init__(self, raw: Mapping, source: str, path: str = ""):
        """Args:
        raw: the object.
        source: name of the file.
        path: keys that lead to the object, e.g. "model_cfg.vision_cfg".

        Raises:
          ValueError: if it is no object.
        """
        if not isinstance(raw, Mapping):
            what = f"{source}: {path}" if path else source
            raise ValueError(f"{what} is {show(raw)}; expected an object {{...}}")
        self.raw, self.source, self.path = raw, source, path

    def __contains__(self, key: str) -> bool:
        return key in self.raw

    def name(self, key: str) -> str:
        """File and key."""
        return f"{self.source}: {self.path}.{key}" if self.path else f"{self.source}: {key}"

    def wrong(self, key: str, expected: str) -> ValueError:
        """The error of a value that is not what is expected."""
        return ValueError(f"{self.name(key)} is {show(self.raw[key])}; expected {expected}")

    def section(self, key: str) -> "Section":
        """The object under a key."""
        path = f"{self.path}.{key}" if self.path else key
        return Section(self._value(key, None), self.source, path)

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number of at least 1; without a default the key must be there."""
        value = self._value(key, default)
        if not _is_count(value):
            raise self.wrong(key, "a whole number of 1 or more")
        return value

    def ratio(self, key: str, default: float) -> float:
        """A positive number."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, "a positive number")
        if not 0 < value < math.inf:
            raise self.wrong(key, "a positive number")
        return value

    def pixels(self, key: str, default: int | None = None) -> tuple[int, int]:
        """Height and width, stated as two numbers or as one for both."""
        value = self._value(key, default)
        pair = value if isinstance(value, list | tuple) else (value, value)
        if len(pair) != 2 or not all(map(_is_count, pair)):
            raise self.wrong(key, "pixels: a whole number, or a list of two (height, width)")
        return tuple(pair)

    def must_be(self, allowed: Mapping[str, object]) -> None:
        """Refuses other values than these of keys that may be absent.

        Args:
          allowed: for each key a tuple of values, or `ANY`.

        Raises:
          ValueError: on another value.
        """
        for key, values in allowed.items():
            if key in self.raw and values is not ANY and self.raw[key] not in values:
                expected = " or ".join(map(show, values))
                raise self.wrong(key, f"{expected}; use a checkpoint of CLIP's own towers")

    def refuse_others(self, read: Collection[str], allowed: Mapping[str, object]) -> None:
        """Refuses keys that are neither read nor known to be harmless.

        Args:
          read: keys that are read elsewhere.
          allowed: as in `must_be`.

        Raises:
          ValueError: on another key, or another value of an allowed one.
        """
        self.must_be(allowed)
        for key, value in self.raw.items():
            if key not in read and key not in allowed:
                raise ValueError(
                    f"{self.name(show(key))} is {show(value)}; this key is unknown and may change "
                    f"what is computed; expected are {sorted(read)}"
                )

    def build(self, kind: Callable, **sizes):
        """Calls `kind` with sizes; what it refuses is raised with the name of the file."""
        try:
            return kind(**sizes)
        except ValueError as error:
            raise ValueError(f"{self.source}: {self.path}: {error}") from None

    def _value(self, key: str, default):
        if key in self.raw:
            return self.raw[key]
        if default is None:
            where = f"{self.source}: {self.path}" if self.path else self.source
            raise ValueError(f"{where} has no {key!r}; its keys are {sorted(self.raw)}")
        return default


def settle_activation(stated: str | None, asked: str | None, *, key: str, source: str) -> str:
    """The activation that a file states or that was asked for.

    Args:
      stated: by the file, None if it does not.
      asked: None if it was not.
      key: of the file.
      source: name of the file.

    Raises:
      ValueError: if neither is there, if they differ, or if what was asked for is unknown.
    """
    if asked not in (None, *ACTIVATIONS):
        raise ValueError(
            f"{source}: {asked!r} was asked for as activation; choose one of {ACTIVATIONS}"
        )
    if stated is None and asked is None:
        raise ValueError(f"{source} does not state {key}; {ASK_FOR_ACTIVATION}")
    if stated and asked and stated != asked:
        raise ValueError(f"{source} states {stated!r} but {asked!r} was asked for as activation")
    return stated or asked


def show(value) -> str:
    """A value as JSON on one line, shortened."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 80 else text[:77] + "..."


def _is_count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
