"""The tables of published figures and of speed: made from the files, and every command is one."""

import importlib
import json
import pathlib
import re

import pytest

from ccafl_jax.methods.registry import method_of

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def performance(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("performance")


@pytest.fixture
def published():
    return json.loads((ROOT / "results" / "published.json").read_text())


def test_the_pages_are_what_the_files_say(performance):
    for path, made in performance.pages(ROOT / "results").items():
        assert made == path.read_text(), f"{path.name}: run python scripts/performance.py"


def test_every_row_is_a_recipe_with_options_that_it_has(performance, published, monkeypatch):
    monkeypatch.chdir(ROOT)
    command = importlib.import_module("command")
    rows = [row for row in performance.rows_of(published) if row.recipe]
    found = {}
    for row in rows:
        raw = command.read_config(row.recipe, [f"--config.{option}" for option in row.options])
        method = method_of(raw)
        config = method.config(raw.to_dict())
        assert row.system.lower().replace("-", "") == method.name
        assert row.size == f"{config.data.height}x{config.data.width}"
        assert not row.stages or {*row.stages.split(",")} <= {*method.stages}
        found[row.system, row.variant, row.dataset, row.backbone] = config
    assert found["TF-CLIP", "memory", "MARS", "ViT-B/16"].diffusion.enabled is False
    assert found["CALR", "CALR", "MSMT17", "ResNet-50"].refinement.pivot == "last"
    assert found["CCLNet", "paper", "SYSU-MM01, indoor", "RN50"].evaluation.mode == "indoor"


def test_the_recipes_of_ccafl_say_what_was_published(performance, published, monkeypatch):
    monkeypatch.chdir(ROOT)
    command = importlib.import_module("command")
    known = [row for row in performance.rows_of(published) if row.system == "CCAFL"]
    rows = [row for row in known if row.headline]
    compared = published["comparison"]
    assert len(rows) == 3 and compared["rows"][-1][1] == "CCAFL"
    for row in rows:
        says = command.read_config(row.recipe, []).published.replace("rank-", "rank")
        figures = {name: float(value) for name, value in re.findall(r"(\w+) ([\d.]+)", says)}
        assert figures == row.figures
        column = 3 + compared["sets"].index(row.dataset)
        assert compared["rows"][-1][column] == [*row.figures.values()]


def test_published_figures_are_complete_and_in_range(performance, published):
    compared = published["comparison"]
    assert len(compared["rows"]) == 33
    assert {row[0] for row in compared["rows"]} == {
        "supervised",
        "unsupervised",
        "intra-camera supervised",
    }
    for _, method, _, *sets in compared["rows"]:
        for values in sets:
            known = [value for value in values or () if value is not None]
            assert all(0 < value < 100 for value in known), method
            assert known[1:] == sorted(known[1:]), method  # a later rank is no worse
    counts = {}
    for row in performance.rows_of(published):
        counts[row.system] = counts.get(row.system, 0) + 1
        assert row.figures["rank1"] > 0 and (row.recipe or row.absent)
    assert counts == {"CCAFL": 9, "CALR": 16, "TF-CLIP": 14, "CCLNet": 6}


def test_a_measured_figure_takes_its_place(performance, published, tmp_path):
    rows = performance.rows_of(published)
    row = next(row for row in rows if row.system == "CCAFL" and row.headline)
    assert performance.ours(row, performance.measured(tmp_path)) == performance.NOT_MEASURED
    kept = {"--config configs/ccafl_market1501_release.py": {"mAP": 0.8912, "rank1": 0.95}}
    (tmp_path / "reproduced.json").write_text(json.dumps(kept))
    assert performance.ours(row, performance.measured(tmp_path)) == "89.12 / 95.0"
    table = performance.published_table([row], performance.measured(tmp_path))
    cells = [cell.strip() for cell in table.splitlines()[2].split("|")]
    assert cells[6:9] == ["90.1 / 96.1", f"`{row.recipe}`", "89.12 / 95.0"]


def test_the_table_of_speed_says_machine_and_command(performance):
    lines = performance.speed_table(ROOT / "results").splitlines()[2:]
    assert len(lines) >= 9
    for line in lines:
        command = line.split("|")[5].strip().strip("`").split()
        assert (ROOT / command[1]).is_file() and line.split("|")[2].strip()
    work = json.loads((ROOT / "results" / "pseudo_labels_cpu.json").read_text())["works"]
    assert f"| {work['msmt17']['seconds']['median']:.2g} s |" in lines[2]


def test_a_stale_page_fails_the_check(performance, monkeypatch, capsys):
    made = performance.pages(ROOT / "results")
    path = next(iter(made))
    monkeypatch.setattr(performance, "pages", lambda _: made | {path: made[path] + "x"})
    monkeypatch.setattr("sys.argv", ["performance.py", "--check"])
    assert performance.main() == 1
    assert "run python scripts/performance.py" in capsys.readouterr().out
