import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from ccafl_jax.data.sources import FILTERS, PixelFormat, load_image
from ccafl_jax.deploy.embedder import Embedder
from ccafl_jax.deploy.forward import all_arrays, compiled_embed, embed_function
from tests.deploy import tiny


@pytest.fixture(scope="module")
def model():
    return Embedder(tiny.bundle("resnet"), batch=4)


@pytest.fixture(scope="module")
def camera_model():
    return Embedder(tiny.bundle("vit"), batch=4)


@pytest.fixture(scope="module")
def picture():
    """uint8[50, 30, 3], of no model's size."""
    return np.random.default_rng(1).integers(0, 256, (50, 30, 3), dtype=np.uint8)


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_features_are_those_of_the_model(model):
    bundle, images = tiny.bundle("resnet"), tiny.pixels(6)
    found = model.embed(images)
    assert found.dtype == np.float32 and found.shape == (6, model.features)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    direct = jax.jit(embed_function(bundle.model, bundle.preprocess))(all_arrays(bundle), images)
    close(found, direct)
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_one_picture_in_every_form(model, picture, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(picture).save(path)
    resized = load_image(path, PixelFormat(tiny.HEIGHT, tiny.WIDTH))
    forms = [path, str(path), Image.open(path), Image.fromarray(picture), picture, resized]
    found = model.embed(forms)
    for row in found:
        close(row, found[0])
    for alone in forms:
        close(model.embed(alone), found[:1])
    close(model.embed(picture[None]), found[:1])
    close(model.embed(path for _ in range(3)), found[:3])
    for many in (np.array([str(path)] * 2), np.array([path, path]), np.array(str(path))):
        close(model.embed(many), found[: many.size])


def test_pictures_are_resized_with_the_filter_of_the_model(model, picture):
    """Every filter gives other features, which are those of pictures resized by it before."""
    bundle, size, found = tiny.bundle("resnet"), (tiny.WIDTH, tiny.HEIGHT), {}
    for name in FILTERS:
        preprocess = dataclasses.replace(bundle.preprocess, filter=name)
        embedder = Embedder(dataclasses.replace(bundle, preprocess=preprocess), batch=4)
        found[name] = embedder.embed(picture)
        resized = Image.fromarray(picture).resize(size, Image.Resampling[name.upper()])
        close(found[name], model.embed(resized))
    assert np.abs(found["bicubic"] - found["lanczos"]).max() > 1e-3
    assert np.abs(found["bicubic"] - found["bilinear"]).max() > 1e-3


def test_grey_palette_and_alpha(model, picture):
    grey = picture[..., 0]
    close(model.embed([grey]), model.embed([np.repeat(grey[..., None], 3, axis=2)]))
    alpha = np.dstack([picture, np.full(picture.shape[:2], 7, np.uint8)])
    close(model.embed(Image.fromarray(alpha)), model.embed(picture))
    palette = Image.fromarray(picture).convert("P", palette=Image.Palette.ADAPTIVE)
    close(model.embed([palette]), model.embed([np.asarray(palette.convert("RGB"))]))


def test_no_images(model):
    for nothing in ([], np.zeros((0, 5, 5, 3), np.uint8)):
        found = model.embed(nothing)
        assert found.shape == (0, model.features) and found.dtype == np.float32


def test_any_number_of_images_compiles_once():
    bundle = tiny.bundle("resnet")
    other = dataclasses.replace(bundle.preprocess, mean=(0.1, 0.1, 0.1))  # not compiled before
    bundle = dataclasses.replace(bundle, preprocess=other)
    model, images = Embedder(bundle, batch=4), tiny.pixels(9)
    found = model.embed(images, progress=True)
    for count in (1, 3, 4, 5):
        close(model.embed(list(images[:count])), found[:count])
    assert compiled_embed(bundle.model, other, "float32")._cache_size() == 1


def test_batches_are_read_one_after_the_other(monkeypatch):
    """While a batch is computed the next is read, and none beyond it."""
    from ccafl_jax.deploy import embedder

    events = []

    def read(images, rows, *_, **__):
        events.append(("read", rows.start))
        return tiny.pixels(len(rows))

    class Running:
        def __init__(self, number):
            self.number = number

        def __array__(self, dtype=None, copy=None):
            events.append(("done", self.number))
            return np.zeros((2, 1), np.float32)

    monkeypatch.setattr(embedder, "read_images", read)
    bundle = tiny.bundle("resnet")
    starts = iter((0, 2, 4))
    model = embedder.ImageEmbedder(
        lambda pixels, cameras: Running(next(starts)),
        preprocess=bundle.preprocess,
        features=1,
        cameras=0,
        batch=2,
    )
    assert model.embed(["a"] * 5).shape == (5, 1)
    order = [("read", 0), ("read", 2), ("done", 0), ("read", 4), ("done", 2), ("done", 4)]
    assert events == order


def test_several_devices_give_the_same(model):
    images = tiny.pixels(5)
    wide = Embedder(tiny.bundle("resnet"), batch=3, devices=2)
    assert wide.batch == 4
    close(wide.embed(images), model.embed(images))


def test_bfloat16_is_near_and_not_equal(camera_model):
    images = tiny.pixels(4)
    half = Embedder(tiny.bundle("vit"), batch=4, compute_dtype="bfloat16").embed(images, 1)
    full = camera_model.embed(images, 1)
    assert 1e-5 < np.abs(half - full).max() < 5e-2


def test_cameras(camera_model, model):
    images = tiny.pixels(5)
    found = camera_model.embed(images, [0, 1, 2, 0, 1])
    close(camera_model.embed(images, 1)[[1, 4]], found[[1, 4]])
    assert np.abs(camera_model.embed(images, 1)[0] - found[0]).max() > 1e-3
    for cameras, message in (
        (None, "pass cameras, 0 to 2"),
        ([0, 1], r"cameras are int64\[2\]; expected 5 integers"),
        ([0.0] * 5, "expected 5 integers"),
        ([0, 1, 2, 3, 0], "camera 3 is unknown to this model; its cameras are 0 to 2"),
        (-1, "camera -1 is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            camera_model.embed(images, cameras)
    assert camera_model.embed([], []).shape == (0, 24)
    with pytest.raises(ValueError, match="neither a camera embedding nor two streams"):
        model.embed(images, 0)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([np.zeros((8, 8, 3))], "image 0 is an array float64.*multiply values of 0..1 by 255"),
        ([np.zeros((8, 8, 4), np.uint8)], r"uint8\[8, 8, 4\]; expected a path, a PIL image"),
        ([np.zeros((3, 8, 8), np.uint8)], r"uint8\[3, 8, 8\]"),
        (np.zeros((2, 8, 8, 1), np.uint8), r"image 0 is an array uint8\[8, 8, 1\]"),
        ([np.zeros((0, 8, 3), np.uint8)], r"uint8\[0, 8, 3\]"),
        ([np.zeros((32, 16, 3), np.uint8), None], "image 1 is a NoneType"),
        (7, "int is no image"),
        (b"\xff\xd8", r"bytes are no image; .* PIL.Image.open\(io.BytesIO\(content\)\)"),
        ([b"\xff\xd8"], "image 0: bytes are no image"),
        ([Image.new("I;16", (8, 8))], "image 0: pixels are stored as 'I;16'.*8 bits per chan"),
    ],
)
def test_what_is_no_image(model, images, message):
    with pytest.raises(ValueError, match=message) as error:
        model.embed(images)
    assert "\n" not in str(error.value)


def test_a_damaged_file_is_named(model, picture, tmp_path):
    whole, cut, text = tmp_path / "whole.jpg", tmp_path / "cut.jpg", tmp_path / "text.jpg"
    Image.fromarray(picture).save(whole)
    cut.write_bytes(whole.read_bytes()[:-200])
    text.write_text("no image")
    for bad in (cut, text, Image.open(cut)):
        name = "cut.jpg" if bad is not text else "text.jpg"
        with pytest.raises(ValueError, match=name) as error:
            model.embed([whole, bad])
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        model.embed(tmp_path / "none.jpg")


def test_deep_pixels_in_a_file_are_named(model, tmp_path):
    path = tmp_path / "deep.png"
    Image.new("I;16", (8, 8)).save(path)
    for image in (path, Image.open(path)):
        with pytest.raises(ValueError, match=r"deep\.png: pixels are stored as 'I;16'"):
            model.embed([image])


def test_what_it_says_of_itself(model, camera_model):
    assert repr(model) == "Embedder(features=256, images=32x16, cameras=0, batch=4)"
    assert repr(camera_model) == "Embedder(features=24, images=32x16, cameras=3, batch=4)"
    assert model.camera_codes == () and camera_model.camera_codes == (1, 2, 5)


def test_options(model):
    with pytest.raises(ValueError, match="compute dtype is 'float16'"):
        Embedder(tiny.bundle("resnet"), compute_dtype="float16")
    with pytest.raises(ValueError, match="batch is 0"):
        Embedder(tiny.bundle("resnet"), batch=0)
