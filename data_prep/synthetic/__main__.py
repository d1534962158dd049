"""Command line of the synthetic people: `python -m data_prep.synthetic --out DIR`."""

import argparse
import dataclasses
import re
from pathlib import Path

from ccafl_jax.command_line import Parser, one_line_errors
from data_prep.synthetic.folder import SyntheticConfig, write_folder, write_names
from data_prep.synthetic.layouts import LAYOUTS, write_layout

MARKET = "market"
_EXAMPLES = """examples:
  a folder in Market-1501 layout:    python -m data_prep.synthetic --out DIR --seed 0
  the images of a list of names:     python -m data_prep.synthetic --out DIR --names names.txt
  tracklets as MARS has them:        python -m data_prep.synthetic --out DIR --layout mars --seed 0
  visible and infrared pictures:     python -m data_prep.synthetic --out DIR --layout sysumm01
  the options of a layout:           python -m data_prep.synthetic --layout regdb --help
"""
_SETTING = re.compile(r"^ {6}(\w+): (.+(?:\n {8}.+)*)", re.MULTILINE)
"""A setting in the docstring of its configuration."""


def main(arguments: list[str] | None = None) -> None:
    """Writes a folder."""
    layout = _layout_of(arguments)
    parser = _parser(layout)
    options = vars(parser.parse_args(arguments))
    out = options.pop("out")
    del options["layout"]
    with one_line_errors():
        counts = _write_market(out, options) if layout == MARKET else _write(out, layout, options)
    print(f"{out}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))


def _layout_of(arguments: list[str] | None) -> str:
    """The layout asked for: which further options there are depends on it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--layout", default=MARKET)
    layout = parser.parse_known_args(arguments)[0].layout
    # The full parser complains about an unknown one.
    return layout if layout in LAYOUTS else MARKET


def _parser(layout: str) -> Parser:
    parser = Parser(
        prog="python -m data_prep.synthetic",
        description="Draws synthetic people in the layout of a published data set.",
        epilog=_EXAMPLES,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--layout",
        choices=(MARKET, *LAYOUTS),
        default=MARKET,
        help=f"each has options of its own, see --layout NAME --help (default: {MARKET})",
    )
    if layout == MARKET:
        parser.add_argument("--names", type=Path, help="draw the file names listed in this file")
        parser.add_argument(
            "--pid-offset", type=int, default=0, help="added to the identities of --names"
        )
    config = SyntheticConfig if layout == MARKET else LAYOUTS[layout].config
    meanings = _meanings(config)
    for field in dataclasses.fields(config):
        flag = "--" + field.name.replace("_", "-")
        said = meanings.get(field.name, "").rstrip(".")
        parser.add_argument(
            flag, type=field.type, default=field.default, help=f"{said} (default: {field.default})"
        )
    return parser


def _meanings(config: type) -> dict[str, str]:
    """What the docstrings of a configuration and its bases say of each setting."""
    found = {}
    for base in reversed(config.__mro__):
        for name, text in _SETTING.findall(base.__doc__ or ""):
            found[name] = " ".join(text.split()).replace("%", "%%")
    return found


def _write_market(out: Path, options: dict) -> dict[str, int]:
    names, offset = options.pop("names"), options.pop("pid_offset")
    config = SyntheticConfig(**options)
    if names is None:
        return write_folder(out, config)
    return write_names(out, names.read_text().splitlines(), config, pid_offset=offset)


def _write(out: Path, layout: str, options: dict) -> dict[str, int]:
    return write_layout(out, layout, LAYOUTS[layout].config(**options))


if __name__ == "__main__":
    main()
