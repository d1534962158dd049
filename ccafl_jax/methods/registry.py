"""The methods by name, each with its options, its run and its dry run."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from ccafl_jax.options import from_mapping, require_choice

METHODS = {
    "ccafl": ("CCAFLConfig", "intra-camera supervised"),
    "calr": ("CALRConfig", "unsupervised"),
    "tfclip": ("TFCLIPConfig", "supervised, video"),
    "cclnet": ("CCLNetConfig", "unsupervised, visible-infrared"),
}
"""By name: the class of options in `methods.NAME.config`, and what it learns from."""


@dataclasses.dataclass(frozen=True)
class Method:
    """What a command needs of a method.

    Attributes:
      name: of its package.
      options: its dataclass of options.
      stages: what `--stages` may name.
      prepare_run: see `methods.ccafl.setup.prepare_run`.
      dry_run: see `methods.ccafl.dry_run.dry_run`.
    """

    name: str
    options: type
    stages: tuple[str, ...]
    prepare_run: Callable[..., Any]
    dry_run: Callable[..., Any]

    def config(self, raw: Mapping[str, Any]) -> Any:
        """The options of a recipe.

        Raises:
          ValueError: see `from_mapping`.
        """
        return from_mapping(self.options, raw)


def method_of(raw: Mapping[str, Any]) -> Method:
    """The method that a recipe is for, by its `method`.

    Raises:
      ValueError: it names none.
    """
    name = raw.get("method", "ccafl")
    require_choice("method", name, tuple(METHODS))
    package = f"ccafl_jax.methods.{name}"
    config = importlib.import_module(f"{package}.config")
    return Method(
        name=name,
        options=getattr(config, METHODS[name][0]),
        stages=config.STAGES,
        prepare_run=importlib.import_module(f"{package}.setup").prepare_run,
        dry_run=importlib.import_module(f"{package}.dry_run").dry_run,
    )
