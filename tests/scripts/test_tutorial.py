"""The tutorial from crops to a search, in a few steps, and its manifest."""

import csv
import importlib
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def tutorial(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("tutorial")


def laid_out(folder, people, cameras, images=2):
    """Empty files in the layout of crops."""
    for camera in range(cameras):
        for person in range(people):
            place = folder / f"camera{camera}" / f"person{person}"
            place.mkdir(parents=True)
            for number in range(images):
                (place / f"{number}.jpg").touch()
            (place / "note.txt").touch()
    return folder


def test_the_manifest_keeps_every_other_person_for_the_test(tutorial, tmp_path):
    rows = tutorial.manifest_rows(laid_out(tmp_path, people=4, cameras=3))
    assert len(rows) == 24
    by_split = {}
    for path, person, camera, split in rows:
        assert path.endswith((f"{camera}/{person}/0.jpg", f"{camera}/{person}/1.jpg"))
        by_split.setdefault(split, []).append((person, camera))
    assert {person for person, _ in by_split["train"]} == {"person0", "person2"}
    # One query for each person and camera, whose other image is in the gallery.
    assert (
        sorted(by_split["query"]) == sorted(set(by_split["query"])) == sorted(by_split["gallery"])
    )
    assert {person for person, _ in by_split["query"]} == {"person1", "person3"}


@pytest.mark.parametrize(("people", "cameras"), [(3, 2), (4, 1)])
def test_too_few_crops_are_an_error(tutorial, tmp_path, people, cameras):
    with pytest.raises(ValueError, match=f"found {people} people in {cameras} cameras"):
        tutorial.manifest_rows(laid_out(tmp_path, people, cameras))


def test_drawn_crops_lie_by_camera_and_person(tutorial, tmp_path):
    tutorial.draw_crops(tmp_path / "crops", people=8)
    rows = tutorial.manifest_rows(tmp_path / "crops")
    assert [path.name for path in tmp_path.iterdir()] == ["crops"]
    assert len({person for _, person, _, _ in rows}) == 8


@pytest.mark.ci
def test_from_crops_to_a_search(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "scripts/tutorial.py", "--out", str(out), "--smoke"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    with (out / "manifest.csv").open() as file:
        queries = sum(row["split"] == "query" for row in csv.DictReader(file))
    figures = json.loads((out / "figures.json").read_text())
    summary = json.loads((out / "run" / "summary.json").read_text())
    assert figures["counts"]["queries"] == queries > 0
    assert figures["mAP"] == pytest.approx(summary["final"]["mAP"], rel=1e-5)
    assert (out / "export" / "safetensors").is_dir() and (out / "export" / "stablehlo").is_dir()
    epochs = len((out / "run" / "metrics.jsonl").read_text().splitlines())
    found = finished.stdout.split("queries, and the five images of other cameras")[1]
    assert found.count("another") + found.count("same person") == 15
    # The same command goes on with what is there: nothing is trained again.
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.split("queries, and the five images of other cameras")[1] == found
    assert len((out / "run" / "metrics.jsonl").read_text().splitlines()) == epochs
    (out / "else.txt").touch()
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "holds other files (else.txt)" in refused.stderr
