import dataclasses
import shutil
import types

import numpy as np
import pytest
from PIL import Image

from ccafl_jax.data.opening import open_dataset
from ccafl_jax.deploy import evaluate
from ccafl_jax.deploy.archive import read_archive, write_orbax
from ccafl_jax.deploy.embedder import Embedder
from ccafl_jax.deploy.features import camera_rows
from ccafl_jax.deploy.run_folder import read_run, write_run
from ccafl_jax.evaluation.camera_bias import same_camera_share
from ccafl_jax.scoring.feature_set import DISTRACTOR, GALLERY, MULTI_QUERY, QUERY, FeatureSet
from ccafl_jax.training.checkpoints import Checkpoints
from ccafl_jax.training.features import score
from ccafl_jax.training.manifest import write_manifest
from ccafl_jax.training.storage import open_path
from tests.deploy import tiny


def dataset(*codes):
    return types.SimpleNamespace(camera_codes=codes, root="DIR")


def test_cameras_are_matched_by_their_numbers():
    bundle = tiny.bundle("vit")
    np.testing.assert_array_equal(camera_rows(bundle, dataset(1, 2, 5)), [0, 1, 2])
    np.testing.assert_array_equal(camera_rows(bundle, dataset(2, 5)), [1, 2])
    with pytest.raises(ValueError, match=r"has the cameras \[3\].*it knows \[1, 2, 5\]"):
        camera_rows(bundle, dataset(1, 3))
    unnamed = dataclasses.replace(bundle, camera_codes=())  # as converted models are
    np.testing.assert_array_equal(camera_rows(unnamed, dataset(1, 3)), [0, 2])


def test_what_is_written_comes_back(tmp_path):
    bundle = tiny.bundle("vit")
    write_run(tmp_path / "run", bundle)
    (tmp_path / "orbax").mkdir()
    write_orbax(tmp_path / "orbax", bundle)
    for again in (read_run(tmp_path / "run"), read_archive(tmp_path / "orbax")):
        assert again.model == bundle.model and again.preprocess == bundle.preprocess
        assert again.camera_codes == (1, 2, 5)
        assert again.recipe == bundle.recipe
    with pytest.raises(FileExistsError, match="choose another folder"):
        write_run(tmp_path / "run", bundle)


@pytest.fixture
def folder(tmp_path):
    """A test set under cameras 2 and 5 of a model that knows 1, 2 and 5."""
    for split in ("bounding_box_train", "query", "bounding_box_test"):
        (tmp_path / split).mkdir()
    names = [(pid, camera, number) for pid in (1, 2, 3) for camera in (2, 5) for number in (1, 2)]
    for (pid, camera, number), pixels in zip(names, tiny.pixels(len(names)), strict=True):
        split = "query" if number == 1 else "bounding_box_test"
        path = tmp_path / split / f"{pid:04}_c{camera}s1_{number:06}_00.png"
        Image.fromarray(pixels).save(path)
        shutil.copy(path, tmp_path / "bounding_box_train")
    return tmp_path


@pytest.mark.parametrize("no_match", ["skip", "zero"])
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_figures_are_those_of_plain_rankings(folder, kind, no_match):
    """Of a model that knows the cameras 1, 2 and 5, and of one that knows none."""
    (folder / "query" / "0009_c2s1_000001_00.png").write_bytes(
        next(iter((folder / "query").iterdir())).read_bytes()
    )  # somebody who is not in the gallery
    bundle = tiny.bundle(kind)
    found = evaluate.evaluate_bundle(bundle, root=str(folder), batch=4, no_match=no_match)
    dataset = open_dataset("market1501", folder)
    test_set = dataset.query.join(dataset.gallery)
    paths = [test_set.locate(row) for row in range(len(test_set))]
    cameras = test_set.camid + 1 if kind == "vit" else None
    features = Embedder(bundle, batch=4).embed(paths, cameras)
    expected = score(features, dataset, no_match=no_match)
    assert found["dataset"] == expected.pop("dataset") == "market1501"
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-5)
    assert found["skipped"] == (no_match == "skip") and found["rules"]["no_match"] == no_match


