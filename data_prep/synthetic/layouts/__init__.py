"""The synthetic people in the layouts of other data sets: video, visible and infrared, vehicles.

One module per layout; each says what lies where. People and cameras of a seed are those of the
folder in Market-1501 layout.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from data_prep.synthetic.folder import sample_hash
from data_prep.synthetic.layouts import ilidsvid, lsvid, mars, regdb, sysumm01, veri
from data_prep.synthetic.layouts.common import Blueprint, LayoutConfig, draw_blueprint
from data_prep.synthetic.output import write_once

LAYOUTS_VERSION = "1.1"
"""Changes whenever a pixel of any picture, a name or an info file of any layout does."""


@dataclasses.dataclass(frozen=True)
class SyntheticLayout:
    """A layout that can be drawn.

    Attributes:
      config: class of its settings; the defaults make a small set.
      blueprint: names every picture and info file of a set with given settings.
    """

    config: type[LayoutConfig]
    blueprint: Callable[..., Blueprint]


LAYOUTS: dict[str, SyntheticLayout] = {
    "mars": SyntheticLayout(mars.MarsConfig, mars.blueprint),
    "lsvid": SyntheticLayout(lsvid.LsvidConfig, lsvid.blueprint),
    "ilidsvid": SyntheticLayout(ilidsvid.IlidsvidConfig, ilidsvid.blueprint),
    "sysumm01": SyntheticLayout(sysumm01.SysuConfig, sysumm01.blueprint),
    "regdb": SyntheticLayout(regdb.RegdbConfig, regdb.blueprint),
    "veri776": SyntheticLayout(veri.VeriConfig, veri.blueprint),
}


def write_layout(
    out: str | Path, layout: str, config: LayoutConfig | None = None
) -> dict[str, int]:
    """Draws a set of synthetic people in the layout of another data set.

    A folder that already holds the same settings of the same version is left as it is.

    Args:
      out: folder to write; must not hold anything else.
      layout: a key of LAYOUTS.
      config: an instance of the layout's config class; its defaults if None.

    Returns:
      Counts of what was written, images by folder first.

    Raises:
      ValueError: unknown layout, or settings of another one.
      FileExistsError: `out` holds something else.
    """
    kind = layout_of(layout)
    config = kind.config() if config is None else config
    if type(config) is not kind.config:
        raise ValueError(
            f"layout {layout} was given a {type(config).__name__}; expected a "
            f"{kind.config.__name__}"
        )
    plan = kind.blueprint(config)
    record = {
        "generator": "synthetic people",
        "layout": layout,
        "version": LAYOUTS_VERSION,
        "sample_sha256": sample_hash(),
        "settings": dataclasses.asdict(config),
        "counts": plan.counts,
    }
    write_once(Path(out), record, lambda folder: draw_blueprint(folder, plan, config))
    return plan.counts


def layout_of(name: str) -> SyntheticLayout:
    """The layout of that name.

    Raises:
      ValueError: there is none.
    """
    if name not in LAYOUTS:
        raise ValueError(f"layout {name!r} is unknown; choose one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]
