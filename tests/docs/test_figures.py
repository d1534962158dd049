"""The figures of the pages are what scripts/figures.py draws, and rooms import downwards."""

import xml.etree.ElementTree as ElementTree

import pytest

from scripts import figures


@pytest.mark.parametrize("name", figures.DRAWINGS)
def test_figures_are_up_to_date(name):
    drawn = figures.DRAWINGS[name]().svg()
    kept = (figures.FIGURES / f"{name}.svg").read_text()
    assert kept == drawn, "run python scripts/figures.py"
    root = ElementTree.fromstring(drawn)
    tags = [element.tag.partition("}")[2] for element in root.iter()]
    assert tags[:3] == ["svg", "title", "desc"] and tags.count("rect") > 10
    background = root.find("{http://www.w3.org/2000/svg}rect")  # dark pages do not shine through
    assert [background.get(side) for side in ("width", "height")] == root.get("viewBox").split()[2:]


def test_rooms_import_rooms_of_lower_levels_alone():
    found = figures.imports()
    above = {}
    for room, others in found.items():
        if room not in ("__init__", *figures.BASE):
            levels = {other: figures.PLACES[other][1] for other in others - set(figures.BASE)}
            above[room] = [o for o, level in levels.items() if level <= figures.PLACES[room][1]]
    assert set(above) == set(figures.PLACES)
    assert {room: others for room, others in above.items() if others} == {}
    assert found["__init__"] == {"deploy"}
    for module in figures.BASE:  # whoever imports them gets no room with them
        assert found.get(module, set()) <= set(figures.BASE)


def test_arrays_know_no_model_no_data_and_no_training():
    found = figures.imports()
    free = {"data", "models", "training", "methods", "scoring", "deploy", "report"}
    for room in ("losses", "memory", "neighbors", "pseudo_labels", "evaluation"):
        assert not found[room] & free
    assert "losses" not in found["models"] and "methods" not in found["training"]
    sources = [path.read_text() for path in (figures.ROOT / "ccafl_jax").rglob("*.py")]
    assert not any("import data_prep" in text or "from data_prep" in text for text in sources)


def test_the_reader_of_imports_sees_all_kinds(tmp_path):
    package = tmp_path / "ccafl_jax"
    (package / "data").mkdir(parents=True)
    text = "import ccafl_jax.models.clip\nfrom ccafl_jax import losses\nimport numpy\n"
    inside = "def f():\n    from ccafl_jax.training.loop import Loop\n    return Loop\n"
    (package / "data" / "a.py").write_text(text + inside)
    (package / "options.py").write_text("from ccafl_jax.data import a\n")
    found = figures.imports(package)
    assert found == {"data": {"models", "losses", "training"}, "options": {"data"}}


def test_text_that_does_not_fit_its_box_is_an_error():
    drawing = figures.Drawing("t", "d", 100)
    with pytest.raises(ValueError, match="needs"):
        drawing.box("a", (0, 0), 40, "data", "a long line of words")
    with pytest.raises(ValueError, match="leaves the figure"):
        drawing.box("a", (900, 0), 90, "data", "a")
