"""Docstrings name the arguments and attributes that there are; ruff's D rules see that they exist.

What ruff does not see: an argument that the signature has not (or no longer), another order than
the signature's, attributes of a dataclass that are no fields, and examples that fail.
"""

import ast
import doctest
import importlib
import pathlib
import re
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SOURCES = sorted((ROOT / "ccafl_jax").rglob("*.py"))
WITH_EXAMPLES = [path for path in SOURCES if ">>> " in path.read_text()]
HEADINGS = ("Args", "Attributes", "Methods", "Raises", "Returns", "Source", "Yields")
ENTRY = re.compile(r"(\*{0,2}\w+(?:, \*{0,2}\w+)*):(\s|$)")


def section(docstring: str, heading: str) -> list[str]:
    """The names that a section of a docstring describes; `a, b:` are two."""
    lines = docstring.splitlines()
    begin = next((i for i, line in enumerate(lines) if re.match(rf"{heading}\b.*:$", line)), None)
    names: list[str] = []
    depth = None
    for line in lines[begin + 1 :] if begin is not None else ():
        text = line.strip()
        if text.split(":")[0] in HEADINGS:
            break
        if not text:
            continue
        indent = len(line) - len(line.lstrip())
        depth = indent if depth is None else depth
        if indent < depth:
            break
        if indent == depth and (found := ENTRY.match(text)):
            names += [name.strip("* ") for name in found[1].split(",")]
    return names


def parameters(function: ast.FunctionDef) -> list[str]:
    """The arguments of a function in their order, without those that methods are bound to."""
    given, decorators = function.args, map(ast.unparse, function.decorator_list)
    bound = "cls" if "classmethod" in decorators else "self"
    names = [argument.arg for argument in (*given.posonlyargs, *given.args)]
    names += [given.vararg.arg] if given.vararg else []
    names += [argument.arg for argument in given.kwonlyargs]
    names += [given.kwarg.arg] if given.kwarg else []
    return names[names[:1] == [bound] :]


def documented(*kinds):
    """Every function or class with a docstring: where it is, its node and the docstring."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            text = ast.get_docstring(node) if isinstance(node, kinds) else None
            if text:
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node, text


def test_ruff_sees_that_docstrings_exist():
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert "D1" in lint["select"] and "D4" in lint["select"]
    assert not {"D100", "D101", "D102", "D103", "D104", "D417"} & set(lint["ignore"])
    assert list(lint["per-file-ignores"]) == ["tests/**"]


def test_args_are_those_of_the_signature():
    wrong, seen = [], 0
    for where, node, text in documented(ast.FunctionDef):
        names = section(text, "Args")
        seen += bool(names)
        if names and names != parameters(node):
            wrong.append(f"{where}: docstring {names}, signature {parameters(node)}")
    assert wrong == [] and seen > 300


def test_attributes_of_dataclasses_are_fields():
    wrong, seen = [], 0
    for where, node, text in documented(ast.ClassDef):
        if "dataclass" not in "".join(map(ast.unparse, node.decorator_list)):
            continue
        fields = {part.target.id for part in node.body if isinstance(part, ast.AnnAssign)}
        names = section(text, "Attributes")
        seen += bool(names)
        if extra := sorted(set(names) - fields):
            wrong.append(f"{where}: {extra} are no fields")
    assert wrong == [] and seen > 50


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.stem)
def test_examples_in_docstrings_run(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed


def test_the_reader_of_docstrings_sees_what_is_wrong():
    text = "Does.\n\nArgs:\n  a, b: two\n    of a kind: here.\n  *rest: more.\n\nReturns:\n  c: no."
    assert section(text, "Args") == ["a", "b", "rest"]
    assert section("Args:\na: one.\n\nRaises:\n  E: if.", "Args") == ["a"]
    function = ast.parse("def f(self, a, /, b, *rest, c, **more): pass").body[0]
    assert parameters(function) == ["a", "b", "rest", "c", "more"]
