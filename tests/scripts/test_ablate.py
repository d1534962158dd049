"""The ablation: shared beginnings, controls, and the arithmetic of its tables."""

import importlib
import itertools
import json
import pathlib
import types

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ccafl_jax.pseudo_labels.labels import Labels

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"


@pytest.fixture
def scripts(monkeypatch):
    """Modules of the scripts, by name."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module


SCHEDULE = types.SimpleNamespace(intra_epochs=6.0, ical_start=12.0)


def test_parents_come_first_and_every_combination_is_there(scripts):
    ablate = scripts("ablate")
    nodes = ablate.nodes(SCHEDULE)
    names = [node.name for node in nodes]
    assert len(set(names)) == len(names)
    for place, node in enumerate(nodes):
        assert not node.parent or node.parent in names[:place]
    whole = {node.name for node in nodes if node.until is None}
    cells = {ablate.cell(*on) for on in itertools.product((False, True), repeat=3)}
    assert len(cells) == 8 and whole == cells | set(ablate.CONTROLS)


def test_nodes_differ_from_the_recipe_in_what_they_say(scripts):
    ablate = scripts("ablate")
    recipe = scripts("command").read_config(
        str(SCRIPTS.parent / "configs/ccafl_demo.py:ablation"), []
    )
    nodes = {node.name: node.config(recipe) for node in ablate.nodes(recipe.schedule)}
    full, none = nodes[ablate.FULL], nodes["none"]
    assert full.ical.enabled and full.text.intra and full.text.inter and full.icdl.w < 1
    assert not (none.ical.enabled or none.text.intra or none.text.inter) and none.icdl.w == 1
    assert nodes["prompts"].stages == ("prompts",) and full.schedule.epochs == 20
    assert nodes["text@intra"].schedule.epochs == 6 and nodes["text@inter"].schedule.epochs == 12
    assert nodes["own_class_only"].ical.epsilon == 0 and nodes["camera_head"].camera_head.weight
    assert not nodes["camera_head"].ical.enabled and nodes["full_labels"].schedule.intra_epochs == 0


def test_true_links_leave_out_who_was_seen_once(scripts):
    controls = scripts("proving.controls")
    found = controls.linked_where_several(np.array([7, 3, 7, 9, 3, 7]))
    assert found.tolist() == [0, 1, 0, -1, 1, 0] and found.dtype == np.int32


def test_random_links_keep_sizes_and_cameras(scripts):
    controls = scripts("proving.controls")
    random = np.random.default_rng(0)
    cam_of = np.repeat(np.arange(3), 20)
    clusters = np.tile(np.r_[np.arange(12), -np.ones(8, int)], 3)
    found = controls.shuffled_inside(clusters, cam_of, random)
    assert np.any(found != clusters)
    for camera in range(3):
        assert np.sum(found[cam_of == camera] >= 0) == 12
    sizes = [np.sort(np.bincount(x[x >= 0])).tolist() for x in (found, clusters)]
    assert sizes[0] == sizes[1]


def test_prototypes_are_as_long_as_the_texts(scripts):
    controls = scripts("proving.controls")
    g = jnp.asarray([[1.0, 0], [0, 1], [2, 0]])
    found = controls.prototypes(g, np.array([0, 0, 1]), jnp.asarray([[3.0, 4], [0, 2]]))
    np.testing.assert_allclose(found, [[5 / 2**0.5, 5 / 2**0.5], [2, 0]], rtol=1e-6)


def test_a_linked_run_reports_its_clusters(scripts):
    controls = scripts("proving.controls")
    labels = types.SimpleNamespace(pid_of=np.array([0, 1, 0]), cam_of=np.array([0, 0, 1]))
    run = types.SimpleNamespace(labels=labels, progress=types.SimpleNamespace(clusters=None))
    report = controls.TrueAssociation._associate(run, 0, None, None)
    assert run.progress.clusters.tolist() == [0, -1, 0]
    assert report["association_pure_share"] == 1 and report["association_clusters"] == 1
    assert isinstance(Labels(run.progress.clusters, 1).labels, np.ndarray)


def test_effects_are_differences_averaged_over_the_other_parts(scripts):
    ablate = scripts("ablate")
    random = np.random.default_rng(1)
    gains = {"icdl": 0.01, "text": -0.02, "ical": 0.1}
    results = {}
    for seed in range(4):
        base = random.normal()
        cells = {}
        for on in itertools.product((False, True), repeat=3):
            gain = sum(gains[name] for name, is_on in zip(ablate.FACTORS, on, strict=True) if is_on)
            cells[ablate.cell(*on)] = {"mAP": base + gain}
        others = {name: {"mAP": base} for name in ("prompts", *ablate.CONTROLS)}
        results[str(seed)] = cells | others
    found = ablate.summarize(results)
    for name, gain in gains.items():
        assert found["effects"][name]["mAP"]["mean"] == pytest.approx(gain)
        assert found["effects"][name]["mAP"]["sd"] == pytest.approx(0, abs=1e-12)
    assert found["controls"]["camera_head"]["mAP"]["mean"] == pytest.approx(-0.09)


def test_intervals_are_students(scripts):
    paired = scripts("proving.paired")
    values = [0.1, 0.3, 0.2, 0.5]
    found = paired.mean_interval(values)
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    np.testing.assert_allclose([found["low"], found["high"]], expected)
    assert np.isnan(paired.mean_interval([1.0])["low"])
    assert paired.shown({"mean": 0.1234, "low": 0.1, "high": 0.2}, signed=True) == (
        "+12.3 (10.0 to 20.0)"
    )


def test_figures_that_are_there_are_not_made_again(scripts, tmp_path, monkeypatch):
    jobs = scripts("proving.jobs")
    ran = []

    def run_jobs(script, names, workdir, words, *, processes):
        ran.append(list(names))
        return {name: {"value": len(ran)} for name in names}

    def study(names, *overrides):
        options = types.SimpleNamespace(
            json=tmp_path / "r.json", config="c.py", workdir=tmp_path, processes=1
        )
        return jobs.run_study("scripts/s.py", names, options, overrides, lambda found: dict(found))

    monkeypatch.setattr(jobs, "run_jobs", run_jobs)
    assert study(["seed1"]) == {"seed1": {"value": 1}}
    assert study(["seed1", "seed2"]) == {"seed1": {"value": 1}, "seed2": {"value": 2}}
    assert study(["seed1"]) == {"seed1": {"value": 1}}
    assert json.loads((tmp_path / "r.json").read_text())["results"].keys() == {"seed1", "seed2"}
    assert study(["seed1"], "--config.x=1") == {"seed1": {"value": 4}}  # another command
    assert ran == [["seed1"], ["seed2"], [], ["seed1"]]
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["command"] == ["python", "scripts/s.py", "--config", "c.py", "--config.x=1"]


@pytest.mark.slow
def test_a_run_from_shared_beginnings_is_the_whole_run(scripts, tmp_path):
    """And what is done is not done again."""
    from data_prep.synthetic import SyntheticConfig, write_folder

    tree = scripts("proving.tree")
    recipe = scripts("command").read_config(str(SCRIPTS.parent / "configs/ccafl_demo.py:smoke"), [])
    recipe.devices = 1
    root = str(tmp_path / "data")
    write_folder(tmp_path / "data", SyntheticConfig(seed=3, train_ids=12, test_ids=6))
    off = {"text.intra": False}
    nodes = [
        tree.Node("prompts", until=0),
        tree.Node("intra", "prompts", off, until=1),
        tree.Node("later", "intra", off),
        tree.Node("at_once", "", off),
    ]

    def measure(run):
        return {"digest": float(jnp.sum(jnp.abs(run.state.classifier)))}

    def run(nodes):
        return tree.run_tree(nodes, tmp_path / "runs", recipe, root=root, measure=measure)

    results = run(nodes)
    logs = [
        [json.loads(x) for x in (tmp_path / "runs" / name / "metrics.jsonl").open()]
        for name in ("later", "at_once")
    ]
    for lines in logs:
        for line in lines:
            del line["time"]
    assert logs[0] == logs[1] and len(logs[0]) == 2 + 4
    assert results["later"]["digest"] == results["at_once"]["digest"]
    assert results["later"]["association"] and results["later"]["seconds"] > 0
    (tmp_path / "data").rename(tmp_path / "elsewhere")  # nothing is read again
    assert run(nodes) == results
