"""A run that starts from another one: what it takes, what starts afresh, what is refused."""

import contextlib
import dataclasses
import json
import logging
import shutil

import numpy as np
import pytest

from ccafl_jax.deploy.run_folder import read_run, write_run
from ccafl_jax.methods.ccafl import init_from
from ccafl_jax.methods.ccafl.progress import tables_by_class
from ccafl_jax.training.checkpoints import Checkpoints, leaves_by_path
from tests.methods.small_run import SMALL, small_run

pytestmark = pytest.mark.ci  # whole runs

SHORT = dataclasses.replace(
    SMALL,
    prompts=dataclasses.replace(SMALL.prompts, epochs=1),
    schedule=dataclasses.replace(SMALL.schedule, epochs=1, iterations=2),
)
SOME = dataclasses.replace(SMALL.data, train_cameras=("1", "3"))
PROMPTS = ("prompts",)
SIE = dataclasses.replace(SMALL.model, camera_embedding=True, camera_scale=2.0)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """The folder of a run on the first and the third camera."""
    workdir = tmp_path_factory.mktemp("earlier")
    small_run(workdir, SHORT, data=SOME).train()
    return workdir


@pytest.fixture(scope="module")
def earlier_vit(tmp_path_factory):
    """A ViT with a camera embedding, before its prompts are learned."""
    workdir = tmp_path_factory.mktemp("earlier_vit")
    small_run(workdir, SHORT, vit=True, data=SOME, model=SIE, stages=PROMPTS).train()
    return workdir


def started(folder, workdir, *, config=SHORT, **options):
    run = small_run(workdir, config, init_from=str(folder), **options)
    run.take_over()
    return run


def described(folder, **changes):
    """The checkpoint of a run, with other entries in its description."""
    found = init_from.read_earlier(folder, workdir="/elsewhere")
    return dataclasses.replace(found, meta={**found.meta, **changes})


def taken(run, found, **options):
    return init_from.take_over(found, run._description(), run.state, run.prompt_state, **options)


@contextlib.contextmanager
def one_line(error, message):
    with pytest.raises(error, match=message) as caught:
        yield
    assert "\n" not in str(caught.value)


def test_the_model_is_taken_and_the_optimisers_are_fresh(earlier, tmp_path):
    tree = Checkpoints(earlier / "checkpoints").restore()
    fresh, run = small_run(tmp_path, SHORT), started(earlier, tmp_path)
    for name in ("params", "batch_stats"):
        arrays = getattr(run.state, name)
        assert list(arrays) == list(getattr(fresh.state, name))
        for key, value in arrays.items():
            np.testing.assert_array_equal(value, tree[name][key], err_msg=key)
            assert value.dtype == getattr(fresh.state, name)[key].dtype
    assert np.any(run.state.params["neck/scale"] != fresh.state.params["neck/scale"])
    assert int(tree["step"]) == 2 and int(run.state.step) == 0
    moments = leaves_by_path(
        (run.state.opt_state, run.state.classifier_opt, run.prompt_state.opt_state)
    )
    assert len(moments) > 6 and not any(np.any(value) for value in moments.values())
    assert run.progress.to_json() == fresh.progress.to_json() and run.class_text is None
    sharding = fresh.state.classifier.sharding
    assert run.state.classifier.sharding == sharding == run.prompt_state.prompts.sharding


def test_classes_are_found_by_camera_and_identity(earlier, tmp_path, caplog):
    with caplog.at_level("INFO", logger="ccafl_jax"):
        fresh, run = small_run(tmp_path, SHORT), started(earlier, tmp_path)
    prompts, classifier = tables_by_class(Checkpoints(earlier / "checkpoints").restore())
    number = {(camera, pid): row for row, (camera, pid) in enumerate(both((1, 3), range(1, 9)))}
    known = 0
    for row, (camera, pid) in enumerate(both((1, 2, 3), range(1, 9))):
        for ours, theirs, initial in (
            (run.prompt_state.prompts, prompts, fresh.prompt_state.prompts),
            (run.state.classifier, classifier, fresh.state.classifier),
        ):
            if (camera, pid) in number:
                known += 1
                np.testing.assert_array_equal(ours[row], theirs[number[camera, pid]])
                assert np.any(ours[row] != initial[row])
            else:
                np.testing.assert_array_equal(ours[row], initial[row])
                assert all(np.any(ours[row] != other) for other in theirs)
    assert known == 2 * 16
    assert caplog.messages[-1] == (
        f"init_from {earlier}, checkpoint 2: image tower and heads; of 24 classes 16 are known "
        "there and keep prompts and rows of the classifier, 8 start afresh; 0 classes of it are "
        "left out"
    )


