"""Nested frozen dataclasses to and from nested mappings; errors name the nearest known key."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any], *, where: str = "config") -> T:
    """Builds the dataclass `cls`, recursively, from `values`.

    Args:
      cls: a frozen dataclass whose fields are scalars, tuples or dataclasses.
      values: nested mapping (a dict, or a ConfigDict's `to_dict()`); missing keys take defaults.
      where: dotted name of `values`, for messages.

    Raises:
      ValueError: an unknown key (the nearest known one is named), a value of the wrong type, or a
        value that `cls` itself refuses.
    """
    hints = typing.get_type_hints(cls)
    known = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    arguments = {}
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"unknown option {where}.{key}: {_nearest(key, known, where)}")
        arguments[key] = _convert(known[key], value, f"{where}.{key}")
    try:
        return cls(**arguments)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def to_config(options: Any) -> Any:
    """The `ConfigDict` of a dataclass, whose options keep to their types.

    Args:
      options: an instance of a dataclass that `from_mapping` builds.

    Returns:
      `ml_collections.ConfigDict`. Options of several types, such as `float | str`, take any value
      here; the dataclass checks it.
    """
    from ml_collections import ConfigDict, FieldReference

    config = ConfigDict()
    hints = typing.get_type_hints(type(options))
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            value = to_config(value)
        elif typing.get_origin(hints[field.name]) in (typing.Union, types.UnionType):
            value = FieldReference(value, object)
        config[field.name] = value
    return config


def flatten(options: Any, prefix: str = "") -> dict[str, Any]:
    """Nested options by dotted name, in their order; sequences become tuples.

    Args:
      options: an instance of a dataclass that `from_mapping` builds, or a nested mapping such as
        JSON gives.
      prefix: before the names.
    """
    if dataclasses.is_dataclass(options):
        options = {
            field.name: getattr(options, field.name) for field in dataclasses.fields(options)
        }
    found = {}
    for name, value in options.items():
        if dataclasses.is_dataclass(value) or isinstance(value, Mapping):
            found |= flatten(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = _immutable(value)
    return found


def require(condition: bool, message: str) -> None:
    """Raises ValueError(message) unless the condition holds; for `__post_init__` checks."""
    if not condition:
        raise ValueError(message)


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError, which names the nearest, unless `value` is one of `choices`."""
    if value in choices:
        return
    near = nearest_key(value, choices) if isinstance(value, str) else None
    hint = f"; did you mean {near}?" if near else ""
    raise ValueError(f"{name} is {value!r}, must be one of {', '.join(choices)}{hint}")


def nearest_key(key: str, known: typing.Iterable[str]) -> str | None:
    """The known key most like `key`, or None.

    >>> nearest_key("temprature", ["temperature", "update"])
    'temperature'
    """
    matches = difflib.get_close_matches(key, list(known), n=1, cutoff=0.4)
    return matches[0] if matches else None


def _immutable(value: Any) -> Any:
    """Tuples in place of lists, which JSON makes of them."""
    return tuple(map(_immutable, value)) if isinstance(value, list | tuple) else value


def _nearest(key: str, known: Mapping[str, Any], where: str) -> str:
    match = nearest_key(key, known)
    if match:
        return f"did you mean {where}.{match}?"
    return f"known options are {', '.join(sorted(known))}"


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be a group of options, found {value!r}")
        return from_mapping(hint, value, where=where)
    origin = typing.get_origin(hint)
    if origin is tuple:
        if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
            raise ValueError(f"{where} must be a sequence, found {value!r}")
        items = typing.get_args(hint)
        inner = items[0]
        converted = tuple(_convert(inner, item, f"{where}[{i}]") for i, item in enumerate(value))
        if Ellipsis not in items and len(converted) != len(items):
            raise ValueError(f"{where} must hold {len(items)} values, found {len(converted)}")
        return converted
    if origin in (typing.Union, types.UnionType):
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f"{where} must be of type {hint.__name__}, found {value!r}")
    return value
