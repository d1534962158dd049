"""Command line of the synthetic people: `python -m data_prep.synthetic --out DIR`."""

import argparse
import dataclasses
import sys
from pathlib import Path

from data_prep.synthetic.folder import SyntheticConfig, write_folder, write_names


def main(arguments: list[str] | None = None) -> int:
    """Writes a folder; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.synthetic", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--names", type=Path, help="draw the file names listed in this file")
    parser.add_argument(
        "--pid-offset", type=int, default=0, help="added to the identities of --names"
    )
    for field in dataclasses.fields(SyntheticConfig):
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=field.type, default=field.default, help=f"{field.default}")
    options = vars(parser.parse_args(arguments))
    out, names, offset = options.pop("out"), options.pop("names"), options.pop("pid_offset")
    try:
        config = SyntheticConfig(**options)
        if names is not None:
            counts = write_names(out, names.read_text().splitlines(), config, pid_offset=offset)
        else:
            counts = write_folder(out, config)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{out}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
