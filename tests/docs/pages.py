"""What the tests of the pages share: tables, code blocks, and options that pages name."""

import dataclasses
import importlib
import pathlib
import re
import typing

from ccafl_jax.methods.registry import METHODS

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"

OPTION = re.compile(r"^(?:--config\.)?([a-z_]+(?:\.[a-z_0-9]+)?)(?:=(\S+))?$")


def read(name: str) -> str:
    return (DOCS / name).read_text()


def blocks(page: str, language: str = "") -> list[str]:
    """The code blocks of a language; "" means those without one, which hold commands."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.S | re.M)


def commands(page: str) -> list[list[str]]:
    """The commands in the blocks of a page, as words; lines that a backslash ends are joined."""
    lines = "\n".join(blocks(page)).replace("\\\n", " ").splitlines()
    return [line.split() for line in lines if line.startswith(("python ", "bash "))]


def sections(page: str) -> dict[str, str]:
    """The text below each heading of the second level."""
    parts = re.split(r"^## (.*)$", page, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(text: str) -> list[list[str]]:
    """The cells of all rows of tables, without heads and rulers."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rulers = {i for i, line in enumerate(lines) if re.fullmatch(r"[|\-: ]+", line)}
    kept = [line for i, line in enumerate(lines) if i not in rulers and i + 1 not in rulers]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in kept]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def options_of(method: str) -> type:
    module = importlib.import_module(f"ccafl_jax.methods.{method}.config")
    return getattr(module, METHODS[method][0])


def field_of(options: type, path: str) -> typing.Any:
    """The type of an option, `group.name` or `name`; None where there is no such option."""
    found: typing.Any = options
    for name in path.split("."):
        if not dataclasses.is_dataclass(found):
            return None
        found = typing.get_type_hints(found).get(name)
    return found


def value_of(hint: typing.Any, text: str) -> typing.Any:
    """A value as it is typed on the command line."""
    if hint is bool:
        return {"True": True, "False": False}[text]
    return hint(text) if hint in (int, float) else text
