"""Pages name options that exist, with values they take, and messages that the source holds."""

import ast
import re

import pytest

from ccafl_jax.options import from_mapping
from tests.docs.pages import (
    OPTION,
    ROOT,
    code,
    field_of,
    options_of,
    read,
    rows,
    sections,
    value_of,
)

TITLES = {"CCAFL": "ccafl", "CALR": "calr", "TF-CLIP": "tfclip", "CCLNet": "cclnet"}


def named(cell):
    """The options that a cell names, with their values where it states them."""
    found = [OPTION.match(word) for word in code(cell)]
    return [(m[1], m[2]) for m in found if m and ("." in m[1] or m[2])]


def set_options(method, pairs):
    """The options of a method with some of them changed."""
    values: dict = {}
    for path, value in pairs:
        hint = field_of(options_of(method), path)
        group, _, name = path.rpartition(".")
        target = values.setdefault(group, {}) if group else values
        target[name] = value_of(hint, value)
    return from_mapping(options_of(method), values)


@pytest.mark.parametrize("title", TITLES)
def test_differences_are_restored_by_options(title):
    method, seen = TITLES[title], 0
    page = sections(read("differences.md"))
    for difference, *_, restored in rows(page["All methods"]) + rows(page[title]):
        pairs = [pair for pair in named(restored) if field_of(options_of(method), pair[0])]
        words = [word for word in code(restored) if re.match(r"\w+\.\w+|\w+=", word)]
        functions = [word for word in words if word.startswith(("ccafl_jax.", "distance="))]
        assert len(pairs) == len(words) - len(functions), (difference, restored)
        changed = set_options(method, [pair for pair in pairs if pair[1]])
        assert not any(value for _, value in pairs) or changed != options_of(method)(), difference
        seen += len(pairs)
    assert seen >= 4


@pytest.mark.parametrize("title", TITLES)
def test_published_options_have_counterparts(title):
    method, seen = TITLES[title], 0
    for published, here in rows(sections(read("commands.md"))[title]):
        assert here, published
        for path, value in named(here):
            hint = field_of(options_of(method), path)
            assert hint is not None, f"{published}: {method} has no option {path}"
            if value and value != "DIR":
                set_options(method, [(path, value)])
            seen += 1
        for recipe in re.findall(r"configs/\w+\.py", here):
            assert (ROOT / recipe).is_file()
    assert seen >= 14


def test_the_options_of_a_page_are_read_as_they_are_typed():
    assert named("`a.b=1`, `c.d` and `words` or `keep_best=test`") == [
        ("a.b", "1"),
        ("c.d", None),
        ("keep_best", "test"),
    ]
    assert field_of(options_of("ccafl"), "ical.epsilon") is float
    assert field_of(options_of("ccafl"), "ical.epsilo") is None
    with pytest.raises(ValueError, match="must be one of"):
        set_options("calr", [("refinement.pivot", "first")])


def texts_of_source():
    """Every text of the package and of its scripts, with … for what is put in."""
    for folder in ("ccafl_jax", "scripts"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = (v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
                    yield "".join(parts)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_messages_that_are_quoted_occur_in_the_source():
    source = {" ".join(text.split()) for text in texts_of_source()}
    quoted = [m for cells in rows(read("troubleshooting.md")) for m in code(cells[0])]
    absent = [m for m in quoted if not any(m.strip("… ") in text for text in source)]
    assert absent == [] and len(quoted) > 50


def test_nothing_fetches_but_weights():
    words = re.compile(r"^\s*(?:import|from) (?:urllib|requests|http|ftplib|socket)\b", re.M)
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("ccafl_jax", "data_prep")
        for path in (ROOT / folder).rglob("*.py")
        if words.search(path.read_text())
    }
    # Processes of a run find each other; neither of these files fetches anything.
    assert found <= {"ccafl_jax/training/relay.py", "ccafl_jax/training/processes.py"}
    hub = [p.name for p in (ROOT / "ccafl_jax").rglob("*.py") if "huggingface_hub" in p.read_text()]
    assert hub == ["hub.py"]
