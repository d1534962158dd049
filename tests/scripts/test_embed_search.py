"""Embedding and searching as a user types it."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ccafl_jax.deploy.run_folder import write_run
from ccafl_jax.scoring import feature_set
from tests.deploy import tiny

ROOT = pathlib.Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}


def run(script, *arguments, status=0):
    done = subprocess.run(
        [sys.executable, f"scripts/{script}.py", *map(str, arguments)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    if status:
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
        return lines[0]
    return done.stdout


@pytest.fixture(scope="module")
def scripts():
    """The modules embed and search of the commands."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        yield importlib.import_module("embed"), importlib.import_module("search")
    finally:
        sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A run, a gallery of four people in two cameras with a broken file, and their queries."""
    folder = tmp_path_factory.mktemp("work")
    write_run(folder / "run", tiny.bundle("resnet"))
    rng = np.random.default_rng(0)
    for part, cameras in (("gallery", (1, 2)), ("query", (3,))):
        (folder / part).mkdir()
        for pid, image in enumerate(tiny.pixels(4)):
            for camera in cameras:
                noise = rng.integers(-9, 10, image.shape)
                seen = np.clip(image + noise, 0, 255).astype(np.uint8)
                Image.fromarray(seen).save(folder / part / f"{pid:04}_c{camera}_<1>.png")
    (folder / "gallery" / "0009_c1_0.png").write_bytes(b"broken")
    return folder


@pytest.mark.ci
def test_from_pictures_to_a_page(work, tmp_path):
    model = ("--model", work / "run", "--batch", 4)
    embed = (*model, "--images", work / "gallery", "--queries", work / "query", "--out")
    error = run("embed", *embed, tmp_path / "f.npz", status=2)
    assert "1 of 13 images cannot be read" in error and "0009_c1_0.png" in error
    assert list(tmp_path.iterdir()) == []
    said = run("embed", *embed, tmp_path / "f.npz", "--skip-unreadable")
    assert "left out: " in said and "1 of 13 images cannot be read, left out" in said
    assert "12 x 256 features (4 query, 8 gallery; 4 identities, 3 cameras)" in said
    assert [path.name for path in tmp_path.iterdir()] == ["f.npz"]

    figures = json.loads(run("evaluate", "--features", tmp_path / "f.npz").splitlines()[-1])
    assert figures["queries"] == 4 and figures["rank1"] == 1.0
    calibrate = ("--features", tmp_path / "f.npz", "--fpr", "0.3", "--out", tmp_path / "t.json")
    run("calibrate", *calibrate)

    said = run("search", "--gallery", tmp_path / "f.npz", "--query", work / "query", "--top", 2)
    lines = said.splitlines()
    for pid in range(4):
        assert lines[3 * pid] == f"{pid:04}_c3_<1>.png"
        for line in lines[3 * pid + 1 : 3 * pid + 3]:
            assert f"gallery/{pid:04}_c" in line and f"identity {pid}, camera " in line

    index = tmp_path / "door.index"
    made = ("--gallery", tmp_path / "f.npz", "--compress", "int8", "--save-index", index)
    assert "8 images, int8" in run("search", *made)
    assert "pass --overwrite" in run("search", *made, status=2)
    run("search", *made, "--overwrite")
    files = ("--sheet", tmp_path / "s.jpg", "--html", tmp_path / "s.html")
    files += ("--json", tmp_path / "s.json")
    Image.fromarray(255 - tiny.pixels(1, seed=5)[0]).save(tmp_path / "nobody.png")
    asked = ("--query", work / "query", tmp_path / "nobody.png", "--rescore", 8)
    given = ("--index", index, *asked, "--threshold", tmp_path / "t.json", *files)
    run("search", *given)
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["form"] == "int8" and len(found["queries"]) == 5
    scores = [hit["score"] for query in found["queries"] for hit in query["hits"]]
    assert min(scores) >= found["threshold"] and found["queries"][4]["hits"] == []
    assert "data:image/jpeg;base64," in (tmp_path / "s.html").read_text()
    with Image.open(tmp_path / "s.jpg") as sheet:
        assert sheet.height > 5 * 128

    features = tmp_path / "q.parquet"
    run("embed", *model, "--images", work / "query", "--out", features)
    again = run("search", "--index", index, "--query-features", features, "--top", 2)
    assert again.splitlines()[:1] == lines[:1] and len(again.splitlines()) == 12

    write_run(tmp_path / "other", tiny.bundle("vit"))
    other = ("--model", tmp_path / "other", "--camera", 1, "--query", work / "query")
    assert "embed both with one model" in run("search", "--index", index, *other, status=2)
    rough = ("--index", index, "--query", work / "query", "--threshold", tmp_path / "t.json")
    assert "add --rescore 100" in run("search", *rough, status=2)


@pytest.fixture
def gallery(tmp_path):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(6, 8)).astype(np.float32)
    arrays = {"query_f": features[:2], "gallery_f": features[2:]}
    np.savez(tmp_path / "f.npz", **arrays, query_pid=np.arange(2), gallery_pid=np.arange(4))
    return tmp_path / "f.npz"


def test_features_of_unknown_models(scripts, gallery, capsys):
    _, search = scripts

    def run(*words):
        search.search(search.parser().parse_args(list(map(str, words))))
        return capsys.readouterr().out

    words = ("--gallery", gallery, "--query-features", gallery)
    with pytest.raises(ValueError, match="does not say which model made it"):
        run(*words)
    Image.fromarray(tiny.pixels(1)[0]).save(gallery.parent / "a.png")
    with pytest.raises(ValueError, match="names the model ''"):
        run("--gallery", gallery, "--query", gallery.parent / "a.png")
    made = feature_set.load(gallery)
    made.meta["fingerprint"] = "a" * 64
    feature_set.save(gallery, made)
    assert len(run(*words).splitlines()) == 2 * 5
    assert len(run(*words, "--limit", 1).splitlines()) == 1 * 5 + 1
    exact = run(*words, "--top", 3)
    assert run(*words, "--top", 3, "--compress", "pca-4", "--rescore", 4) == exact
    assert run(*words, "--top", 3, "--metric", "euclidean") != exact
    with pytest.raises(ValueError, match="--rescore is of compressed galleries"):
        run(*words, "--rescore", 4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected one of --gallery and --index"),
        (["--gallery", "f.npz", "--index", "i"], "expected one of --gallery and --index"),
        (["--gallery", "f.npz"], "nothing to look for"),
        (["--gallery", "f.npz", "--query", "a", "--query-features", "b"], "found both"),
        (["--index", "i", "--query", "a", "--compress", "int8"], "--compress makes an index"),
        (["--gallery", "f.npz", "--save-index", "i", "--lean"], "--lean is of a compressed index"),
        (["--gallery", "f.npz", "--query", "a", "--top", "0"], "--top is 0; choose 1 or more"),
        (["--gallery", "f.npz", "--query", "a", "--sheet", "a.gif"], "must end in .png"),
        (["--gallery", "nowhere.npz", "--query", "a"], "no file nowhere.npz"),
        (["--index", "nowhere", "--query", "a"], "nowhere holds no index.json"),
    ],
)
def test_errors_of_searches(scripts, words, message):
    _, search = scripts
    with pytest.raises((ValueError, OSError)) as error:
        search.search(search.parser().parse_args(words))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_errors_of_embedding(scripts, work, tmp_path):
    embed, _ = scripts
    model = ["--model", work / "run", "--images"]
    for words, message in (
        ([*model, work / "query", "--out", tmp_path / "f.txt"], "must end in .npz or .parquet"),
        ([*model, "nowhere", "--out", tmp_path / "f.npz"], "no such file or folder"),
        (["--model", "none", "--images", work / "query", "--out", tmp_path / "f.npz"], "none: no"),
        ([*model, work / "query", "--camera", 1, "--out", tmp_path / "f.npz"], "no camera embed"),
        ([*model, work / "query", "--out", tmp_path], "must end in"),
    ):
        with pytest.raises((ValueError, OSError)) as error:
            embed.embed(embed.parser().parse_args(list(map(str, words))))
        assert message in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ci
@pytest.mark.parametrize("script", ["embed", "search"])
def test_help_holds_examples(script):
    assert "examples:" in run(script, "--help")
