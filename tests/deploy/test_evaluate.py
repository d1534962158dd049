import dataclasses
import shutil
import types

import numpy as np
import pytest
from PIL import Image

from ccafl_jax.deploy import evaluate
from ccafl_jax.deploy.archive import read_archive, write_orbax
from ccafl_jax.deploy.embedder import Embedder
from ccafl_jax.deploy.evaluate import camera_rows
from ccafl_jax.deploy.run_folder import read_run, write_run
from ccafl_jax.training.checkpoints import Checkpoints
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


def test_evaluation_meets_the_rows_of_its_cameras(folder, monkeypatch):
    bundle, taken = tiny.bundle("vit"), {}

    def score(features, dataset, **options):
        taken.update(features=features, dataset=dataset, options=options)
        return {"mAP": 0.5}

    monkeypatch.setattr(evaluate, "score", score)
    result = evaluate.evaluate_bundle(bundle, root=str(folder), batch=4, no_match="zero")
    assert result == {"mAP": 0.5} and taken["options"] == {"no_match": "zero"}
    dataset = taken["dataset"]
    assert dataset.camera_codes == (2, 5)
    test_set = dataset.query.join(dataset.gallery)
    paths = [test_set.locate(row) for row in range(len(test_set))]
    camid = np.concatenate([dataset.query.camid, dataset.gallery.camid])
    model = Embedder(bundle, batch=4)
    np.testing.assert_allclose(taken["features"], model.embed(paths, camid + 1), atol=1e-6)
    assert np.abs(taken["features"] - model.embed(paths, camid)).max() > 1e-3


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
    with pytest.raises(FileNotFoundError, match=r"no folder .*gone with the data set: pass --root"):
        evaluate.evaluate_bundle(bundle)
