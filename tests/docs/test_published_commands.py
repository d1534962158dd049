"""Every command, recipe and option of docs/commands.md, run in small in the layout it names."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx

from ccafl_jax.deploy.evaluate import open_test_set
from ccafl_jax.deploy.features import extract
from ccafl_jax.deploy.loading import load_bundle
from ccafl_jax.models.clip import CLIP, ViTConfig
from ccafl_jax.models.clip.weights import load_clip, save_clip
from ccafl_jax.report.runs import read_finished_run
from ccafl_jax.scoring.feature_set import load
from data_prep.synthetic import (
    SyntheticConfig,
    folder_names,
    write_folder,
    write_layout,
    write_names,
)
from data_prep.synthetic.layouts import LAYOUTS
from scripts.command import read_config
from tests.docs.pages import ROOT, code, commands, field_of, options_of, read, rows, sections

TINY = ROOT / "ccafl_jax" / "assets" / "tiny_clip"
TITLES = {"CCAFL": "ccafl", "CALR": "calr", "TF-CLIP": "tfclip", "CCLNet": "cclnet"}
RECIPES = {
    title: sorted(set(re.findall(r"configs/\w+\.py", section)))
    for title, section in sections(read("commands.md")).items()
}

# Options of the page that a run sets, and others that keep it small.
OPTIONS = {
    "CCAFL": {
        "seed": 2,
        "devices": 2,
        "data.height": 64,
        "data.width": 32,
        "sampler.classes": 4,
        "sampler.images": 4,
        "prompts.epochs": 1,
        "schedule.epochs": 4,
        "schedule.iterations": 2,
        "schedule.intra_epochs": 1.0,
        "schedule.text_start": 2.0,
        "schedule.ical_start": 3.0,
        "schedule.ical_end": 4.0,
        "icdl.w": 0.5,
        "icdl.temperature": 0.07,
        "icdl.memory_momentum": 0.2,
        "inter.temperature": 0.07,
        "inter.memory_momentum": 0.2,
        "ical.epsilon": 0.7,
        "optimizer.classifier_lr": 1e-3,
        "optimizer.classifier_weight_decay": 1e-4,
        "optimizer.milestones": (2,),
        "evaluation.every": 2,
    },
    "CALR": {
        "seed": 2,
        "data.height": 64,
        "data.width": 32,
        "model.pooling": "mean",
        "local.epochs": 1,
        "local.iterations": 2,
        "local.classes": 4,
        "local.images": 2,
        "local.k1": 6,
        "local.k2": 2,
        "clustering.k": 8,
        "clustering.min_similarity": 0.4,
        "clustering.min_size": 2,
        "contrast.temperature": 0.07,
        "contrast.memory_momentum": 0.2,
        "contrast.memory_update": "hard",
        "sampler.classes": 4,
        "sampler.images": 4,
        "sampler.across_cameras": False,
        "optimizer.base_lr": 1e-4,
        "optimizer.weight_decay": 1e-4,
        "optimizer.milestones": (1,),
        "schedule.epochs": 2,
        "schedule.iterations": 2,
        "alignment.epochs": 1,
        "evaluation.every": 1,
    },
    "TF-CLIP": {
        "data.height": 32,
        "data.width": 16,
        "model.patch_stride": 4,
        "model.camera_embedding": True,
        "model.camera_scale": 2.0,
        "model.feature": "pooled",
        "clips.frames": 2,
        "prompt.layers": 1,
        "loss.id": 0.5,
        "loss.triplet": 0.5,
        "loss.memory": 0.5,
        "loss.smoothing": 0.2,
        "loss.soft_margin": True,
        "sampler.classes": 2,
        "sampler.tracklets": 2,
        "schedule.epochs": 2,
        "schedule.iterations": 2,
    },
    "CCLNet": {
        "seed": 2,
        "data.height": 64,
        "data.width": 32,
        "clustering.k1": 6,
        "clustering.k2": 2,
        "clustering.eps": 0.7,
        "clustering.min_samples": 2,
        "contrast.temperature": 0.07,
        "contrast.memory_momentum": 0.2,
        "contrast.memory_update": "hard",
        "swap.start": 1,
        "swap.scale": 0.2,
        "sampler.classes": 2,
        "sampler.images": 4,
        "prompts.epochs": 1,
        "prompts.batch": 32,
        "prompts.base_lr": 1e-3,
        "prompts.weight_decay": 1e-3,
        "prompts.min_lr": 1e-5,
        "prompts.warmup_from": 1e-4,
        "prompts.warmup_epochs": 1,
        "schedule.prepare_epochs": 2,
        "schedule.train_epochs": 2,
        "schedule.iterations": 2,
        "optimizer.base_lr": 1e-3,
        "optimizer.weight_decay": 1e-3,
        "optimizer.bias_lr_factor": 1.0,
        "optimizer.milestones": (1,),
        "optimizer.gamma": 0.5,
        "optimizer.warmup_factor": 0.1,
        "optimizer.warmup_epochs": 1,
        "evaluation.every": 1,
        "evaluation.batch": 32,
    },
}
OF_RECIPES = {
    "configs/ccafl_msmt17.py": {"data.name": "msmt17_v1"},
    "configs/cclnet_sysu_mm01.py": {"data.name": "sysumm01", "evaluation.mode": "indoor"},
    "configs/cclnet_regdb.py": {"model.patch_stride": 4},
}
# Label files of one run are the labels of another; RUN is what the page's commands left.
CONTINUED = {
    "configs/calr_veri776.py": (
        "--stages local,global --config.local.labels=RUN/local",
        "local.labels",
    ),
    "configs/cclnet_sysu_mm01.py": (
        "--stages prompts,train --config.text.labels=RUN/pseudo_labels",
        "text.labels",
    ),
}
SIZES = {
    "veri776": {"train_ids": 12, "test_ids": 5, "cameras": 4, "images": 4},
    "mars": {"train_ids": 4, "test_ids": 4, "tracklets": 2, "frames": 6},
    "lsvid": {"train_ids": 4, "test_ids": 4, "tracklets": 2, "frames": 6},
    "ilidsvid": {"ids": 8, "frames": 6},
    "sysumm01": {"train_ids": 8, "val_ids": 2, "test_ids": 4, "images": 4},
    "regdb": {"ids": 12},
}
SMALL = SyntheticConfig(train_ids=24, test_ids=8, cameras=4, images=4, height=64, width=32)


PERSON = re.compile(r"(\d{4})_c(\d)s\d_(\d+)_\d+(\.jpg)")


def draw(name, folder):
    """A small set of synthetic people in the layout of a data set."""
    if name in SIZES:
        sizes = SIZES[name] | {"height": 64, "width": 32}
        write_layout(folder, name, LAYOUTS[name].config(**sizes))
        return
    names = folder_names(SMALL)
    if name == "market1501":
        write_folder(folder, SMALL)
        return
    people = {
        part: [n for n in names[part] if PERSON.match(n) and n[:4] != "0000"] for part in names
    }
    if name == "dukemtmcreid":
        listed = {part: [PERSON.sub(r"\1_c\2_f\3\4", n) for n in people[part]] for part in names}
        write_names(folder, [f"{part}/{n}" for part in names for n in listed[part]], SMALL)
        return
    listed = {part: [as_msmt17(*PERSON.match(n).groups()) for n in people[part]] for part in names}
    images = {part: "train" if part == "bounding_box_train" else "test" for part in names}
    write_names(folder, [f"{images[part]}/{n}" for part in names for n in listed[part]], SMALL)
    train, *test = listed.values()
    for kind, some in zip(
        ("train", "val", "query", "gallery"), (train[:-9], train[-9:], *test), strict=True
    ):
        lines = [f"{n} {int(n[:4])}" for n in some]
        (folder / f"list_{kind}.txt").write_text("\n".join(lines) + "\n")


def as_msmt17(pid, camera, frame, ending):
    return (
        f"{pid}/{pid}_{int(frame) % 1000:03d}_{int(camera):02d}_0303morning_{frame[-4:]}_0{ending}"
    )


def write_vit(folder, size):
    """A random CLIP with a small vision transformer, beside the tiny CLIP's vocabulary."""
    text = load_clip(TINY, image_size=(64, 32)).config
    vision = ViTConfig(
        layers=2, width=32, heads=2, mlp_width=64, patch_size=8, image_size=size, stride=8
    )
    clip = CLIP(dataclasses.replace(text, vision=vision), rngs=nnx.Rngs(0))
    save_clip(clip, folder)
    for name in ("merges.txt", "tokenizer_config.json", "vocab.json"):
        shutil.copy(TINY / name, folder)


