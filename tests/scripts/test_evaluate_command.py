"""Evaluation as a user types it: a run, files of features, results side by side."""

import dataclasses
import importlib.util
import json
import pathlib
import shutil
import sys

import numpy as np
import pytest

from ccafl_jax.deploy.archive import write_orbax
from ccafl_jax.deploy.run_folder import write_run
from ccafl_jax.evaluation import results
from ccafl_jax.scoring import feature_set
from data_prep import synthetic
from tests.deploy import tiny

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "evaluate.py"
SIZE = {"seed": 3, "height": 32, "width": 16}
LAYOUTS = {
    "mars": {"train_ids": 1, "test_ids": 3, "frames": 6},
    "ilidsvid": {"ids": 6, "frames": 3},
    "sysumm01": {"train_ids": 3, "val_ids": 1, "test_ids": 4, "images": 3},
    "regdb": {"ids": 6, "images": 2},
    "veri776": {"train_ids": 2, "test_ids": 4},
}


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        spec = importlib.util.spec_from_file_location("evaluate_command", SCRIPT)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(SCRIPT.parent))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A run folder, and a small set of each kind."""
    root = tmp_path_factory.mktemp("evaluate")
    for layout, size in LAYOUTS.items():
        config = synthetic.layout_of(layout).config(**SIZE, **size)
        synthetic.write_layout(root / layout, layout, config)
    config = synthetic.SyntheticConfig(**SIZE, train_ids=2, test_ids=6, cameras=3)
    synthetic.write_folder(root / "market", config)
    # Hand-drawn boxes, which are somewhat other pictures.
    (root / "market" / "gt_bbox").mkdir()
    for path in (root / "market" / "bounding_box_test").iterdir():
        shutil.copy(path, root / "market" / "gt_bbox")
    config = {"data": {"name": "market_like"}, "evaluation": {"no_match": "skip"}}
    bundle = dataclasses.replace(
        tiny.bundle("resnet"),
        recipe={"method": "ccafl", "config": config},
        data_root=str(root / "market"),
    )
    write_run(root / "run", bundle)
    return root


@pytest.fixture
def command(script, work, capsys):
    """Runs the command on the run folder; returns the figures and the lines that it printed."""

    def run(*words, run=("--workdir", work / "run"), report=False):
        capsys.readouterr()
        arguments = script.parser().parse_args([str(word) for word in (*run, *words)])
        # Reports take longer than figures, and have tests of their own.
        arguments.no_report = not (report or arguments.cross_domain)
        script.check(arguments)
        (script.compare if arguments.cross_domain else script.evaluate)(arguments)
        lines = capsys.readouterr().out.splitlines()
        return json.loads(lines[-1]), lines[:-1]

    return run


def on(work, name):
    return ("--data", work / name, "--dataset", name)


@pytest.fixture(scope="module")
def market_file(script, work):
    """Features of the market set with all its parts."""
    path = work / "market.npz"
    words = ["--workdir", work / "run", "--multi-query", "--save-features", path, "--no-report"]
    script.evaluate(script.parser().parse_args([str(word) for word in words]))
    return path


def shares(figures):
    return {key: figures[key] for key in ("mAP", "rank1", "rank5", "rank10", "mINP")}


# A run.


def test_a_report_lies_beside_the_figures_or_in_the_run_folder(command, work, tmp_path, caplog):
    caplog.set_level("INFO", "ccafl_jax")
    plain, _ = command(
        "--json", tmp_path / "plain.json", "--top", 3, "--save-results", tmp_path / "r.npz"
    )
    assert not (work / "run" / "report.html").exists()
    assert not (tmp_path / "plain.html").exists()
    figures, _ = command("--json", tmp_path / "a.json", report=True)
    assert figures == plain == json.loads((tmp_path / "a.json").read_text())
    text = (tmp_path / "a.html").read_text()
    assert text.count("data:image/jpeg") > 40 and f"{100 * figures['mAP']:.1f}" in text
    assert 'class="heat"' in text and not (work / "run" / "report.html").exists()
    command("--rerank", report=True)
    assert "rerank" in (work / "run" / "report.html").read_text()
    (work / "run" / "report.html").unlink()
    assert "warning: no" not in caplog.text


@pytest.mark.ci
@pytest.mark.parametrize("name", ["mars", "sysumm01", "regdb", "ilidsvid", "veri776"])
def test_every_kind_of_data_set_has_a_report(command, work, tmp_path, name, caplog):
    features = tmp_path / "f.npz"
    words = (*on(work, name), "--json", tmp_path / "a.json", "--save-features", features)
    figures, _ = command(*words, report=True)
    text = (tmp_path / "a.html").read_text()
    assert text.count("data:image/jpeg") > 10 and f"{100 * figures['rank1']:.1f}" in text
    again = ("--json", tmp_path / "b.json")
    command(*again, run=("--features", features), report=True)
    text = (tmp_path / "b.html").read_text()
    assert "data:image/jpeg" not in text and "<article" in text
    assert "warning: no" not in caplog.text


def test_a_run_on_the_data_it_was_trained_on(command, tmp_path):
    figures, lines = command("--json", tmp_path / "new" / "r.json")
    assert json.loads((tmp_path / "new" / "r.json").read_text()) == figures
    assert figures["dataset"] == figures["trained_on"] == "market_like"
    assert 0 < figures["mAP"] < 1 and 0 < figures["same_camera_share"] < 1
    assert "market_like  ccafl, checkpoint 0" in lines
    head = next(line for line in lines if "mAP" in line)
    assert head.split() == ["mAP", "rank-1", "rank-5", "rank-10", "mINP", "same-camera"]
    row = lines[lines.index(head) + 1].split()
    expected = [*shares(figures).values(), figures["same_camera_share"]]
    assert row == ["%", *(f"{100 * value:.1f}" for value in expected)]
    rules = next(line for line in lines if line.startswith("rules: "))
    assert "market_like: same camera identity" in rules and "metric cosine" in rules


def test_features_are_kept_in_the_run_folder(command, work, tmp_path, caplog):
    caplog.set_level("INFO", "ccafl_jax")
    folder = work / "run" / "features"
    shutil.rmtree(folder, ignore_errors=True)
    first, _ = command()
    (kept,) = folder.iterdir()
    assert f"kept in {kept}" in caplog.text and kept.name.startswith("market_like-")
    caplog.clear()
    assert command()[0] == first and caplog.messages == [f"features: read from {kept}"]
    caplog.clear()
    assert shares(command("--no-cache")[0]) == pytest.approx(shares(first), abs=1e-9)
    assert "extracted" in caplog.text and "kept nowhere" in caplog.text
    command("--cache", tmp_path / "other")
    assert len(list((tmp_path / "other").iterdir())) == 1 == len(list(folder.iterdir()))
    caplog.clear()
    command("--flip")
    assert "extracted" in caplog.text and len(list(folder.iterdir())) == 2


def test_an_export_stays_as_it_is(command, work, tmp_path):
    from ccafl_jax.deploy.run_folder import read_run

    export = tmp_path / "orbax"
    export.mkdir()
    write_orbax(export, read_run(work / "run"))
    before = sorted(path.name for path in export.iterdir())
    figures, _ = command("--data", work / "market", run=("--checkpoint", export))
    assert figures["mAP"] == pytest.approx(command()[0]["mAP"])
    assert sorted(path.name for path in export.iterdir()) == before


def test_features_scored_again_give_the_same(command, tmp_path):
    path = tmp_path / "new" / "f.npz"
    first, _ = command("--save-features", path)
    again, lines = command(run=("--features", path))
    assert again == first and "market_like  f.npz" in lines
    assert feature_set.load(path).meta["model"] == "ccafl, checkpoint 0"


def test_queries_without_a_match_count_as_in_training(script, command, work, tmp_path):
    made = feature_set.load(market_of(command, tmp_path))
    lonely = made.pid.copy()
    lonely[0] = 999
    for trained in ("skip", "zero"):
        changed = dataclasses.replace(made, pid=lonely, meta={**made.meta, "no_match": trained})
        feature_set.save(tmp_path / f"{trained}.npz", changed)
    skip, zero = (command(run=("--features", tmp_path / f"{t}.npz"))[0] for t in ("skip", "zero"))
    count = skip["queries"]
    assert zero["mAP"] == pytest.approx(skip["mAP"] * count / (count + 1))
    told, _ = command("--no-match", "skip", run=("--features", tmp_path / "zero.npz"))
    assert shares(told) == shares(skip)


def market_of(command, folder):
    command("--save-features", folder / "plain.npz")
    return folder / "plain.npz"


# Options of images.


@pytest.mark.parametrize(
    "words",
    [
        ["--ap", "trapezoid"],
        ["--same-camera", "none"],
        ["--same-camera", "location"],
        ["--rerank", "5", "3", "0.3"],
        ["--rerank", "5", "3", "0.9"],
        ["--rerank"],
        ["--expand", "3"],
        ["--expand", "3", "4"],
        ["--expand", "3", "--expand-gallery"],
        ["--multi-query"],
        ["--multi-query", "max"],
        ["--flip"],
    ],
    ids=" ".join,
)
def test_options_change_the_figures(command, market_file, words):
    of_file = ("--features", market_file)
    plain, _ = command(run=of_file)
    run = {} if "--flip" in words else {"run": of_file}
    other, _ = command(*words, **run)
    assert shares(other) != shares(plain)
    assert other["rules"] != plain["rules"]


def test_values_of_options_count(command, market_file):
    of_file = ("--features", market_file)

    def rules(*words):
        return command(*words, run=of_file)[0]["rules"]

    assert rules("--rerank")["rerank"]["k1"] == 20
    assert rules("--rerank", 5, 3, 0.9)["rerank"] | {"distance": 0} == {
        "k1": 5, "k2": 3, "lambda_": 0.9, "distance": 0,
    }  # fmt: skip
    assert rules("--expand", 3, 4)["expand"] == {"k": 3, "alpha": 4.0, "gallery": False}
    assert rules("--multi-query")["multi_query"] == "mean"
    assert rules("--metric", "euclidean")["metric"] == "euclidean"
    assert rules("--protocol", "personx")["protocol"] == "personx"


def test_metrics_are_those_of_the_features_in_a_file(command, tmp_path):
    """Of features that have no unit length; NumPy alone makes such a file."""
    rng = np.random.default_rng(0)
    pid, camid = rng.integers(1, 6, 60), rng.integers(0, 3, 60)
    features = rng.normal(size=(60, 3)) * rng.uniform(0.2, 5, size=(60, 1))
    path = tmp_path / "plain.npz"
    sides = {"query": slice(0, 20), "gallery": slice(20, 60)}
    columns = {"f": features, "pid": pid, "camid": camid}
    np.savez(path, **{f"{s}_{c}": x[rows] for s, rows in sides.items() for c, x in columns.items()})
    found = {
        metric: command("--metric", metric, run=("--features", path))[0]
        for metric in ("cosine", "euclidean", "dot")
    }
    assert len({figures["mAP"] for figures in found.values()}) == 3
    assert command(run=("--features", path))[0]["mAP"] == found["cosine"]["mAP"]


def test_intervals_and_camera_pairs(command, market_file):
    figures, lines = command("--bootstrap", 200, "--camera-pairs", run=("--features", market_file))
    interval = figures["intervals"]["mAP"]
    assert interval["low"] < figures["mAP"] < interval["high"] and interval["samples"] == 200
    low = next(line for line in lines if line.startswith("95 % interval from"))
    assert low.split()[4] == f"{100 * interval['low']:.1f}" and low.split()[-1] == "-"
    pairs = figures["camera_pairs"]
    assert pairs["cameras"] == [1, 2, 3] and pairs["mAP"][0][0] is None
    row = next(line for line in lines if line.split()[:1] == ["c1"])
    assert row.split()[1:] == ["-", *(f"{100 * value:.1f}" for value in pairs["mAP"][0][1:])]
    assert any(line.startswith("mAP over pairs of two cameras: mean ") for line in lines)
    plain, lines = command(run=("--features", market_file))
    assert "intervals" not in plain and "camera_pairs" not in plain
    assert command("--bootstrap", run=("--features", market_file))[0]["intervals"]["mAP"][
        "samples"
    ] == 1000  # fmt: skip


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_ranked_lists_are_saved(command, market_file, tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / "new" / f"r{suffix}"
    words = ["--save-results", path, "--ap", "trapezoid"]
    figures, lines = command(*words, "--top", 4, run=("--features", market_file))
    assert f"ranked lists: {path}" in lines
    found = results.load(path)
    assert found.indices.shape == (figures["queries"], 4)
    assert found.rules["ap"] == "trapezoid" and found.rules["dataset"] == "market_like"
    assert results.rescore(found).mAP == pytest.approx(figures["mAP"])
    command(*words, run=("--features", market_file))
    gallery = figures["counts"]["gallery"]
    assert results.load(path).indices.shape[1] == min(50, gallery)


# Other kinds of sets.


def test_tracklets(command, work):
    figures, lines = command(*on(work, "mars"))
    assert figures["rules"]["query_in_gallery"] and figures["rules"]["unit"] == "tracklet"
    assert figures["rules"]["pooling"] == "mean of 8 frames"
    assert "same_camera_share" not in figures
    one, _ = command(*on(work, "mars"), "--frames", 1)
    assert shares(one) != shares(figures)
    assert command(*on(work, "mars"), "--frames", 0)[0]["rules"]["pooling"] == "mean of all frames"
    figures, lines = command(*on(work, "ilidsvid"), "--split", 2, "--orientation", "tfclip")
    assert figures["rules"]["splits"] == [2] and figures["rules"]["orientation"] == "tfclip"
    head = next(line for line in lines if "rank-1" in line)
    assert head.split() == ["rank-1", "rank-5", "rank-10", "rank-20"]


def test_draws_of_a_gallery(command, work, tmp_path):
    words = on(work, "sysumm01")
    figures, lines = command(*words, "--json", tmp_path / "r.json", "--camera-pairs")
    assert figures["rules"]["trials"] == 10 == len(figures["per_trial"])
    assert json.loads((tmp_path / "r.json").read_text()) == figures
    mean = np.mean([one["mAP"] for one in figures["per_trial"]])
    assert figures["mAP"] == pytest.approx(mean) and figures["std_over"] == "trials"
    spread = next(line for line in lines if line.startswith("std over trials"))
    assert spread.split()[-2] == f"{100 * figures['mAP_std']:.1f}"
    assert any(line.endswith("(column), draw 0:") for line in lines)
    different = {
        "--trials 3": command(*words, "--trials", 3)[0],
        "--mode indoor": command(*words, "--mode", "indoor")[0],
        "--shots 2": command(*words, "--shots", 2)[0],
        "--draw official": command(*words, "--draw", "official")[0],
        "--same-camera none": command(*words, "--same-camera", "none")[0],
    }
    found = [one["mAP"] for one in (figures, *different.values())]
    assert len(set(found)) == len(found), different.keys()
    indoor = command(*words, "--protocol", "sysumm01_indoor")[0]
    assert indoor["mAP"] == different["--mode indoor"]["mAP"]
    _, lines = command(*words, "--trials", 2, "--save-results", tmp_path / "r.npz")
    assert f"ranked lists: 2 files up to {tmp_path / 'r-1.npz'}" in lines
    assert results.load(tmp_path / "r-0.npz").rules["trial_name"] == "draw 0"


def test_splits_with_a_model_each(command, work, tmp_path):
    files = [tmp_path / f"{split}.npz" for split in (1, 2)]
    single = [
        command(*on(work, "regdb"), "--split", split, "--save-features", path)[0]
        for split, path in zip((1, 2), files, strict=True)
    ]
    both, lines = command(run=("--features", *files))
    assert both["mAP"] == pytest.approx(np.mean([one["mAP"] for one in single]))
    assert both["std_over"] == "sets" and both["rules"]["splits"] == [1, 2]
    assert "regdb  1.npz, 2.npz" in lines
    back, _ = command("--direction", "thermal_to_visible", run=("--features", *files))
    assert back["mAP"] != both["mAP"]


def test_tracks_and_published_lists(command, work):
    words = on(work, "veri776")
    images, _ = command(*words)
    tracks, lines = command(*words, "--tracks")
    assert shares(tracks) != shares(images) and tracks["counts"]["tracks"] > 0
    checked, lines = command(*words, "--published-lists", "check")
    assert shares(checked) == shares(images) and checked["published_lists"]["agree"]
    assert any(line.startswith("published lists: queries ") for line in lines)
    used, _ = command(*words, "--published-lists")
    assert used["rules"]["published_lists"] == "use"


def test_distractors_of_a_file(command, work, market_file, tmp_path):
    made = feature_set.load(market_file)
    part = np.where(made.part == feature_set.MULTI_QUERY, feature_set.DISTRACTOR, made.part)
    pid = np.where(part == feature_set.DISTRACTOR, 0, made.pid)
    feature_set.save(tmp_path / "f.npz", dataclasses.replace(made, part=part, pid=pid))
    plain, _ = command(run=("--features", tmp_path / "f.npz"))
    more, _ = command("--with-distractors", run=("--features", tmp_path / "f.npz"))
    assert more["mAP"] < plain["mAP"] and more["counts"]["distractors_joined"] > 0


def test_results_side_by_side(command, work, tmp_path):
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    one, _ = command("--json", files[0])
    two, _ = command(*on(work, "veri776"), "--json", files[1])
    out = tmp_path / "table.json"
    matrix, lines = command("--cross-domain", *files, "--json", out, run=())
    assert matrix["trained_on"] == ["market_like"]
    assert matrix["tested_on"] == ["market_like", "veri776"]
    assert matrix["mAP"] == [[one["mAP"], two["mAP"]]]
    assert json.loads(out.read_text()) == matrix
    assert f"{100 * two['mAP']:.1f} / {100 * two['rank1']:.1f}" in lines[-1]


# Errors.

MARKET_ERRORS = [
    (["--mode", "indoor"], "market_like takes no mode"),
    (["--shots", "1"], "market_like takes no shots"),
    (["--draw", "seeded"], "market_like takes no draw"),
    (["--direction", "thermal_to_visible"], "market_like takes no direction"),
    (["--trials", "3"], "trials is 3, but market_like has one"),
    (["--split", "2"], "market_like takes no split; leave the option out"),
    (["--orientation", "tfclip"], "market_like takes no orientation"),
    (["--frames", "0"], "holds single images, which take no frames"),
    (["--tracks"], "comes without tracks"),
    (["--published-lists"], "comes without published lists"),
    (["--with-distractors"], "has no part distractors; leave it out"),
    (["--protocol", "veri77"], "unknown protocol 'veri77'; did you mean veri776"),
    (["--rerank", "3", "2"], "--rerank takes K1 K2 LAMBDA or nothing, found 2 values"),
    (["--rerank", "3.5", "2", "0"], "--rerank: 3.5 is no whole number"),
    (["--rerank", "5", "3", "2"], "lambda"),
    (["--rerank", "--metric", "dot"], "not dot"),
    (["--expand", "3", "1", "1"], "--expand takes K and ALPHA, found 3 values"),
    (["--expand", "0.5"], "--expand: 0.5 is no whole number"),
    (["--expand", "3", "--metric", "euclidean"], "the metric cosine, not euclidean"),
    (["--bootstrap", "-1"], "bootstrap is -1"),
    (["--top", "3"], "--top is the length of the lists in --save-results"),
    (["--save-results", "r.txt"], "--save-results r.txt must end in .npz or .parquet"),
    (["--save-features", "f.csv"], "--save-features f.csv must end in .npz"),
    (["--json", "."], "--json . is a folder; name a file"),
    (["--cache", "x", "--no-cache"], "exclude each other"),
    (["--epoch", "7"], "7"),
    (["--epoch"], "argument --epoch: expected one argument; see --help"),
    (["--metrc", "cosine"], "unrecognized arguments: --metrc cosine; did you mean --metric?"),
    (["--metric", "l2"], "argument --metric: invalid choice: 'l2'"),
    (["--rerank", "inf", "6", "0.3"], "--rerank: inf is no whole number"),
    (["--rerank", "0", "6", "0.3"], "re-ranking with k1 0"),
    (["--expand", "nan"], "--expand: nan is no whole number"),
    (["--expand-gallery"], "--expand-gallery goes with --expand K"),
    (["--figures", "rank0"], "unknown figure 'rank0'"),
    (["--json", __file__ + "/x.json"], "is a file; name a file in a folder"),
    (["--batch", "0"], "batch is 0"),
    (["--data", "nowhere"], "no folder nowhere with the data set: name it with --root DIR"),
    (["--features", "f.npz"], "expected one of --workdir, --features, --cross-domain, found"),
]


@pytest.mark.parametrize(("words", "message"), MARKET_ERRORS, ids=lambda x: " ".join(x)[:30])
def test_errors_take_one_line(script, work, monkeypatch, capsys, words, message):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--workdir", str(work / "run"), *words])
    one_line(script, monkeypatch, capsys, message)


def one_line(script, monkeypatch, capsys, message):
    monkeypatch.setattr(script, "start_logging", lambda: None)
    monkeypatch.setattr("ccafl_jax.command_line.signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        script.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and message in error
    assert error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected one of --workdir, --features, --cross-domain, found none of them"),
        (["--features", "none.npz"], "no file none.npz with features"),
        (["--features", "{text}"], "is damaged or no .npz file of numbers"),
        (["--features", "{file}", "--flip"], "--flip is for features of a run; leave it out"),
        (["--features", "{file}", "--frames", "0"], "--frames is for features of a run"),
        (["--features", "{file}", "--no-cache"], "--no-cache is for features of a run"),
        (["--features", "{file}", "--save-features", "x.npz"], "--save-features is for features"),
        (["--features", "{file}", "{file}"], "market.npz is named twice"),
        (["--features", "{file}", "--mode", "indoor"], "market_like takes no mode"),
        (["--features", "{file}", "--with-distractors"], "no features of distractors"),
        (["--cross-domain", "{text}"], "is no JSON file of figures"),
        (["--cross-domain", "none.json"], "no file none.json with results"),
        (["--cross-domain", "{text}", "--rerank"], "--rerank has no place beside --cross-domain"),
        (["--cross-domain", "{text}", "--bootstrap", "0"], "--bootstrap has no place beside"),
        (["--workdir", "none"], "no such folder; name a run folder"),
    ],
    ids=lambda x: " ".join(x)[:40],
)
def test_files_and_options_that_do_not_fit(
    script, market_file, tmp_path, monkeypatch, capsys, words, message
):
    (tmp_path / "text").write_text("neither")
    places = {"{file}": str(market_file), "{text}": str(tmp_path / "text")}
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *(places.get(word, word) for word in words)])
    one_line(script, monkeypatch, capsys, message)


def test_a_file_of_features_that_was_cut(script, market_file, tmp_path, monkeypatch, capsys):
    (tmp_path / "cut.npz").write_bytes(market_file.read_bytes()[:-500])
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--features", str(tmp_path / "cut.npz")])
    one_line(script, monkeypatch, capsys, "is damaged or no .npz file of numbers")


def test_figures_are_those_asked_for(command, market_file):
    found, _ = command("--figures", "rank20", "mAP", "rank60", run=("--features", market_file))
    assert {"rank20", "mAP", "rank60"} < set(found) and "rank1" not in found and "mINP" not in found
    assert found["rules"]["max_rank"] == 60


def test_wrong_options_are_found_before_the_work(script, work, monkeypatch, capsys):
    from ccafl_jax.deploy import features

    monkeypatch.setattr(features, "extract", lambda *_, **__: pytest.fail("work was done"))
    for words in (["--bootstrap", "3"], ["--rerank", "--metric", "dot"], ["--shots", "3"]):
        run = ["evaluate.py", "--workdir", str(work / "run"), *words]
        monkeypatch.setattr(sys, "argv", run)
        one_line(script, monkeypatch, capsys, "error: ")
