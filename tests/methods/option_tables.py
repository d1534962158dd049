"""What the tables of options of all methods need: every option by its path, and changed values."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ccafl_jax.data.augment import augment
from ccafl_jax.options import from_mapping

AUGMENTATION = {
    "grey": 1.0,
    "flip": 0.0,
    "pad": 1,
    "erase_probability": 0.0,
    "erase_area": (0.3, 0.4),
    "erase_aspect": 0.9,
    "erase_place": "size",
    "mean": (0.0, 0.0, 0.0),
    "std": (1.0, 1.0, 1.0),
}
"""Values of the options of augmentation that differ from those of all methods."""


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


def augmentation(*, law: str, fill: str, frames: int = 1) -> dict[str, tuple[Any, Callable]]:
    """Rows of a table: by option, another value, and the pixels that it changes.

    Args:
      law: another `erase_law` than the method's.
      fill: another `erase_fill`.
      frames: of a clip.
    """

    def augmented(config: Any) -> np.ndarray:
        images = np.random.default_rng(0).integers(0, 255, (16, 16, 8, 3)).astype(np.uint8)
        return np.asarray(augment(images, seed=0, step=3, frames=frames, config=config.augment))

    values = AUGMENTATION | {"erase_law": law, "erase_fill": fill}
    return {f"augment.{name}": (value, augmented) for name, value in values.items()}
