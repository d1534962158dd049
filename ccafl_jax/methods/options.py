"""Options that all methods share, grouped as the parts of a run are."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ccafl_jax.data.layouts import LAYOUTS
from ccafl_jax.data.opening import SOURCES
from ccafl_jax.methods.cameras import camera_names
from ccafl_jax.options import require, require_choice

Options = TypeVar("Options")


def require_run(config: Any, *, stages: Sequence[str], keep_best: Sequence[str]) -> None:
    """Raises ValueError unless the options that stand beside the groups are valid.

    Args:
      config: of a run, with `stages`, `keep_best` and `skip_nonfinite`.
      stages: those of the method, in their order.
      keep_best: the sets whose best checkpoint can be kept, and "".
    """
    require_choice("keep_best", config.keep_best, tuple(keep_best))
    require(config.skip_nonfinite >= 0, "skip_nonfinite must be 0 or a number of steps")
    require_stages(config.stages, stages)


def at_batch(
    config: Options, *, sizes: Sequence[str], rates: Sequence[str], steps: Sequence[str]
) -> Options:
    """Options at `scale.batch` times the batch, where that is 1 again.

    Args:
      config: of a run.
      sizes: options that grow with the batch, as "group.name".
      rates: learning rates, likewise.
      steps: numbers of steps that shrink, likewise.
    """
    scale = config.scale
    rules: dict[str, Callable] = {
        **dict.fromkeys(sizes, lambda value: value * scale.batch),
        **dict.fromkeys(rates, scale.rate),
        **dict.fromkeys(steps, scale.steps),
    }
    groups: dict[str, dict[str, Any]] = {"scale": {"batch": 1}}
    for path, rule in rules.items():
        group, name = path.split(".")
        groups.setdefault(group, {})[name] = rule(getattr(getattr(config, group), name))
    return dataclasses.replace(
        config,
        **{
            group: dataclasses.replace(getattr(config, group), **values)
            for group, values in groups.items()
        },
    )


def require_stages(stages: Sequence[str], known: Sequence[str]) -> None:
    """Raises ValueError unless `stages` are some of the known ones, in their order."""
    for stage in stages:
        require_choice("stages", stage, tuple(known))
    order = [known.index(stage) for stage in stages]
    require(bool(order) and order == sorted(set(order)), f"stages must follow {tuple(known)}")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images, and how they reach the model.

    Attributes:
      name: of the data set, a key of `ccafl_jax.data.layouts.LAYOUTS`; `synthetic` are the embedded
        people, drawn into the work folder when `root` is empty, `synthetic_tracklets` their walks,
        and `synthetic_sysumm01` and `synthetic_regdb` the same in visible and infrared light.
      root: folder of the data set, or one that holds it.
      source: `folder` (the raw download), `prepared` (from scripts/prepare_data.py), or `auto`,
        which looks what `root` holds.
      height, width: pixels after resizing.
      cache: folder for decoded images, which later runs map into memory; none when empty.
      synthetic_seed, synthetic_ids: which synthetic people to draw when `root` is empty, and how
        many training identities.
      train_cameras: codes of the cameras to train on, such as 1,2,5; empty means all. Queries and
        gallery stay whole.
    """

    name: str = "market1501"
    root: str = ""
    source: str = "auto"
    height: int = 256
    width: int = 128
    cache: str = ""
    synthetic_seed: int = 100
    synthetic_ids: int = 200
    train_cameras: tuple[int | str, ...] = ()

    def __post_init__(self):
        require_choice("name", self.name, tuple(LAYOUTS))
        require_choice("source", self.source, SOURCES)
        require(self.height >= 32 and self.width >= 16, "height and width must be at least 32x16")
        object.__setattr__(self, "train_cameras", camera_names(self.train_cameras))


@dataclasses.dataclass(frozen=True)
class InputConfig:
    """How training images reach the devices; changes no result.

    Attributes:
      kind: `resident` keeps all of them on every device, `streaming` sends them batch by batch;
        `auto` is resident where they fit into `share` of a device's memory.
      share: of the memory of a device, or of the host where it has none of its own.
    """

    kind: str = "auto"
    share: float = 0.3

    def __post_init__(self):
        require_choice("kind", self.kind, ("auto", "resident", "streaming"))
        require(0 < self.share <= 1, f"share is {self.share}, must lie above 0 and up to 1")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """When and how the test set is ranked.

    Attributes:
      every: epochs of the encoder between evaluations (0: only at the ends of stages).
      batch: images per extraction call, for training images too.
      no_match: queries without a match are skipped (`skip`) or count as 0 (`zero`, the release).
    """

    every: int = 10
    batch: int = 128
    no_match: str = "skip"

    def __post_init__(self):
        require_choice("no_match", self.no_match, ("skip", "zero"))
