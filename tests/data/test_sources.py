import numpy as np
import pytest
from PIL import Image

from ccafl_jax.data.sources import load_image, load_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for row in range(70):
        height, width = 20 + row % 7, 10 + row % 5
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(
            root / f"{row}.png"
        )
    return root


def test_rows_follow_the_paths_whatever_the_threads(folder):
    paths = [folder / f"{row}.png" for row in range(70)][::-1]
    images = load_images(paths, 16, 8, progress=False, workers=3)
    assert images.shape == (70, 16, 8, 3) and images.dtype == np.uint8
    for row, path in enumerate(paths):
        with Image.open(path) as image:
            expected = np.asarray(image.resize((8, 16), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(images[row], expected)
    np.testing.assert_array_equal(load_image(str(paths[3]), 16, 8), images[3])


def test_an_image_of_the_right_size_is_not_touched(folder):
    with Image.open(folder / "0.png") as image:
        np.testing.assert_array_equal(load_image(folder / "0.png", 20, 10), np.asarray(image))


def test_grey_palette_and_alpha_become_rgb(tmp_path):
    for mode in ("L", "P", "RGBA"):
        Image.new(mode, (4, 6)).save(tmp_path / f"{mode}.png")
        assert load_image(tmp_path / f"{mode}.png", 6, 4).shape == (6, 4, 3)


def test_no_paths():
    assert load_images([], 4, 2).shape == (0, 4, 2, 3)


def test_progress_bar_counts_images(folder, capsys):
    load_images([folder / "0.png"] * 5, 4, 2, progress=True)
    assert "loading images" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["text", "empty", "truncated"])
def test_a_damaged_file_is_named(folder, tmp_path, kind):
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 32, 3), np.uint8)).save(whole)
    data = {"text": b"not an image", "empty": b"", "truncated": whole.read_bytes()[:900]}[kind]
    bad = tmp_path / "0002_c1s1_000451_03.jpg"
    bad.write_bytes(data)
    with pytest.raises(ValueError, match=f"{bad} is not a readable image") as error:
        load_images([folder / "0.png"] * 40 + [bad], 8, 4, progress=False)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_wrong_size_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg: no such image"):
        load_images([tmp_path / "gone.jpg"], 8, 4, progress=False)
    with pytest.raises(ValueError, match="image size 0 x 4"):
        load_images([], 0, 4)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_than_8_bits_a_channel_are_refused(tmp_path, mode):
    path = tmp_path / "deep.tiff"
    Image.new(mode, (4, 6)).save(path)
    with pytest.raises(ValueError, match=rf"deep.tiff: pixels are of PIL's mode '{mode}'") as error:
        load_images([path], 6, 4, progress=False)
    assert "convert the picture to 8 bits per channel first" in str(error.value)
    assert "\n" not in str(error.value)
