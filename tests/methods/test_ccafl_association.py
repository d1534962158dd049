"""How a run finds its association, and what it accepts from a function of the user's own."""

import dataclasses
import pathlib
import re
import sys
import types

import numpy as np
import pytest

from ccafl_jax.methods.ccafl import memories, phases
from ccafl_jax.methods.ccafl.config import AssociationConfig, CCAFLConfig
from ccafl_jax.methods.ccafl.run import Run
from ccafl_jax.options import from_mapping
from ccafl_jax.pseudo_labels import associate
from ccafl_jax.pseudo_labels.associations import ASSOCIATIONS
from ccafl_jax.pseudo_labels.cross_camera import reach
from tests.methods.small_run import SMALL, small_run

DOCS = pathlib.Path(__file__).parents[2] / "docs"

CAM_OF = np.repeat(np.arange(3), 8)
PID_OF = np.tile(np.arange(8), 3)
LABEL = np.repeat(np.arange(24), 5)
NO_TEXT = dataclasses.replace(SMALL.text, intra=False, inter=False)


def people(noise=0.5, pid_of=PID_OF):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(pid_of.max() + 1, 16))[pid_of[LABEL]] + noise * rng.normal(
        size=(len(LABEL), 16)
    )
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def found(config, features=None):
    features = people() if features is None else features
    return memories.associate_features(features, LABEL, CAM_OF, config)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Writes a module of the user's own."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text, name="mine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(text)

    return write


@pytest.mark.parametrize("method", sorted(ASSOCIATIONS))
def test_every_method_finds_people(method):
    config = AssociationConfig(
        method=method, **({"k1": 16} if method in ("dbscan", "greedy_groups") else {})
    )
    labels = found(config).labels
    assert np.all(labels >= 0) and np.array_equal(labels, PID_OF)


def test_methods_and_rates_differ():
    configs = [
        *(AssociationConfig(method=method) for method in sorted(ASSOCIATIONS)),
        AssociationConfig(rate="auto"),
    ]
    worlds = people(noise=1.4), people(noise=2.0)
    results = [np.stack([found(config, x).labels for x in worlds]) for config in configs]
    assert len({labels.tobytes() for labels in results}) == len(results)
    assert all(labels.max() >= 0 for labels in results)


@pytest.mark.parametrize("method", sorted(ASSOCIATIONS))
def test_cameras_are_centred_for_every_method(method):
    shift = 2.0 * np.eye(16, dtype=np.float32)[CAM_OF[LABEL]]
    config = AssociationConfig(method=method, center_cameras=True)
    plain = dataclasses.replace(config, center_cameras=False)
    # Enough noise that no method finds everybody either way.
    features = people(noise=1.5)
    centred = found(config, features + shift).labels
    assert not np.array_equal(centred, found(plain, features + shift).labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "mnn", "rate": 1.3}, "mnn takes no option rate; it takes max_distance, near"),
        ({"method": "dbscan", "mutual": 2}, "dbscan takes no option mutual.*set mutual to 0, its"),
        ({"nearest": 2}, "greedy_cc takes no option nearest"),
        ({"method": "greedy_groups", "eps": 0.5}, "greedy_groups takes no option eps"),
    ],
)
def test_an_option_of_another_method_is_told_when_options_are_read(options, message):
    with pytest.raises(ValueError, match=message) as error:
        from_mapping(CCAFLConfig, {"association": options})
    assert "\n" not in str(error.value)


