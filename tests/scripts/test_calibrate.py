"""Calibration as a user types it."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from ccafl_jax.evaluation.open_set import read_threshold
from ccafl_jax.scoring import feature_set

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "calibrate.py"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        spec = importlib.util.spec_from_file_location("calibrate", SCRIPT)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(SCRIPT.parent))


def arrays(queries=120, gallery=300, people=40, seed=0):
    """A closed set: every query has its identity in the gallery, from another camera."""
    rng = np.random.default_rng(seed)
    pid = np.concatenate([rng.integers(1, people + 1, queries), np.arange(gallery) % people + 1])
    features = rng.normal(size=(people + 1, 16))[pid] + 0.6 * rng.normal(size=(len(pid), 16))
    camid = np.repeat([0, 1], [queries, gallery])
    return {
        "query_f": features[:queries],
        "gallery_f": features[queries:],
        "query_pid": pid[:queries],
        "gallery_pid": pid[queries:],
        "query_camid": camid[:queries],
        "gallery_camid": camid[queries:],
    }


@pytest.fixture
def features(tmp_path):
    """A file that says which model made it."""
    np.savez(tmp_path / "plain.npz", **arrays())
    made = feature_set.load(tmp_path / "plain.npz")
    made.meta["fingerprint"] = "a" * 64
    feature_set.save(tmp_path / "features.npz", made)
    return tmp_path / "features.npz"


def run(script, path, *options):
    out = path.parent / "threshold.json"
    words = ["--features", path, "--out", out, *options]
    script.calibrate(script.parser().parse_args([str(word) for word in words]))
    return read_threshold(out), json.loads(out.read_text())["curve"]


def accepted_strangers(data, kept_people, value):
    """Share of the searches for people who were taken out whose best cosine is accepted."""
    query, gallery = (
        data[f"{side}_f"] / np.linalg.norm(data[f"{side}_f"], axis=1, keepdims=True)
        for side in ("query", "gallery")
    )
    inside = np.isin(data["gallery_pid"], kept_people)
    absent = ~np.isin(data["query_pid"], kept_people)
    return np.mean((query[absent] @ gallery[inside].T).max(axis=1) >= value), absent.sum()


def test_a_threshold_for_absent_people_holds_its_rate(script, features, capsys):
    threshold, curve = run(script, features, "--fpir", "0.1", "--hold-out", "0.5", "--seed", "3")
    assert (threshold.rule, threshold.target, threshold.metric) == ("fpir", 0.1, "cosine")
    assert (threshold.hold_out, threshold.seed, threshold.rank) == (0.5, 3, 1)
    assert (threshold.model, threshold.protocol) == ("a" * 64, "market1501")
    data = arrays()
    people = np.random.default_rng(3).permutation(np.unique(data["query_pid"]))
    left = people[round(0.5 * len(people)) :]
    left = np.union1d(left, np.setdiff1d(data["gallery_pid"], people))
    rate, searches = accepted_strangers(data, left, threshold.value)
    assert rate == pytest.approx(threshold.false_rate) and 0.05 < rate <= 0.1
    assert threshold.negatives == searches == curve["identification"]["non_mated"]
    printed = capsys.readouterr().out
    assert "-> " in printed and f"accept cosine >= {threshold.value:.6f}" in printed
    assert "too few" not in printed and "* fewer impostors" in printed  # at 1e-4 of the curve


def test_a_threshold_for_pairs_needs_no_absent_people(script, features):
    threshold, curve = run(script, features, "--fpr", "0.02")
    assert (threshold.rule, threshold.target, threshold.rank) == ("fpr", 0.02, None)
    assert list(curve) == ["verification"]
    assert [point["fpr"] for point in curve["verification"]["points"]] == [
        1e-4, 1e-3, 1e-2, 0.02, 0.1,
    ]  # fmt: skip
    assert threshold.negatives + threshold.positives == 120 * 300


def test_options_change_the_threshold(script, features):
    base, _ = run(script, features, "--fpir", "0.1", "--hold-out", "0.5")
    for options in (
        ("--fpir", "0.3"),
        ("--hold-out", "0.2"),
        ("--seed", "1"),
        ("--metric", "euclidean"),
    ):
        other, _ = run(script, features, "--fpir", "0.1", "--hold-out", "0.5", *options)
        assert other.value != base.value and other.data == base.data
    first, _ = run(script, features, "--fpir", "0.9", "--hold-out", "0.9", "--rank", "1")
    tenth, _ = run(script, features, "--fpir", "0.9", "--hold-out", "0.9", "--rank", "10")
    assert (first.rank, tenth.rank) == (1, 10) and tenth.miss_rate <= first.miss_rate
    assert tenth.value == first.value


def test_the_default_rate_may_be_out_of_reach_and_that_is_said(script, features, capsys):
    threshold, _ = run(script, features, "--hold-out", "0.3")
    assert (threshold.target, threshold.false_rate, threshold.resolved) == (0.01, 0.0, False)
    assert "too few to measure fpir 0.01" in capsys.readouterr().out


def test_other_data_has_another_fingerprint(script, features, tmp_path):
    base, _ = run(script, features, "--fpr", "0.01")
    np.savez(tmp_path / "other.npz", **arrays(seed=1))
    other, _ = run(script, tmp_path / "other.npz", "--fpr", "0.01", "--model", "a" * 64)
    assert other.data != base.data and other.model == base.model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fpir", "0.1"], "all 120 queries have .* with --hold-out 0.5, or ask for --fpr"),
        (["--fpr", "2"], "--fpr is 2, must lie between 0 and 1"),
        (["--fpir", "0"], "--fpir is 0, must lie between 0 and 1"),
        (["--hold-out", "1.5"], "--hold-out is 1.5, must lie between 0 and 1"),
        (["--rank", "0", "--hold-out", "0.5"], "--rank is 0, must be 1 or more"),
        (["--rank", "7", "--fpr", "0.1"], r"--rank is for searches \(--fpir\); leave it out"),
        (["--seed", "9", "--fpr", "0.1"], "--seed is of the draw of --hold-out; leave it out"),
        (["--seed", "-9", "--hold-out", "0.5"], "--seed is -9, must be 0 or more"),
        (["--protocol", "markt1501"], "did you mean market1501"),
        (["--model", "b"], "the features in .* are of model a{64}; leave --model out"),
        (["--with-distractors"], "no features of distractors"),
    ],
)
def test_what_cannot_be_done_is_named_in_one_line(script, features, options, message):
    with pytest.raises(ValueError, match=message) as error:
        run(script, features, *options)
    assert "\n" not in str(error.value) and not (features.parent / "threshold.json").exists()


def words_of(error):
    return str(error.value).replace("(", " ").replace(",", " ").replace(":", " ").split()


@pytest.mark.parametrize(("rule", "change"), [("--fpir", "people"), ("--fpr", "people"),
                                              ("--fpr", "one")])  # fmt: skip
def test_messages_speak_of_flags(script, tmp_path, rule, change):
    data = arrays()
    if change == "people":
        data["gallery_pid"] = data["gallery_pid"] + 1000
    else:
        data |= {key: np.ones_like(data[key]) for key in ("query_pid", "gallery_pid")}
    np.savez(tmp_path / "plain.npz", **data)
    message = {"people": "none of 120 queries has a match", "one": "show one person"}[change]
    with pytest.raises(ValueError, match=message) as error:
        run(script, tmp_path / "plain.npz", rule, "0.1", "--model", "v1")
    assert not {"fpr", "fpir", "fpr=", "fpir=", "hold_out_identities"} & set(words_of(error))


def with_parts(**changes):
    """Queries that stand in the gallery once more, under no known camera."""
    data = arrays(queries=30, gallery=60, people=20)
    count = 30
    pid = np.concatenate([data["query_pid"], data["query_pid"], data["gallery_pid"]])
    name = np.concatenate([np.arange(count), np.arange(count), 100 + np.arange(60)])
    fields = {
        "dataset": "market1501",
        "features": np.concatenate([data["query_f"], data["query_f"], data["gallery_f"]]),
        "pid": pid,
        "camid": np.full(len(pid), -1),
        "part": np.repeat([feature_set.QUERY, feature_set.GALLERY], [count, count + 60]),
        "names": name.astype(str),
        "meta": {"fingerprint": "a" * 64},
    }
    return feature_set.FeatureSet(**(fields | changes))


def test_a_query_is_no_mate_of_itself(script, tmp_path):
    made = with_parts()
    feature_set.save(tmp_path / "same.npz", made)
    others = np.arange(len(made)).astype(str)
    feature_set.save(tmp_path / "others.npz", with_parts(names=others))
    same, _ = run(script, tmp_path / "same.npz", "--fpr", "0.01")
    other, _ = run(script, tmp_path / "others.npz", "--fpr", "0.01")
    assert other.positives - same.positives == 30
    assert same.positives + same.negatives == 30 * 89


def test_distractors_are_strangers_whatever_their_number(script, tmp_path):
    made = with_parts()
    part = np.where(np.arange(len(made)) < 80, made.part, feature_set.DISTRACTOR)
    found = {}
    for number in (0, -1, int(made.pid[0]), 5000):
        pid = np.where(part == feature_set.DISTRACTOR, number, made.pid)
        pid = np.where((pid == 5) & (part != feature_set.DISTRACTOR), 0, pid)
        feature_set.save(tmp_path / "f.npz", with_parts(pid=pid, part=part))
        found[number], _ = run(
            script, tmp_path / "f.npz", "--hold-out", "0.5", "--fpir", "0.2", "--with-distractors"
        )
    values = {(t.value, t.positives, t.negatives, t.miss_rate) for t in found.values()}
    assert len(values) == 1


def test_a_file_that_names_no_model_needs_one(script, tmp_path):
    np.savez(tmp_path / "plain.npz", **arrays())
    with pytest.raises(ValueError, match="give its fingerprint with --model"):
        run(script, tmp_path / "plain.npz", "--fpr", "0.01")
    assert run(script, tmp_path / "plain.npz", "--fpr", "0.01", "--model", "v1")[0].model == "v1"


def test_out_must_be_a_file(script, features):
    words = ["--features", str(features), "--out", str(features.parent)]
    with pytest.raises(ValueError, match="is a folder; name a file"):
        script.calibrate(script.parser().parse_args(words))


@pytest.mark.ci
def test_as_a_command(features, tmp_path):
    def run(*words):
        return subprocess.run(
            [sys.executable, str(SCRIPT), *map(str, words)],
            cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    shown = run("--help")
    assert shown.returncode == 0 and "examples:" in shown.stdout
    out = tmp_path / "new" / "threshold.json"
    done = run("--features", features, "--fpr", "0.01", "--out", out)
    assert done.returncode == 0 and read_threshold(out).target == 0.01, done.stderr
    failed = run("--features", tmp_path / "none.npz", "--out", out)
    assert failed.returncode == 2 and failed.stderr.startswith("error: no file ")
    both = run("--features", features, "--fpr", "0.1", "--fpir", "0.1", "--out", out)
    assert both.returncode == 2 and "not allowed with argument" in both.stderr
