"""What the pages tell a reader to type, typed."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np

from ccafl_jax.data.layouts import LAYOUTS
from ccafl_jax.data.layouts.manifest import read_manifest
from tests.data.images import encoded, random_pixels

DOCS = pathlib.Path(__file__).parents[1] / "docs"


def test_the_manifest_of_a_folder_of_crops(tmp_path):
    page = (DOCS / "own_data.md").read_text()
    (snippet,) = (s for s in re.findall(r"```python\n(.*?)```", page, re.S) if "csv.writer" in s)
    for camera in ("door", "yard"):
        for person in ("anna", "ben", "Çağ la"):
            folder = tmp_path / "crops" / camera / person
            folder.mkdir(parents=True)
            for number in range(3 if camera == "door" else 1):
                (folder / f"{number}.JPG").write_bytes(encoded(random_pixels(number), "JPEG"))
    subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, check=True)
    collection = read_manifest(tmp_path / "crops")
    counts = {part: len(records) for part, records in collection.parts.items()}
    assert counts == {"train": 8, "query": 1, "gallery": 3}


def test_the_page_of_data_sets_names_them_all():
    page = (DOCS / "data.md").read_text()
    assert [name for name in LAYOUTS if f"`{name}`" not in page] == []


def test_the_page_of_evaluation_runs(tmp_path):
    page = (DOCS / "evaluation.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", page, re.S)
    by_word = {
        word: next(snippet for snippet in snippets if word in snippet)
        for word in ("np.savez", "evaluate(load(", "rescore(", "read_threshold(")
    }
    assert len(snippets) == len(set(by_word.values())) == 4
    scripts = DOCS.parent / "scripts"

    def python(*words):
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONPATH": str(DOCS.parent)},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    python("-c", by_word["np.savez"])
    python(scripts / "evaluate.py", "--features", "mine.npz", "--save-results", "R.npz")
    assert "'metric': 'euclidean'" in python("-c", by_word["evaluate(load("])
    assert len(python("-c", by_word["rescore("]).splitlines()) == 4
    options = ["--hold-out", "0.5", "--fpir", "0.1", "--model", "m", "--out", "threshold.json"]
    python(scripts / "calibrate.py", "--features", "mine.npz", *options)
    given = "import numpy as np\nscores, fingerprint = np.linspace(-1, 1, 5), 'm'\n"
    python("-c", given + by_word["read_threshold("] + "\nassert answered.any()")
    from ccafl_jax.evaluation.protocols import PROTOCOLS

    like_market = ("dukemtmcreid", "msmt17", "msmt17_v1", "msmt17_v2", "personx", "manifest")
    alike = (*like_market, "market_like", "synthetic")
    assert [name for name in PROTOCOLS if name not in alike and f"`{name}`" not in page] == []


def test_the_page_of_pseudo_labels_runs():
    page = (DOCS / "pseudo_labels.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(snippets) == 2
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(snippets)],
        cwd=DOCS.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("20 [0 0 0 0 0]") and done.stdout.splitlines()[-1] == "20"


def test_the_page_of_search_runs(tmp_path):
    page = (DOCS / "search.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.S)
    features = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    np.savez(
        tmp_path / "gallery.npz",
        query_f=features[:2],
        gallery_f=features[2:],
        query_pid=np.arange(2),
        gallery_pid=np.arange(58),
        query_names=np.array(["a", "b"]),
        gallery_names=np.array([f"{row}.jpg" for row in range(58)]),
    )
    done = subprocess.run(
        [sys.executable, "-c", snippet],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(DOCS.parent)},
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^-?\d\.\d{4}  \d+\.jpg$", done.stdout, re.M)) == 5
