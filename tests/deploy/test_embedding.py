import csv
import logging
import os

import numpy as np
import pytest
from PIL import Image

from ccafl_jax.deploy import embedding
from ccafl_jax.deploy.embedder import Embedder
from ccafl_jax.deploy.embedding import embed_pictures, forget
from ccafl_jax.deploy.fingerprints import model_fingerprint
from ccafl_jax.deploy.pictures import camera_inputs, open_pictures
from ccafl_jax.scoring import feature_set
from tests.deploy import tiny


@pytest.fixture(scope="module")
def model():
    return Embedder(tiny.bundle("resnet"), batch=4)


@pytest.fixture(scope="module")
def camera_model():
    return Embedder(tiny.bundle("vit"), batch=4)


def write_images(folder, names, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in zip(names, tiny.pixels(len(names), seed), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)


@pytest.fixture
def crops(tmp_path):
    write_images(tmp_path / "crops", ["b.png", "in/a.png", "in/ü <1>.png", "c.png", "d.png"])
    (tmp_path / "crops" / "notes.md").write_text("no image")
    return tmp_path / "crops"


def test_a_folder(model, crops):
    pictures = open_pictures([crops])
    assert pictures.names == ["b.png", "c.png", "d.png", "in/a.png", "in/ü <1>.png"]
    found, unreadable = embed_pictures(model, pictures, model="m")
    expected = model.embed([crops / name for name in pictures.names])
    np.testing.assert_allclose(found.features, expected, atol=1e-6)
    assert unreadable == [] and list(found.names) == pictures.names
    assert set(found.pid) == {-2} and set(found.camid) == {-1}
    assert found.meta["fingerprint"] == model_fingerprint(tiny.bundle("resnet"))
    assert found.meta["root"] == str(crops) and found.meta["model"] == "m"
    mirrored, _ = embed_pictures(model, pictures, flip=True)
    assert np.abs(mirrored.features - found.features).max() > 1e-3
    assert mirrored.meta["fingerprint"] != found.meta["fingerprint"]


def test_files_and_lists(crops, tmp_path):
    both = open_pictures([crops / "in", crops / "b.png"])
    assert both.root == str(crops) and both.names == ["in/a.png", "in/ü <1>.png", "b.png"]
    (tmp_path / "names.txt").write_text(f"crops/c.png\n\n{crops / 'd.png'}\n")
    listed = open_pictures([tmp_path / "names.txt"])
    assert [os.path.exists(listed.locate(row)) for row in range(2)] == [True, True]


def test_names_of_market_tell_people_and_cameras(model, tmp_path):
    write_images(tmp_path / "gallery", ["0007_c3_1.png", "-1_c5_2.png", "0002_c5_3.png"])
    write_images(tmp_path / "query", ["0002_c1_4.png"], seed=1)
    gallery = open_pictures([tmp_path / "gallery"])
    assert gallery.camera_codes == (3, 5)
    query = open_pictures([tmp_path / "query"]).as_part(feature_set.QUERY)
    both, _ = embed_pictures(model, query.join(gallery))
    assert both.names.tolist()[:2] == ["query/0002_c1_4.png", "gallery/-1_c5_2.png"]
    assert both.pid.tolist() == [2, -1, 2, 7] and both.camera_codes == (1, 3, 5)
    assert both.camid.tolist() == [0, 2, 2, 1] and both.part.tolist() == [0, 1, 1, 1]


def manifest(path, rows, modality=None):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "pid", "camid", "split"] + (["modality"] if modality else []))
        writer.writerows([*row, modality] if modality else row for row in rows)


def test_a_manifest(crops, model, tmp_path):
    rows = [
        ("b.png", "anna", "door", "query"),
        ("c.png", "anna", "yard", "gallery"),
        ("d.png", "ben", "door", "train"),
        ("in/a.png", "ben", "yard", "distractors"),
    ]
    manifest(crops / "manifest.csv", rows, "infrared")
    pictures = open_pictures([crops / "manifest.csv"])
    assert pictures.names == ["b.png", "c.png", "in/a.png"]
    assert [feature_set.PARTS[part] for part in pictures.part] == [
        "query",
        "gallery",
        "distractors",
    ]
    assert pictures.modality.tolist() == [1, 1, 1]
    assert open_pictures([crops / "manifest.csv"], splits=["train"]).names == ["d.png"]
    found, _ = embed_pictures(model, pictures)
    assert found.dataset == "manifest" and found.pid[0] == found.pid[1] != found.pid[2]
    for name in ("f.npz", "f.parquet"):
        feature_set.save(tmp_path / name, found)
        again = feature_set.load(tmp_path / name)
        for column in ("features", "pid", "camid", "part", "names", "modality"):
            np.testing.assert_array_equal(getattr(again, column), getattr(found, column))
        assert (again.dataset, again.camera_codes) == (found.dataset, found.camera_codes)
        assert again.meta == found.meta
    with pytest.raises(ValueError, match="has no split 'val'; it has train, query"):
        open_pictures([crops / "manifest.csv"], splits=["val"])


def test_unreadable_images_are_counted(crops, model, caplog):
    (crops / "a.png").write_bytes(b"no picture")
    (crops / "in" / "z.png").write_bytes(b"")
    pictures = open_pictures([crops])
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match="2 of 7 images") as e:
        embed_pictures(model, pictures)
    assert "\n" not in str(e.value) and "--skip-unreadable" in str(e.value)
    assert "a.png" in str(e.value) and "z.png" in caplog.text
    found, unreadable = embed_pictures(model, pictures, skip_unreadable=True)
    assert [name for name, _ in unreadable] == found.meta["unreadable"] == ["a.png", "in/z.png"]
    expected = model.embed([crops / str(name) for name in found.names])
    assert len(found) == 5
    np.testing.assert_allclose(found.features, expected, atol=1e-6)
    for path in crops.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="none of 7 images can be read"):
        embed_pictures(model, pictures, skip_unreadable=True)