def both(cameras, people):
    return [(camera, pid) for camera in cameras for pid in people]


def test_made_up_identities_have_no_name():
    names = {"class_names": {"camera": [1, 1, 2, 2], "identity": [5, -3, -3, 5]}}
    found = init_from.names_of(names)
    assert found == [(1, 5), None, None, (2, 5)]
    assert init_from.shared_rows(found, found).tolist() == [[0, 3], [0, 3]]


def test_classes_that_are_gone_are_counted(earlier, tmp_path, caplog):
    data = dataclasses.replace(SOME, train_cameras=("2", "3"))
    with caplog.at_level("INFO", logger="ccafl_jax"):
        started(earlier, tmp_path, data=data)
    assert "of 16 classes 8 are known" in caplog.text and "8 start afresh; 8 classes" in caplog.text


def test_its_checkpoints_folder_will_do_and_so_will_a_copy(earlier, tmp_path):
    shutil.copytree(earlier / "checkpoints", tmp_path / "copy")
    for folder in (earlier / "checkpoints", tmp_path / "copy", f"{earlier}/"):
        found = init_from.read_earlier(folder, workdir=tmp_path / "w")
        assert found.where.endswith("checkpoint 2")


def test_a_table_that_was_filled_up_for_the_devices(earlier, tmp_path):
    """The classifier of 16 classes in 20 rows; another one with rows to fill it up."""
    found = described(earlier)
    padded = np.pad(found.tree["classifier"], [(0, 4), (0, 0)], constant_values=7)
    found = dataclasses.replace(found, tree={**found.tree, "classifier": padded})
    run = small_run(tmp_path, SHORT)
    expected = taken(run, described(earlier))[0].classifier
    np.testing.assert_array_equal(taken(run, found)[0].classifier, expected)


def test_a_table_that_devices_share_stays_so(earlier, tmp_path):
    """The 18 classes that are not held out, in 24 rows on eight devices."""
    data = dataclasses.replace(SMALL.data, val_fraction=0.25)
    scale = dataclasses.replace(SMALL.scale, shard_classes=True)
    options = {"data": data, "config": dataclasses.replace(SHORT, devices=8, scale=scale)}
    fresh = small_run(tmp_path, **options).state.classifier
    run = started(earlier, tmp_path, **options)
    assert run.state.classifier.shape[0] == 24 and run.num_classes == 18
    assert run.state.classifier.sharding == fresh.sharding
    found = described(earlier)
    here, there = init_from.names_of(run._description()), init_from.names_of(found.meta)
    rows = init_from.shared_rows(here, there)
    np.testing.assert_array_equal(
        np.asarray(run.state.classifier)[rows[0]], found.tree["classifier"][rows[1]]
    )
    assert not np.any(run.state.classifier[18:])


def test_from_the_start_to_the_summary(earlier, tmp_path, capsys, caplog):
    """The figures at the start are those that the earlier run ended with."""
    with caplog.at_level("INFO", logger="ccafl_jax"):
        run = small_run(tmp_path, SHORT, init_from=str(earlier), stages=PROMPTS)
        summary = run.train()
    before = json.loads((earlier / "summary.json").read_text())
    assert summary["zero_shot"]["mAP"] == pytest.approx(before["final"]["mAP"], abs=1e-6)
    assert summary["init_from"] == str(earlier)
    assert before["init_from"] == ""
    printed = capsys.readouterr().out
    assert "as loaded f" in printed and "as loaded g" in printed and "zero-shot" not in printed
    assert "as loaded f: mAP" in caplog.text
    tree = Checkpoints(earlier / "checkpoints").restore()
    for name, value in run.state.batch_stats.items():  # the neck's too
        np.testing.assert_array_equal(value, tree["batch_stats"][name])
    meta = Checkpoints(tmp_path / "checkpoints").restore_meta()
    assert meta["config"]["init_from"] == str(earlier)
    assert len(init_from.names_of(meta)) == meta["classes"] == 24


