"""The command that checks and prepares data sets, as a user types it."""

import importlib.util
import json
import pathlib
import sys

import numpy as np
import pytest

from ccafl_jax.data.known import PUBLISHED, Totals
from ccafl_jax.data.layouts import read_folder
from ccafl_jax.data.prepared import open_prepared
from data_prep.synthetic import SyntheticConfig, layout_of, write_folder, write_layout
from tests.data.images import encoded, random_pixels

ROOT = pathlib.Path(__file__).parents[2]
SIZES = SyntheticConfig(train_ids=4, test_ids=3, cameras=3, height=32, width=16)


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        location = ROOT / "scripts" / "prepare_data.py"
        spec = importlib.util.spec_from_file_location("prepare_data", location)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    return module


@pytest.fixture
def command(script, monkeypatch, capsys):
    """Runs the command; gives its exit status, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["prepare_data.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ending:
            script.main()
        captured = capsys.readouterr()
        return ending.value.code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / "people"
    write_folder(folder, SIZES)
    return folder


def test_help_holds_examples_and_the_data_sets(command):
    status, out, _ = command("--help")
    assert status == 0 and "examples:" in out and "msmt17_v1" in out


def test_check_prints_counts_and_writes_nothing(command, raw, tmp_path):
    before = sorted(path.name for path in raw.rglob("*"))
    status, out, err = command("--dataset", "synthetic", "--raw", raw, "--check")
    assert (status, err) == (0, "")
    assert "images per camera:" in out and "(camera, id) classes" in out
    assert sorted(path.name for path in raw.rglob("*")) == before


def test_differences_from_the_published_counts(command, raw, tmp_path):
    asked = ("--dataset", "market1501", "--raw", raw)
    for arguments in (("--check",), ("--out", tmp_path)):
        status, out, err = command(*asked, *arguments)
        assert status == 1  # not 2: nothing is wrong but the counts
        assert "differs: train: 4 ids, published 751" in out
        assert err.startswith("error: ") and "--allow-partial" in err and len(err.split("\n")) == 2
    assert list(tmp_path.iterdir()) == []
    status, out, _ = command(*asked, "--out", tmp_path, "--allow-partial")
    assert status == 0 and "prepared: " in out
    meta = json.loads((tmp_path / "market1501/1.0.0/columns/meta.json").read_text())
    assert "train: 4 ids, published 751" in meta["differences"]
    status, out, _ = command("--dataset", "market1501", "--out", tmp_path, "--check")
    assert status == 0 and "everything is as it was prepared" in out  # accepted then
    (warning,) = open_prepared(tmp_path).report["warnings"]
    assert "it is not the published set: train: " in warning


def test_published_counts_pass(command, raw, monkeypatch):
    monkeypatch.setitem(PUBLISHED, "market1501", {"train": Totals(ids=4, cameras=3)})
    status, out, _ = command("--dataset", "market1501", "--raw", raw, "--check")
    assert status == 0 and "all counts are the published ones" in out


def test_broken_images_are_named_or_left_out(command, tmp_path):
    write_folder(tmp_path / "raw", SIZES)
    broken = sorted((tmp_path / "raw" / "query").iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:200])
    asked = ("--dataset", "synthetic", "--raw", tmp_path / "raw", "--out", tmp_path / "out")
    status, _, err = command(*asked)
    assert status == 2 and str(broken) in err and "--skip-broken N" in err
    status, out, _ = command(*asked, "--skip-broken", 1)
    assert status == 0 and f"left out: query/query/{broken.name}: not a readable image" in out
    status, out, _ = command("--dataset", "synthetic", "--out", tmp_path / "out", "--check")
    assert status == 0 and f"left out when it was prepared: query/query/{broken.name}" in out


def test_distractors(command, raw, tmp_path):
    (tmp_path / "500k").mkdir()
    for row in range(3):
        (tmp_path / "500k" / f"{row}.jpg").write_bytes(encoded(random_pixels(row), "JPEG"))
    asked = ("--dataset", "market_like", "--raw", raw, "--out", tmp_path / "out")
    assert command(*asked, "--distractors", tmp_path / "500k")[0] == 0
    pid = np.load(tmp_path / "out/market_like/1.0.0/columns/distractors.pid.npy")
    np.testing.assert_array_equal(pid, [0, 0, 0])
    status, _, err = command("--dataset", "mars", "--raw", raw, "--check", "--distractors", raw)
    assert status == 2 and "mars takes no distractors" in err


@pytest.fixture(scope="module")
def sysumm01(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modalities") / "SYSU-MM01"
    sizes = {"train_ids": 3, "val_ids": 1, "test_ids": 2, "images": 1, "height": 32, "width": 16}
    write_layout(folder, "sysumm01", layout_of("sysumm01").config(**sizes))
    return folder


def test_arrays_of_the_release(command, sysumm01, tmp_path):
    asked = ("--dataset", "synthetic_sysumm01", "--raw", sysumm01, "--arrays", tmp_path)
    assert command(*asked, "--check")[0] == 0 and list(tmp_path.iterdir()) == []
    status, out, err = command(*asked)
    assert (status, err) == (0, "")
    assert "in 6 files: " in out and str(tmp_path / "train_{rgb,ir}_resized_") in out
    arrays = read_folder("synthetic_sysumm01", tmp_path)
    folder = read_folder("synthetic_sysumm01", sysumm01)
    assert list(arrays.parts["train"].path) == list(folder.parts["train"].path)
    status, _, err = command(*asked)
    assert status == 2 and "train_rgb_resized_img.npy is already there; name another" in err
    assert err.endswith(", or --overwrite to make all six again\n") and err.count("\n") == 1
    assert command(*asked, "--overwrite")[0] == 0


def test_arrays_of_other_counts_than_published(command, sysumm01, tmp_path):
    asked = ("--dataset", "sysumm01", "--raw", sysumm01, "--arrays", tmp_path)
    status, _, err = command(*asked)
    assert status == 1 and "--allow-partial" in err and list(tmp_path.iterdir()) == []
    assert command(*asked, "--allow-partial")[0] == 0 and len(list(tmp_path.iterdir())) == 6


def test_all_problems_of_a_manifest_are_printed(command, tmp_path):
    (tmp_path / "manifest.csv").write_text("path,pid,camid,split\na.jpg,1,1,trian\nb.jpg,x,,test\n")
    status, out, err = command("--dataset", "manifest", "--raw", tmp_path, "--check")
    assert status == 2 and "line 2" in out and "line 3" in out and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dataset", "market151", "--raw", "."), "did you mean market1501?"),
        (("--dataset", "market1501"), "--raw DIR is missing"),
        (("--dataset", "market1501", "--raw", "."), "--out DIR is missing"),
        (("--dataset", "market1501", "--raw", "nowhere", "--check"), "is not a folder; expected"),
        (("--dataset", "market1501", "--raw", ".", "--skip-broken", "-1"), "expected 0 or more"),
        (("--dataset", "market1501", "--raw", ".", "--workers", "0"), "expected 1 or more"),
        (("--dataset", "regdb", "--raw", ".", "--arrays", "."), "a form of SYSU-MM01 alone (sysu"),
        (("--dataset", "sysumm01", "--arrays", "."), "--raw DIR is missing"),
        (("--dataset", "sysumm01", "--arrays", ".", "--out", "."), "two forms of a data set"),
        (("--dataset", "sysumm01", "--arrays", ".", "--skip-broken", "1"), "whole images only"),
        (("--dataset", "market1501", "--out", "nowhere", "--check"), "holds no prepared data set"),
    ],
)
def test_errors_take_one_line(command, arguments, message):
    status, _, err = command(*arguments)
    assert status == 2 and err.startswith("error: ") and message in err and err.count("\n") == 1
