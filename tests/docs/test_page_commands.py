"""What the pages tell a reader to type: commands are parsed, and run in small."""

import io
import json
import os
import pathlib
import re
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

import ccafl_jax
from ccafl_jax.deploy.exporting import export_model
from ccafl_jax.methods.registry import method_of
from data_prep.synthetic import SyntheticConfig, write_folder
from scripts import command
from tests.deploy import tiny
from tests.docs.pages import ROOT, blocks, commands, read

TYPED = ["README.md", "docs/quickstart.md", "docs/commands.md", "docs/add_a_method.md"]
TYPED += ["docs/ccafl.md", "docs/calr.md", "docs/tfclip.md", "docs/cclnet.md", "docs/own_data.md"]
# One device; what other tests compiled is read.
ENVIRONMENT = os.environ | {
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    "PYTHONPATH": str(ROOT),
}


def run(*words, cwd=ROOT):
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def typed(name):
    """The training commands of a page, as words, without examples that leave something out."""
    found = [words for words in commands((ROOT / name).read_text()) if "..." not in words]
    return [words for words in found if words[1:2] == ["scripts/train.py"]]


@pytest.mark.parametrize("name", TYPED)
def test_training_commands_have_recipes_and_options_that_exist(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in typed(name):
        monkeypatch.setattr(sys, "argv", words[1:])  # where the recipe looks for its options
        recipe = words[words.index("--config") + 1]
        config = command.read_config(recipe, [w for w in words if w.startswith("--config.")])
        if "--stages" in words:
            config.stages = tuple(words[words.index("--stages") + 1].split(","))
        method = method_of(config)
        assert method.config(config.to_dict()).method == method.name


def test_pages_with_commands_are_read():
    assert sum(len(typed(name)) for name in TYPED) >= 12


@pytest.mark.ci
def test_flags_of_the_other_commands_exist():
    flags = {}
    for name in [*TYPED, "docs/export.md", "docs/convert.md", "docs/responsible_use.md"]:
        for words in commands((ROOT / name).read_text()):
            script = words[1]
            if script.startswith("scripts/") and script.endswith(".py"):
                used = {w.partition("=")[0] for w in words if re.match(r"--(?!config\.)", w)}
                flags.setdefault(script, set()).update(used)
    assert {"scripts/train.py", "scripts/evaluate.py", "scripts/export.py"} <= set(flags)
    for script, used in flags.items():
        described = set(re.findall(r"--[\w-]+", run(script, "--help")))
        assert used <= described, script


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A folder in Market-1501 layout, as small as training takes it."""
    folder = tmp_path_factory.mktemp("pages") / "people"
    write_folder(folder, SyntheticConfig(train_ids=20, test_ids=8, images=3))
    return folder


@pytest.mark.ci
def test_a_method_in_one_file(people, tmp_path):
    (text,) = blocks(read("add_a_method.md"), "python")
    (tmp_path / "identities.py").write_text(text)
    words = ["identities.py", "--root", people, "--weights", "tiny_clip", "--size", 64, 32]
    words += ["--workdir", "run", "--epochs", 2, "--iterations", 3]
    assert "mAP" in run(*words, cwd=tmp_path)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["stages"][0]["name"] == "identities" and 0 < summary["final"]["mAP"] < 1
    records = [json.loads(line) for line in open(tmp_path / "run" / "metrics.jsonl")]
    losses = [record["total"] for record in records if "total" in record]
    assert len(losses) == 2 and all(np.isfinite(losses))
    run(*words, "--resume", cwd=tmp_path)  # a run that is done writes its summary again
    run("scripts/evaluate.py", "--workdir", tmp_path / "run")


@pytest.fixture(scope="module")
def demonstration(people, tmp_path_factory):
    """A folder with `runs/demo` as the demonstration leaves it, of a few steps."""
    folder = tmp_path_factory.mktemp("demonstration")
    (train, *_) = typed("docs/quickstart.md")
    words = [word for word in train[1:] if not word.startswith(("--config.data.root", "runs/"))]
    words[words.index("--config") + 1] = f"{ROOT / 'configs/ccafl_demo.py'}:smoke"
    words[words.index("--workdir")] = "--workdir=runs/demo"
    words += [f"--config.data.root={people}", "--config.evaluation.every=0"]
    run(ROOT / words[0], *words[1:], cwd=folder)
    (folder / "runs" / "demo" / "data").mkdir()
    (folder / "runs" / "demo" / "data" / "drawn").symlink_to(people)
    return folder


@pytest.mark.ci
def test_the_quick_start(demonstration):
    done = []
    for program, script, *words in commands(read("quickstart.md")):
        if program == "python" and script != "scripts/train.py":
            run(ROOT / script, *(word.replace("*", "drawn") for word in words), cwd=demonstration)
            done.append(pathlib.Path(script).stem)
    assert done == ["evaluate", "evaluate", "export", "embed", "search"]
    assert (demonstration / "found.html").stat().st_size > 10_000
    (search,) = blocks(read("quickstart.md"), "python")
    of_run = run("-c", search, cwd=demonstration)
    assert len(of_run.splitlines()) == 3
    assert all(line.count(".jpg") == 6 for line in of_run.splitlines())
    of_export = search.replace('load("runs/demo")', 'load("exported")')
    assert of_export != search and run("-c", of_export, cwd=demonstration) == of_run


@pytest.mark.ci
def test_figures_by_group(demonstration, people):
    (groups,) = blocks(read("responsible_use.md"), "python")
    (words,) = commands(read("responsible_use.md"))
    rest = [word.replace("runs/mine", "runs/demo") for word in words[2:]]
    run(ROOT / words[1], *rest, cwd=demonstration)
    names = sorted(path.name for path in (people / "query").iterdir())
    lines = [f"query/{name},{('even', 'odd')[number % 2]}" for number, name in enumerate(names)]
    (demonstration / "groups.csv").write_text("\n".join(lines) + "\n")
    found = run("-c", groups, cwd=demonstration)
    assert re.findall(r"^(\w+): \d+ queries, mAP [01]\.\d+", found, re.M) == ["even", "odd"]


@pytest.mark.ci
def test_the_server_of_the_page(tmp_path):
    text = next(b for b in blocks(read("export.md"), "python") if "http.server" in b)
    (tmp_path / "serve.py").write_text(text)
    bundle, pictures = tiny.bundle("resnet"), list(tiny.pixels(4))
    export_model(bundle, tmp_path / "out", images=pictures, formats=("safetensors", "stablehlo"))
    command_line = [sys.executable, "serve.py", "out/stablehlo", "0"]
    server = subprocess.Popen(
        command_line, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    try:
        port = int(server.stdout.readline().split()[-1])
        file = io.BytesIO()
        Image.fromarray(pictures[0]).save(file, "PNG")

        def post(body):
            request = urllib.request.Request(f"http://127.0.0.1:{port}/", data=body)
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read())["feature"]

        expected = ccafl_jax.load(tmp_path / "out", batch=1).embed(pictures[0])[0]
        np.testing.assert_allclose(post(file.getvalue()), expected, atol=1e-5)
        with pytest.raises(urllib.error.HTTPError, match="400"):
            post(b"no image")
        with pytest.raises(urllib.error.HTTPError, match="413"):
            post(b"")
        np.testing.assert_allclose(post(file.getvalue()), expected, atol=1e-5)
    finally:
        server.kill()
        server.communicate()


def test_the_template_of_a_card_asks_for_what_matters():
    card = read("model_card_template.md")
    for word in ("Not meant for", "consent", "Deletion", "group", "Threshold", "Withdrawn"):
        assert word in card