def test_a_resumed_run_does_not_read_it(earlier, tmp_path, monkeypatch):
    shutil.copytree(earlier, tmp_path / "old")
    options = {"init_from": str(tmp_path / "old")}
    one = small_run(tmp_path / "w", SHORT, stages=PROMPTS, **options)
    one.train()
    shutil.rmtree(tmp_path / "old")
    monkeypatch.setattr(init_from, "read_earlier", lambda *_, **__: pytest.fail("it was read"))
    again = small_run(tmp_path / "w", SHORT, stages=PROMPTS, **options)
    again.train(resume=True)
    assert again.progress.prompt_epochs == 1 and np.any(again.prompt_state.opt_state[1].mu)
    np.testing.assert_array_equal(again.prompt_state.prompts, one.prompt_state.prompts)
    with pytest.raises(ValueError, match=r"init_from is .*old there and elsewhere here"):
        small_run(tmp_path / "w", SHORT, init_from="elsewhere").train(resume=True)


def test_nothing_to_resume_starts_from_it(earlier, tmp_path):
    run = small_run(tmp_path, SHORT, init_from=str(earlier), stages=PROMPTS)
    run.train(resume=True)
    tree = Checkpoints(earlier / "checkpoints").restore()
    np.testing.assert_array_equal(run.state.params["neck/scale"], tree["params"]["neck/scale"])


def test_a_camera_embedding_is_taken_by_the_code_of_the_camera(earlier_vit, tmp_path, caplog):
    run = small_run(tmp_path, SHORT, vit=True, model=SIE)
    fresh = np.asarray(run.state.params["camera_embedding"])
    found = described(earlier_vit, camera_codes=[0, 3, 1])
    embedding = np.arange(24, dtype=np.float32).reshape(3, 8)
    params = {**found.tree["params"], "camera_embedding": embedding}
    found = dataclasses.replace(found, tree={**found.tree, "params": params})
    with caplog.at_level("INFO", logger="ccafl_jax"):
        state, _ = taken(run, found)
    assert list(state.params) == list(run.state.params)
    np.testing.assert_array_equal(
        state.params["camera_embedding"], [embedding[2], fresh[1], embedding[1]]
    )
    assert caplog.messages[0].endswith("; 2 of 3 cameras keep their embedding")


def test_a_camera_embedding_may_be_new_but_not_go(earlier_vit, tmp_path, caplog):
    run = small_run(tmp_path, SHORT, vit=True)
    with one_line(ValueError, r"camera_embedding is of shape \(3, 8\) there and absent here; set"):
        taken(run, described(earlier_vit))
    without = described(earlier_vit)
    params = {k: v for k, v in without.tree["params"].items() if k != "camera_embedding"}
    meta = {**without.meta, "model": run._description()["model"]}
    without = dataclasses.replace(without, meta=meta, tree={**without.tree, "params": params})
    with_cameras = small_run(tmp_path, SHORT, vit=True, model=SIE)
    with caplog.at_level("INFO", logger="ccafl_jax"):
        state, _ = taken(with_cameras, without)
    assert caplog.messages[0].endswith("; the camera embedding starts afresh")
    np.testing.assert_array_equal(
        state.params["camera_embedding"], with_cameras.state.params["camera_embedding"]
    )


def test_models_that_do_not_fit_name_the_array(earlier, earlier_vit, tmp_path):
    larger = dataclasses.replace(SMALL.data, height=64)
    with one_line(ValueError, r"positional_embedding is of shape \(3, 64\) there and of shape \(5"):
        started(earlier, tmp_path, data=larger)
    with one_line(ValueError, r"positional_embedding is of shape \(9, 8\) there and of shape \(17"):
        started(earlier_vit, tmp_path, vit=True, model=SIE, data=larger)
    with one_line(ValueError, r"is absent there and of shape \S+ here; .*set model\.weights, mod"):
        started(earlier_vit, tmp_path, model=SMALL.model)


def test_models_of_equal_shapes_that_compute_otherwise(earlier, tmp_path):
    run, found = small_run(tmp_path, SHORT), described(earlier)
    model = {**found.meta["model"], "activation": "gelu"}
    with one_line(ValueError, r"model\.activation is gelu there and quick_gelu here; a run"):
        taken(run, described(earlier, model=model))
    tables = {**found.tree, "prompts": {".prompts": np.zeros((16, 4, 9), np.float32)}}
    with one_line(ValueError, r"prompts is of shape \(16, 4, 9\) there and of shape \(24, 4, 8\)"):
        taken(run, dataclasses.replace(found, tree=tables))