def test_no_match_changes_the_figures(folder):
    (folder / "query" / "0009_c2s1_000001_00.png").write_bytes(
        next(iter((folder / "query").iterdir())).read_bytes()
    )
    skip, zero = (
        evaluate.evaluate_bundle(tiny.bundle("vit"), root=str(folder), no_match=rule)["mAP"]
        for rule in ("skip", "zero")
    )
    assert zero == pytest.approx(skip * 6 / 7)


def test_camera_bias_is_of_people_under_known_cameras():
    rng = np.random.default_rng(0)
    count = 40
    pid, camid = rng.integers(1, 6, count), rng.integers(0, 3, count)
    part = np.repeat([QUERY, GALLERY, DISTRACTOR, MULTI_QUERY], 10)
    pid[12:15], camid[15:17] = -1, -1
    pid[part == DISTRACTOR] = 0
    made = FeatureSet(
        dataset="market1501",
        features=rng.normal(size=(count, 4)).astype(np.float32),
        pid=pid.astype(np.int32),
        camid=camid.astype(np.int32),
        part=part.astype(np.int8),
        names=np.array([f"{row}.jpg" for row in range(count)]),
        camera_codes=(1, 2, 3),
    )
    asked = np.isin(pid, pid[:10]) & (camid >= 0) & (pid > 0) & np.isin(part, (QUERY, GALLERY))
    rows = np.flatnonzero(asked)
    share = evaluate.score(made).figures["same_camera_share"]
    expected = same_camera_share(made.features[rows], made.pid[rows], made.camid[rows])
    assert share == expected and 0 < share < 1
    splits = [dataclasses.replace(made, meta={"split": split}) for split in (1, 2)]
    assert evaluate.score(splits).figures["same_camera_share"] == expected
    unknown = dataclasses.replace(made, camid=np.full(count, -1, np.int32))
    assert "same_camera_share" not in evaluate.score(unknown).figures


def test_nothing_to_evaluate_on(folder):
    with pytest.raises(ValueError, match="a test names no data set: pass --root"):
        evaluate.evaluate_bundle(tiny.bundle("vit"))


@pytest.mark.parametrize("damage", ["arrays", "meta", "model"])
def test_a_damaged_run_folder_takes_one_line(tmp_path, damage):
    write_run(tmp_path, tiny.bundle("vit"))
    checkpoint = tmp_path / "checkpoints" / "0"
    if damage == "arrays":
        for path in (checkpoint / "state").rglob("*"):
            if path.is_file() and path.stat().st_size > 4000:
                path.write_bytes(path.read_bytes()[:1000])
    else:
        path = checkpoint / "meta" / "metadata"
        raw = path.read_text()
        text = raw[:50] if damage == "meta" else raw.replace('"width"', '"breadth"')
        path.write_text(text)
        if damage == "model":
            write_manifest(open_path(checkpoint))  # written so, not damaged
    message = "is damaged" if damage != "model" else "describes no model of this version"
    with pytest.raises(ValueError, match=message) as error:
        read_run(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_flipped_bit_of_a_checkpoint_is_found(tmp_path, monkeypatch):
    """Orbax reads some damaged files without a word."""
    write_run(tmp_path, tiny.bundle("vit"))
    restore = Checkpoints.restore

    def flipped(checkpoints, number):
        state = restore(checkpoints, number)
        state["params"]["visual/proj"].view(np.uint32)[0, 0] ^= 1
        return state

    monkeypatch.setattr(Checkpoints, "restore", flipped)
    with pytest.raises(ValueError, match=r"checkpoint 0 in .* is damaged: its arrays are not"):
        read_run(tmp_path)


def test_a_data_set_that_is_gone(tmp_path):
    bundle = dataclasses.replace(tiny.bundle("vit"), data_root=str(tmp_path / "gone"))
    with pytest.raises(
        FileNotFoundError, match=r"no folder .*gone with the data set: name it with --root"
    ):
        evaluate.evaluate_bundle(bundle)
