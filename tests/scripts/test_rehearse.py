"""The rehearsal: the test split it makes up, and a short one from end to end."""

import collections
import importlib
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TRAIN = [
    f"{pid:04d}_c{camera}s1_{frame:06d}_01.jpg"
    for pid in (2, 7, 10, 11, 23, 27)
    for camera in (1, 3, 6)
    for frame in range(1, 3 if pid < 20 else 2)
]


@pytest.fixture
def market_like(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("proving.market_names").market_like


def test_the_test_split_has_the_size_of_the_published_one(market_like):
    paths = market_like(TRAIN)
    by_folder = collections.Counter(path.partition("/")[0] for path in paths)
    junk = sum("/-1_" in path for path in paths)
    assert len(set(paths)) == len(paths)
    assert by_folder["bounding_box_train"] == len(TRAIN)
    assert by_folder["query"] == 3368
    assert by_folder["bounding_box_test"] - junk == 15_913
    assert junk == 3819
    queries = [path.partition("/")[2] for path in paths if path.startswith("query/")]
    cameras = collections.defaultdict(set)
    for name in queries:
        cameras[name[:4]].add(name[5:7])
    assert len(cameras) == 750 and not cameras.keys() & {name[:4] for name in TRAIN}
    assert min(map(len, cameras.values())) >= 2
    gallery = {path[18:25] for path in paths if path.startswith("bounding_box_test/")}
    assert {name[:7] for name in queries} <= gallery


def test_names_of_another_kind_are_refused(market_like):
    with pytest.raises(ValueError, match=r"'0001_c2_f0046182\.jpg' is no name of Market-1501"):
        market_like(["0001_c2_f0046182.jpg"])


@pytest.mark.slow
def test_a_short_rehearsal(tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(TRAIN) + "\n")
    schedule = {"iterations": 1, "epochs": 3, "intra_epochs": 1, "text_start": 1}
    schedule |= {"ical_start": 2, "ical_end": 3}
    words = [f"--config.schedule.{key}={value}" for key, value in schedule.items()]
    words += ["--config.prompts.epochs=1", "--config.sampler.classes=4", "--config.devices=1"]
    command = [
        *(sys.executable, "scripts/rehearse.py", "--names", str(tmp_path / "names.txt")),
        *("--workdir", str(tmp_path / "w"), "--json", str(tmp_path / "r.json")),
        *("--scale", "0.005", *words),
    ]
    for _ in range(2):  # the second time all is done
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["set"]["images"] == len(TRAIN)
    assert found["set"]["classes"] == 18 and found["set"]["classes_of_one_image"] == 6
    assert found["epochs"] == {"prompts": 1, "encoder": 3}
    assert [epoch for epoch, _ in found["curves"]["association_precision"]] == [1, 2, 3]
    assert {"prompts", "steps", "extraction", "evaluation"} <= found["seconds"].keys()
    assert min(found["seconds"].values()) >= 0 and found["peak_bytes"] > 1e8