@pytest.mark.parametrize("text", ["weights", "mean", "held out"])
def test_what_may_be_meant_is_warned_of(text, earlier, tmp_path, caplog):
    run, found = small_run(tmp_path, SHORT), described(earlier)
    changes, options = {}, {}
    if text == "weights":
        config = dict(found.meta["config"])
        changes["config"] = {**config, "model": {**config["model"], "weights": "other"}}
        expected = "model.weights is other there and  here"
    elif text == "mean":
        changes["preprocess"] = {**found.meta["preprocess"], "mean": [0.5, 0.5, 0.5]}
        expected = "preprocess.mean is [0.5, 0.5, 0.5] there and ["
    else:
        options["held_out"] = [(1, 1), (2, 2), (3, 3)]
        expected = "was trained on 2 of the held-out classes"
    with caplog.at_level(logging.WARNING, "ccafl_jax"):
        taken(run, described(earlier, **changes), **options)
    (message,) = caplog.messages
    assert expected in message


def test_held_out_classes_have_names(tmp_path):
    run = small_run(tmp_path, SHORT, data=dataclasses.replace(SMALL.data, val_fraction=0.25))
    names, trained = run._held_out_names(), init_from.names_of(run._description())
    assert sorted(names + trained) == both((1, 2, 3), range(1, 9))
    assert len(names) == 6


def test_a_checkpoint_that_does_not_name_its_classes(earlier, tmp_path, caplog):
    """As older versions wrote it: all classes are known where the training set is the same."""
    found = described(earlier)
    meta = {key: value for key, value in found.meta.items() if key != "class_names"}
    found = dataclasses.replace(found, meta=meta)
    same, other = small_run(tmp_path, SHORT, data=SOME), small_run(tmp_path, SHORT)
    with caplog.at_level("INFO", logger="ccafl_jax"):
        state, _ = taken(same, found)
        np.testing.assert_array_equal(state.classifier, found.tree["classifier"])
        assert "of 16 classes 16 are known" in caplog.text
        state, _ = taken(other, found)
    np.testing.assert_array_equal(state.classifier, other.state.classifier)
    assert "does not name its classes" in caplog.text and "24 start afresh" in caplog.text


def test_folders_without_a_run_are_refused(earlier, tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with one_line(FileNotFoundError, "holds no complete checkpoint: name the --workdir of a"):
            started(folder, tmp_path / "w")
    for folder in (earlier, earlier / "checkpoints"):
        with one_line(ValueError, "is the folder of this run: choose another --workdir"):
            started(folder, earlier)
    (tmp_path / "link").symlink_to(earlier)
    with one_line(ValueError, "is the folder of this run"):
        started(tmp_path / "link", earlier)
    with one_line(FileNotFoundError, "holds no complete checkpoint"):
        started(earlier / "checkpoints" / "2", tmp_path / "w")
    assert not (tmp_path / "w").exists() and not (tmp_path / "nowhere").exists()


def test_a_model_only_is_no_run(earlier, tmp_path):
    bundle = dataclasses.replace(read_run(earlier), recipe={"method": "clip_reid", "config": {}})
    write_run(tmp_path / "model", bundle)
    with one_line(ValueError, r"checkpoint 0 is a model only \(clip_reid\), no CCAFL run: name"):
        started(tmp_path / "model", tmp_path / "w")


def test_damaged_arrays_are_refused(earlier, tmp_path):
    shutil.copytree(earlier, tmp_path / "old")
    for path in (tmp_path / "old" / "checkpoints").rglob("*"):
        if path.is_file() and path.name != "manifest.sha256":
            path.write_bytes(path.read_bytes()[:-1] + b"x")
    with one_line(FileNotFoundError, "holds no complete checkpoint"):
        started(tmp_path / "old", tmp_path / "w")


def test_folders_in_an_object_store_keep_their_address(monkeypatch):
    monkeypatch.setattr(init_from, "from_first", lambda look: True)
    assert str(init_from._checkpoints_of("gs://bucket/five")) == "gs://bucket/five/checkpoints"