def test_the_number_of_all_unreadable_images_is_told_at_once(crops, model, monkeypatch):
    monkeypatch.setattr(embedding, "CHUNK", 2)
    (crops / "a.png").write_bytes(b"")
    (crops / "in" / "z.png").write_bytes(b"")
    with pytest.raises(ValueError, match="2 of 7 images"):
        embed_pictures(model, open_pictures([crops]))


class Stops:
    """A model that ends the program in its third call."""

    def __init__(self, model):
        self._model, self.calls = model, 0
        self.preprocess, self.fingerprint = model.preprocess, model.fingerprint

    def embed(self, *arguments, **options):
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt
        return self._model.embed(*arguments, **options)


def test_a_stopped_run_goes_on(crops, model, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "CHUNK", 2)
    pictures, parts = open_pictures([crops]), tmp_path / ".f.parts"
    whole, _ = embed_pictures(model, pictures)
    (crops / "a.png").write_bytes(b"")
    pictures = open_pictures([crops])
    stopped = Stops(model)
    with pytest.raises(KeyboardInterrupt):
        embed_pictures(stopped, pictures, skip_unreadable=True, parts=parts)
    rest = Stops(model)
    found, unreadable = embed_pictures(rest, pictures, skip_unreadable=True, parts=parts)
    assert rest.calls == 1 and [name for name, _ in unreadable] == ["a.png"]
    np.testing.assert_allclose(found.features, whole.features, atol=1e-6)
    os.utime(crops / "b.png", ns=(1, 1))  # another picture perhaps: nothing old is taken
    again = Stops(model)
    with pytest.raises(KeyboardInterrupt):
        embed_pictures(again, pictures, skip_unreadable=True, parts=parts)
    forget(parts)
    assert not parts.exists()
    parts.mkdir()
    (parts / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="something else"):
        embed_pictures(model, pictures, skip_unreadable=True, parts=parts)
    forget(parts)
    assert (parts / "mine.txt").exists()


def test_cameras_are_those_of_the_model(model, camera_model, tmp_path):
    write_images(tmp_path / "named", ["0001_c5_1.png", "0001_c1_1.png"])
    pictures = open_pictures([tmp_path / "named"])
    rows = camera_inputs(camera_model, pictures)
    assert rows.tolist() == [0, 2]  # the model knows the cameras 1, 2, 5
    assert camera_inputs(camera_model, pictures, camera=2).tolist() == [1, 1]
    found, _ = embed_pictures(camera_model, pictures, cameras=rows)
    other, _ = embed_pictures(camera_model, pictures, cameras=rows[::-1].copy())
    assert np.abs(found.features - other.features).max() > 1e-3
    assert camera_inputs(model, pictures) is None
    write_images(tmp_path / "free", ["a.png"])
    free = open_pictures([tmp_path / "free"])
    for given, which, message in (
        ((camera_model, free), {}, r"camera of 1 of 1 images is not known.*\[1, 2, 5\]"),
        ((camera_model, free), {"camera": 3}, "camera 3 is unknown"),
        ((model, free), {"camera": 3}, "no camera embedding"),
        ((model, free), {"modality": 1}, "one stream for all light"),
    ):
        with pytest.raises(ValueError, match=message):
            camera_inputs(*given, **which)


def test_two_streams_ask_for_the_light(model, crops):
    pictures = open_pictures([crops / "b.png"])
    two = Stops(model)
    two.cameras, two.two_streams = 2, True
    assert camera_inputs(two, pictures, modality=1).tolist() == [1]
    with pytest.raises(ValueError, match="say visible or infrared"):
        camera_inputs(two, pictures)


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["nowhere"], {}, "nowhere: no such file or folder"),
        (["empty"], {}, "no image files in"),
        (["notes.md"], {}, "is no source of images"),
        (["crops", "names.txt"], {}, "2 sources, of which one is a list"),
        (["names.txt"], {}, "is empty; expected a path in each line"),
        (["crops"], {"splits": ["train"]}, "splits are of a manifest"),
        (["crops"], {"every": 2}, "every 2 is of frames of a film"),
        (["crops"], {"every": 0}, "every"),
    ],
)
def test_bad_sources_take_one_line(crops, tmp_path, names, options, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "names.txt").write_text("\n")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        open_pictures([tmp_path / name for name in names], **options)
    assert "\n" not in str(error.value)


def test_frames_of_a_film(model, tmp_path, monkeypatch):
    av = pytest.importorskip("av", reason="frames of films need PyAV")
    monkeypatch.setattr(embedding, "CHUNK", 3)
    path = tmp_path / "door.mp4"
    images = tiny.pixels(11).repeat(2, axis=1).repeat(2, axis=2)
    with av.open(str(path), "w") as film:
        stream = film.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.bit_rate = images.shape[2], images.shape[1], 4_000_000
        for image in images:
            film.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        film.mux(stream.encode())
    pictures = open_pictures([path], every=2)
    assert pictures.names == [f"door.mp4#{number:06d}" for number in range(0, 11, 2)]
    found, unreadable = embed_pictures(model, pictures)
    expected = model.embed(list(images[::2]))
    assert not unreadable and np.sum(found.features * expected, axis=1).min() > 0.98
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(ValueError, match=r"door\.mp4"):
        embed_pictures(model, open_pictures([path]))