def test_the_function_of_the_page(mine):
    page = (DOCS / "ccafl.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.S)
    (name,) = re.findall(r"association\.method=(mine:\w+)", page)
    mine(snippet)
    features = people(noise=2.0)
    result = found(AssociationConfig(method=name, mutual=1), features)
    means = np.stack([features[LABEL == a].mean(axis=0) for a in range(24)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    expected = associate(means - means.mean(axis=0), CAM_OF, rate=1.7, mutual=1)
    assert np.array_equal(result.labels, expected.labels)
    assert not np.array_equal(result.labels, found(AssociationConfig(mutual=1), features).labels)


def test_the_page_names_all_methods_and_options():
    page = (DOCS / "ccafl.md").read_text()
    section = page[page.index("## Association") : page.index("## Where the default")]
    options = [field.name for field in dataclasses.fields(AssociationConfig)]
    missing = [name for name in (*ASSOCIATIONS, *options[1:]) if f"`{name}`" not in section]
    assert missing == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "module own has no function 'f'"),
        ("import absent_module", "own:f cannot be imported: No module named 'absent_module'"),
        ("def f(features, label, cam_of): ...", "f takes no option mutual; it takes none"),
    ],
)
def test_a_function_that_does_not_do_is_told_before_training(mine, tmp_path, text, message):
    mine(text, "own")
    association = AssociationConfig(method="own:f", mutual=2)
    with pytest.raises(ValueError, match=message) as error:
        small_run(tmp_path / "run", association=association)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("None", "own:f returned NoneType; expected ccafl_jax.pseudo_labels.Labels"),
        ("Labels(np.zeros(3, int), 1)", "int64 labels of shape .*a whole number for each of the 2"),
        ("Labels(np.zeros(24), 1)", "float64 labels of shape"),
        ("Labels(np.arange(24) % 3 * 2, 3)", r"clusters 0..2 \(num_clusters - 1\) without gaps"),
    ],
)
def test_a_result_that_does_not_fit_is_told(mine, value, message):
    mine(
        "import numpy as np\n"
        "from ccafl_jax.pseudo_labels import Labels\n"
        f"def f(features, label, cam_of): return {value}\n",
        "own",
    )
    with pytest.raises(ValueError, match=message):
        found(AssociationConfig(method="own:f"))


def test_a_run_with_groups_instead_of_pairs_logs_no_figures_of_pairs():
    def report(method):
        run = types.SimpleNamespace(
            config=dataclasses.replace(SMALL, association=AssociationConfig(method=method)),
            labels=types.SimpleNamespace(label=LABEL, cam_of=CAM_OF, pid_of=PID_OF),
            progress=types.SimpleNamespace(clusters=None),
        )
        return Run._associate(run, 1, phases.Phase("inter", text=False), people())

    pairs, groups = report("greedy_cc"), report("dbscan")
    assert pairs["association_precision"] > 0.5 and pairs["association_nmi"] > 0.5
    assert pairs.keys() - groups.keys() == {
        f"association_{name}" for name in ("accepted", "correct", "precision", "recall")
    }


@pytest.mark.parametrize(("pid_of", "warns"), [(PID_OF, False), (np.arange(24), True)])
def test_links_between_strangers_are_told(pid_of, warns, caplog):
    """Everybody is seen by all three cameras, or nobody by two."""
    run = types.SimpleNamespace(
        config=dataclasses.replace(SMALL, association=AssociationConfig(rate=6.0)),
        labels=types.SimpleNamespace(label=LABEL, cam_of=CAM_OF, pid_of=pid_of),
        progress=types.SimpleNamespace(clusters=None),
    )
    for epoch in range(1, 4):  # the first and the last of stage 3 tell
        features = people(pid_of=pid_of)
        Run._associate(run, epoch, phases.Phase("inter", text=False), features)
    told = [text for text in caplog.messages if "strangers are linked" in text]
    assert len(told) == (2 if warns else 0)


def test_reach_by_hand():
    angles = np.deg2rad([0, 60, 180, 0, 90, 45])
    x, cam_of = np.stack([np.cos(angles), np.sin(angles)], 1), np.array([0, 0, 0, 1, 1, 2])
    found = reach(x, cam_of, np.array([[0, 3], [1, 4]]))
    assert found["last_distance"] == pytest.approx(2 - 3**0.5)
    # 60, 60, 120, 90 and 90 degrees; the class that is alone in its camera has no stranger.
    assert found["stranger_distance"] == pytest.approx(2)
    none = reach(x, np.arange(6), np.zeros((0, 2), int))
    assert np.isnan(list(none.values())).all()


@pytest.mark.ci
def test_a_run_trains_with_clusters_of_images(tmp_path):
    association = AssociationConfig(method="dbscan", k1=8, k2=2, min_samples=2)
    run = small_run(tmp_path, stages=("intra", "inter"), association=association, text=NO_TEXT)
    summary = run.train()
    assert np.isfinite(summary["final"]["mAP"])
