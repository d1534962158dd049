"""What the tables of options of all methods need: every option by its path, and changed values."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ccafl_jax.options import from_mapping


def leaves(cls: type, prefix: str = "") -> Iterator[str]:
    """The paths of all options of a class of options, such as "optimizer.base_lr"."""
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.default):
            yield from leaves(type(field.default), f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def with_options(config: Any, values: Mapping[str, Any]) -> Any:
    """The options with some values, by path, in place of theirs; read as those of a recipe are."""
    raw = dataclasses.asdict(config)
    for path, value in values.items():
        *groups, name = path.split(".")
        node = raw
        for group in groups:
            node = node[group]
        node[name] = value
    return from_mapping(type(config), raw)
