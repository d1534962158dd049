"""What the command-line scripts share: configuration files with overrides, one-line errors."""

import logging
import os
import pathlib
import re
import sys

try:
    from absl import flags
    from ml_collections import ConfigDict, config_flags
except ModuleNotFoundError as missing:
    raise SystemExit(
        f"error: this Python has no {missing.name}; scripts/demo.sh makes .venv with all that is "
        "needed: source .venv/bin/activate"
    ) from None

from ccafl_jax.command_line import Parser, one_line_errors
from ccafl_jax.options import flatten, nearest_key

__all__ = [
    "Parser",
    "check_writable",
    "flag",
    "one_line_errors",
    "read_config",
    "start_logging",
    "user_path",
]


def read_config(path: str, overrides: list[str]) -> ConfigDict:
    """The configuration of a file, with `--config.a.b=value` overrides applied.

    Args:
      path: the file; "file.py:variant" hands the variant to its `get_config`.
      overrides: the other arguments of the command.

    Raises:
      ValueError: a missing file, an unknown key (the nearest known one is named) or a bad value.
    """
    if not pathlib.Path(path.partition(":")[0]).is_file():
        raise ValueError(f"--config {path}: no such file; the recipes are in configs/")
    foreign = [word for word in overrides if not word.startswith("--config.")]
    if foreign:
        raise ValueError(
            f"unknown argument {foreign[0]!r}: options of a recipe are written "
            "--config.group.name=value; see --help"
        )
    values, words = flags.FlagValues(), ["command", f"--config={path}", *overrides]
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=words)
    try:
        values(words)
    except (KeyError, AttributeError):
        raise ValueError(_unknown_option(path, overrides)) from None
    except flags.Error as error:
        raise ValueError(_bad_value(str(error))) from None
    return holder.value


def _bad_value(words: str) -> str:
    """What absl says of a value or of a recipe, without its types and with what helps."""
    last = words.strip().splitlines()[-1]
    found = re.match(r"flag (--config\.\S+?)=(.*?): ", last)
    if found is None:
        return re.sub(r"^\w+Error: ", "", last)
    return (
        f"{found[1]}={found[2]} is of another kind than the value of the recipe "
        f"({last[found.end() :]}); --print_config shows all values as they are written"
    )


def user_path(text: str) -> pathlib.Path:
    """A path as typed; `~` is the home folder, also where the shell leaves it (`--out=~/x`)."""
    return pathlib.Path(text).expanduser()


def flag(name: str) -> str:
    """An option as it is typed."""
    return "--" + name.replace("_", "-")


def check_writable(path: pathlib.Path, name: str) -> None:
    """Raises ValueError if a file cannot be written, as far as that can be told beforehand."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise ValueError(f"{name} {path}: {folder} is a file; name a file in a folder")
    if not os.access(folder, os.W_OK) or os.statvfs(folder).f_flag & os.ST_RDONLY:
        raise ValueError(f"{name} {path}: {folder} cannot be written; choose another folder")


def start_logging() -> None:
    """Messages of the library as plain lines on stdout; other libraries from warnings up."""
    for stream in (sys.stdout, sys.stderr):  # file names may hold what the terminal cannot show
        stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("ccafl_jax").setLevel(logging.INFO)


def _unknown_option(path: str, overrides: list[str]) -> str:
    """Which option the recipe does not have, and the one that is most like it."""
    known = list(flatten(read_config(path, []).to_dict()))
    groups = {name.partition(".")[0] for name in known}
    typed = [word.partition("=")[0].removeprefix("--config.") for word in overrides]
    unknown = [name for name in typed if name not in known and name not in groups]
    if not unknown:
        return f"an option in {' '.join(overrides)} does not exist; --print_config shows all"
    name = unknown[0]
    last = [other for other in known if other.rpartition(".")[2] == name.rpartition(".")[2]]
    near = nearest_key(name, last or known)
    if near is None:
        return f"unknown option {name!r}; --print_config shows all"
    return f"unknown option {name!r}: did you mean {near}?"
