import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ccafl_jax.data.names import Names
from ccafl_jax.data.sources import (
    DeepPixels,
    FolderSource,
    PixelFormat,
    check_image,
    decode_image,
    load_image,
)
from tests.data.images import broken_files, encoded, random_pixels


@pytest.mark.parametrize("name", ["bicubic", "bilinear", "lanczos"])
def test_resizing_is_that_of_pil(name):
    pixels = random_pixels(3)
    expected = Image.fromarray(pixels).resize((8, 16), Image.Resampling[name.upper()])
    found = decode_image(encoded(pixels), PixelFormat(16, 8, name))
    np.testing.assert_array_equal(found, np.asarray(expected))


def test_filters_differ():
    found = [
        decode_image(encoded(random_pixels(3)), PixelFormat(7, 5, name))
        for name in ("bicubic", "bilinear", "lanczos")
    ]
    assert not np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])


def test_an_image_of_the_right_size_is_not_touched():
    pixels = random_pixels(0)
    np.testing.assert_array_equal(decode_image(encoded(pixels), PixelFormat(20, 10)), pixels)


def test_grey_becomes_three_equal_channels():
    grey = Image.fromarray(random_pixels(1)).convert("L")
    found = decode_image(encoded(grey), PixelFormat(20, 10))
    np.testing.assert_array_equal(found, np.repeat(np.asarray(grey)[..., None], 3, axis=2))


def test_palette_transparent_and_bilevel_images_become_rgb():
    image = Image.fromarray(random_pixels(1))
    for changed in (image.convert("P"), image.convert("RGBA"), image.convert("1")):
        found = decode_image(encoded(changed), PixelFormat(20, 10))
        np.testing.assert_array_equal(found, np.asarray(changed.convert("RGB")))


def test_cmyk_jpegs_become_rgb():
    flat = Image.new("CMYK", (10, 20), (0, 255, 255, 0))
    found = decode_image(encoded(flat, "JPEG", quality=95), PixelFormat(20, 10))
    assert found.shape == (20, 10, 3)
    assert np.all(found[..., 0] > 200) and np.all(found[..., 1:] < 60)  # red


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_orientation_is_applied(orientation):
    pixels = random_pixels(2, 24, 12)
    turned = np.ascontiguousarray(
        np.rot90(pixels, {1: 0, 3: 2, 6: 1, 8: -1}[orientation])  # as a turned camera stores it
    )
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = encoded(turned, "PNG", exif=exif)
    np.testing.assert_array_equal(decode_image(stored, PixelFormat(24, 12)), pixels)


def test_the_content_decides_not_the_ending(tmp_path):
    pixels = random_pixels(0)
    (tmp_path / "0001_c1.jpg").write_bytes(encoded(pixels, "PNG"))
    found = load_image(tmp_path / "0001_c1.jpg", PixelFormat(20, 10))
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("kind", broken_files())
def test_a_broken_file_is_named_in_one_line(tmp_path, kind):
    data, reason = broken_files()[kind]
    bad = tmp_path / "0002_c1s1_000451_03.jpg"
    bad.write_bytes(data)
    with pytest.raises(ValueError, match=f"{bad}: .*{reason}") as error:
        load_image(bad, PixelFormat(8, 4))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=reason):
        check_image(data)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_than_8_bits_a_channel_are_refused(mode):
    deep = encoded(Image.new(mode, (4, 6)), "TIFF")
    with pytest.raises(DeepPixels, match=f"stored as '{mode}'.*convert the picture to 8 bits"):
        decode_image(deep, PixelFormat(6, 4))


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_deep_colours_are_refused_too(kind, channels):
    """PIL would take the upper 8 bits and say nothing."""

    def chunk(name, data):
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    def png(depth):
        header = struct.pack(">IIBBBBB", 4, 6, depth, kind, 0, 0, 0)
        rows = (b"\0" + bytes(4 * channels * depth // 8)) * 6
        parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + parts

    assert decode_image(png(8), PixelFormat(6, 4)).shape == (6, 4, 3)
    for read in (check_image, lambda data: decode_image(data, PixelFormat(6, 4))):
        with pytest.raises(DeepPixels, match="more than 8 bits a channel"):
            read(png(16))


def test_a_missing_file_and_a_wrong_size_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg: no such image"):
        load_image(tmp_path / "gone.jpg", PixelFormat(8, 4))
    with pytest.raises(ValueError, match="image size 0 x 4"):
        PixelFormat(0, 4)
    with pytest.raises(ValueError, match="filter is 'nearest', must be one of bicubic"):
        PixelFormat(8, 4, "nearest")


def test_the_fingerprint_of_a_folder_follows_names_and_content(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(encoded(random_pixels(0)))

    def fingerprint(*names):
        return FolderSource(tmp_path, Names.pack(names)).fingerprint(np.arange(len(names)))

    first = fingerprint("a.png", "b.png")
    assert fingerprint("a.png", "b.png") == first
    assert fingerprint("b.png", "a.png") != first
    (tmp_path / "a.png").write_bytes(encoded(random_pixels(1), compress_level=0))
    assert fingerprint("a.png", "b.png") != first