def workdir_of(words):
    return words[words.index("--workdir") + 1]


def typed(title, recipe):
    """The page's commands for the runs of a recipe."""
    found = [words[1:] for words in commands(sections(read("commands.md"))[title])]
    mine = {workdir_of(words) for words in found if recipe in words}
    return [words for words in found if workdir_of(words) in mine]


def told(recipe, found):
    """Commands that the page tells in words: of recipes that it does not type, of label files."""
    if not found:
        yield f"scripts/train.py --config {recipe} --config.data.root=DIR --workdir told".split()
    elif recipe in CONTINUED:
        first, run = found[0], workdir_of(found[0])
        words = first[: first.index("--stages")] + CONTINUED[recipe][0].replace("RUN", run).split()
        words[words.index("--workdir") + 1] = "told"
        yield words


def run(words, cwd):
    """Runs a command on two devices, with what other tests compiled."""
    flags = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=2"
    done = subprocess.run(
        [sys.executable, str(ROOT / words[0]), *words[1:]],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, " ".join(words) + done.stdout + done.stderr


def named(title):
    """All options of the method that the page's section names."""
    options = options_of(TITLES[title])
    cells = [here for _, here in rows(sections(read("commands.md"))[title])]
    words = {word.partition("=")[0] for cell in cells for word in code(cell)}
    kinds = {word: field_of(options, word) for word in words}
    return {word for word, kind in kinds.items() if kind and not dataclasses.is_dataclass(kind)}


@pytest.mark.parametrize("title", TITLES)
def test_every_option_is_set_by_a_run(title):
    run = set(OPTIONS[title]) | {"data.root", "model.weights"}
    for recipe in RECIPES[title]:
        run |= OF_RECIPES.get(recipe, {}).keys() | set(CONTINUED.get(recipe, ())[1:])
    assert named(title) <= run
    assert len(named(title)) >= 12


def check_features_kept(workdir):
    """The report's features, which the training had made, are those that the model makes."""
    assert 'id="lists"' in (workdir / "report.html").read_text()
    bundle = load_bundle(workdir)
    made = extract(bundle, open_test_set(bundle))
    (kept,) = map(load, (workdir / "features").glob(f"*-{made.meta['key'][:16]}.npz"))
    np.testing.assert_array_equal(kept.names, made.names)
    np.testing.assert_allclose(kept.features, made.features, atol=1e-4)


@pytest.mark.ci
@pytest.mark.parametrize(
    ("title", "recipe"), [(title, recipe) for title in TITLES for recipe in RECIPES[title]]
)
def test_a_recipe_and_its_options_run(title, recipe, tmp_path):
    options = OPTIONS[title] | OF_RECIPES.get(recipe, {})
    data = options.get("data.name", read_config(str(ROOT / recipe), []).data.name)
    draw(data, tmp_path / "data")
    write_vit(tmp_path / "vit", (options["data.height"], options["data.width"]))
    weights = tmp_path / "vit" if "model.patch_stride" in options else TINY
    changes = [f"--config.{path}={value}" for path, value in options.items()]
    found = typed(title, recipe)
    further = [[*words, "--no-report"] for words in told(recipe, found)]
    for words in [*found, *further]:
        words = [re.sub(r"=\w+_DIR$", f"={weights}", word) for word in words]
        words = [re.sub(r"=DIR$", f"={tmp_path / 'data'}", word) for word in words]
        if words[0] == "scripts/train.py":
            words[words.index("--config") + 1] = str(ROOT / recipe)
            words += [f"--config.model.weights={weights}", *changes]
        run(words, tmp_path)
    for workdir in {workdir_of(words) for words in [*found, *further]}:
        finished = read_finished_run(tmp_path / workdir)
        assert finished.method == TITLES[title] and 0 < finished.summary["final"]["mAP"] <= 1
        assert {path: finished.options[path] for path in options} == options
    for workdir in {workdir_of(words) for words in found}:
        check_features_kept(tmp_path / workdir)
