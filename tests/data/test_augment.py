import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ccafl_jax.data.augment import IMAGENET_MEAN, AugmentConfig, augment, erase_box, grey, normalize

PLAIN = AugmentConfig(flip=0.0, pad=0, erase_probability=0.0)
HEIGHT, WIDTH = 16, 8


def change(**settings):
    return dataclasses.replace(PLAIN, **settings)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return rng.integers(1, 256, (400, HEIGHT, WIDTH, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def identity():
    """Colours that normalise to themselves: pixels can be read off the result."""
    return {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}


def test_normalize_by_hand():
    image = np.array([[[0, 128, 255]]], np.uint8)
    found = normalize(image)
    assert found.dtype == jnp.float32
    expected = [(0 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-6)
    assert normalize(image, dtype=jnp.bfloat16).dtype == jnp.bfloat16
    with jax.enable_x64(True):
        fine = normalize(image, np.array(IMAGENET_MEAN), np.array([0.229, 0.224, 0.225]))
    assert fine.dtype == np.float64
    np.testing.assert_allclose(fine[0, 0], expected, rtol=1e-14)


def test_without_chance_it_is_normalize(images):
    found = augment(images, seed=0, step=0, config=PLAIN)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, jax.jit(normalize)(images))


def test_a_row_depends_on_seed_step_and_row_only(images):
    config = AugmentConfig(pad=3)
    whole = np.asarray(augment(images[:64], seed=3, step=9, config=config))
    np.testing.assert_array_equal(augment(images[:16], seed=3, step=9, config=config), whole[:16])
    rows = jnp.arange(48, 64)
    np.testing.assert_array_equal(
        augment(images[48:64], rows, seed=3, step=9, config=config), whole[48:]
    )
    for seed, step in ((4, 9), (3, 10)):
        other = np.asarray(augment(images[:64], seed=seed, step=step, config=config))
        assert np.mean(np.any(other != whole, axis=(1, 2, 3))) > 0.8
    same = np.repeat(images[:1], 64, axis=0)
    assert len(np.unique(augment(same, seed=3, step=9, config=config), axis=0)) > 50


def test_flip_mirrors_about_half(images, identity):
    found = np.asarray(augment(images, seed=0, step=0, config=change(flip=0.5, **identity)))
    plain = images.astype(np.float32)
    flipped = np.array([np.allclose(a, b[:, ::-1]) for a, b in zip(found, plain, strict=True)])
    kept = np.array([np.allclose(a, b) for a, b in zip(found, plain, strict=True)])
    assert np.all(flipped ^ kept)
    assert stats.binomtest(int(flipped.sum()), 400, 0.5).pvalue > 1e-4
    always = augment(images, seed=0, step=0, config=change(flip=1.0, **identity))
    np.testing.assert_allclose(always, plain[:, :, ::-1], rtol=1e-6)


def test_crops_are_windows_of_the_black_padded_image(images, identity):
    pad = 2
    found = np.asarray(augment(images, seed=1, step=0, config=change(pad=pad, **identity)))
    padded = np.pad(images.astype(np.float32), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    counts = np.zeros((2 * pad + 1, 2 * pad + 1), int)
    for image, source in zip(found, padded, strict=True):
        places = [
            (top, left)
            for top in range(2 * pad + 1)
            for left in range(2 * pad + 1)
            if np.allclose(image, source[top : top + HEIGHT, left : left + WIDTH], atol=1e-3)
        ]
        assert len(places) == 1
        counts[places[0]] += 1
    assert stats.chisquare(counts.ravel()).pvalue > 1e-4


def test_padding_is_black_before_normalisation(images):
    found = np.asarray(augment(images, seed=1, step=0, config=change(pad=5)))
    black = np.asarray(jax.jit(normalize)(np.zeros((1, 1, 3), np.uint8)))[0, 0]
    corners = found[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert np.mean(np.all(corners == black, axis=-1)) > 0.3


@pytest.mark.parametrize("fill", ["release", "zero"])
def test_erasing_writes_one_rectangle_after_normalisation(images, fill):
    config = change(erase_probability=0.5, erase_fill=fill)
    found = np.asarray(augment(images, seed=2, step=0, config=config))
    plain = np.asarray(jax.jit(normalize)(images))
    value = np.float32(IMAGENET_MEAN if fill == "release" else (0, 0, 0))
    erased = np.all(found == value, axis=-1)
    np.testing.assert_allclose(found[~erased], plain[~erased], rtol=1e-5, atol=1e-6)
    used = erased.any(axis=(1, 2))
    assert stats.binomtest(int(used.sum()), 400, 0.5).pvalue > 1e-4
    for mask in erased[used]:
        assert mask.sum() == mask.any(axis=1).sum() * mask.any(axis=0).sum()


def sequential_box(draws, height, width, config):
    """The rule as published: try after try until one fits, then a place, ends included."""
    areas, aspects = np.float32(draws[3:]).reshape(2, -1)
    low, high = np.float32(config.erase_area)
    least, most = np.float32(config.erase_aspect), np.float32(1 / config.erase_aspect)
    for area, aspect in zip(areas, aspects, strict=True):
        pixels = (low + area * (high - low)) * (height * width)
        ratio = least + aspect * (most - least)
        tall, wide = round(float(np.sqrt(pixels * ratio))), round(float(np.sqrt(pixels / ratio)))
        if tall < height and wide < width:
            top = int(draws[1] * (height - tall + 1))
            return top, int(draws[2] * (width - wide + 1)), tall, wide
    return 0, 0, 0, 0


def boxes_of(draws, height, width, config):
    return np.asarray(jax.vmap(lambda draw: erase_box(draw, height, width, config))(draws))


def test_the_first_try_that_fits_is_taken():
    config = AugmentConfig(
        erase_probability=1.0, erase_area=(0.3, 0.9), erase_aspect=0.2, erase_tries=5
    )
    draws = np.random.default_rng(0).random((200, 13), np.float32)
    boxes = boxes_of(draws, 40, 20, config)
    retried = 0
    for draw, box in zip(draws, boxes, strict=True):
        assert tuple(box) == sequential_box(draw, 40, 20, config)
        retried += sequential_box(draw[[0, 1, 2, 3, 8]], 40, 20, config) == (0, 0, 0, 0)
    assert retried > 20  # otherwise the loop was never needed
    assert np.any(np.all(boxes == 0, axis=1))  # and five tries were not always enough


def test_boxes_by_hand():
    """Area .25 of 16 x 16 and aspect 1 make 8 x 8; the last place is the far corner."""
    config = AugmentConfig(erase_area=(0.25, 0.25), erase_aspect=1.0, erase_tries=1)
    draws = np.float32([[0, 0, 0, 0, 0], [0.49, 0.999, 0.5, 0, 0], [0.51, 0.9, 0.9, 0, 0]])
    np.testing.assert_array_equal(
        boxes_of(draws, 16, 16, config), [[0, 0, 8, 8], [8, 4, 8, 8], [0, 0, 0, 0]]
    )


def test_rectangles_have_the_stated_area_shape_and_place():
    config = AugmentConfig(erase_probability=1.0, erase_tries=20)
    draws = np.random.default_rng(1).random((4000, 43), np.float32)
    top, left, tall, wide = boxes_of(draws, 128, 128, config).T
    assert np.all((tall < 128) & (wide < 128) & (top + tall <= 128) & (left + wide <= 128))
    assert np.all(np.minimum(top, left) >= 0)
    share = tall * wide / 128**2
    assert 0.017 < share.min() < 0.03 and 0.38 < share.max() < 0.42
    # On a square only long, large rectangles are refused, so areas are uniform below 0.2.
    small = share[(share > 0.03) & (share < 0.2)]
    assert stats.kstest(small, stats.uniform(0.03, 0.17).cdf).pvalue > 1e-4
    aspect = (tall / wide)[share < 0.2]
    assert stats.kstest(aspect, stats.uniform(0.3, 1 / 0.3 - 0.3).cdf).pvalue > 1e-4
    # The far edge is reached: places are inclusive.
    assert np.any(top + tall == 128) and np.any(left + wide == 128)


def test_nothing_is_erased_when_nothing_fits():
    config = AugmentConfig(erase_probability=1.0, erase_area=(1.0, 1.0), erase_aspect=1.0)
    box = erase_box(jnp.full(203, 0.5), 16, 16, config)
    np.testing.assert_array_equal(box, [0, 0, 0, 0])


def test_every_erasing_setting_changes_the_rectangles():
    base = AugmentConfig(erase_area=(0.2, 0.9), erase_tries=2)
    draws = np.random.default_rng(2).random((64, 7), np.float32)
    reference = boxes_of(draws, 16, 8, base)
    for setting in (
        {"erase_probability": 0.0},
        {"erase_area": (0.3, 0.9)},
        {"erase_aspect": 0.9},
        {"erase_tries": 1},
    ):
        config = dataclasses.replace(base, **setting)
        found = boxes_of(draws[:, : 3 + 2 * config.erase_tries], 16, 8, config)
        assert not np.array_equal(found, reference), setting


def test_frames_of_a_clip_are_moved_alike(images, identity):
    config = change(flip=0.5, pad=2, grey=0.5, **identity)
    still = np.repeat(images[:40], 4, axis=0)
    found = np.asarray(augment(still, seed=0, step=0, config=config, frames=4))
    clips = found.reshape(40, 4, HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(clips, np.broadcast_to(clips[:, :1], clips.shape))
    alone = np.asarray(augment(still, seed=0, step=0, config=config))
    np.testing.assert_array_equal(clips[:, 0], alone[::4])
    assert not np.array_equal(found, alone)


def test_frames_of_a_clip_are_erased_each_by_itself(images):
    config = change(erase_probability=0.5, erase_fill="zero")
    found = augment(images, seed=0, step=0, config=config, frames=4)
    np.testing.assert_array_equal(found, augment(images, seed=0, step=0, config=config))
    erased = np.all(np.asarray(found) == 0, axis=-1).reshape(-1, 4, HEIGHT, WIDTH)
    assert np.any(erased[:, 0] != erased[:, 1])


def test_rectangles_have_a_colour_each(images, identity):
    config = change(erase_probability=1.0, erase_fill="random", **identity)
    found = np.asarray(augment(images, seed=0, step=0, config=config))
    changed = np.any(np.abs(found - images) > 0.5, axis=-1)
    colours = []
    for image, mask in zip(found, changed, strict=True):
        seen, times = np.unique(image[mask].round(), axis=0, return_counts=True)
        assert times.max() == times.sum()
        colours.append(seen[0])
    colours = np.array(colours)
    assert colours.min() >= 0 and colours.max() <= 255
    assert stats.kstest(colours.ravel(), stats.uniform(0, 255).cdf).pvalue > 1e-4


def test_place_as_tfclip_was_released():
    """A rectangle begins where its own size says, is cut off, and is smaller on average."""
    config = AugmentConfig(erase_probability=1.0, erase_area=(0.02, 0.2), erase_place="size")
    draws = np.random.default_rng(0).random((3000, 203), np.float32)
    top, left, tall, wide = boxes_of(draws, 256, 128, config).T
    np.testing.assert_array_equal((top, left), (tall, wide))
    assert (left.min(), top.min()) >= (13, 14)  # 14 and 15 in the specification's draws
    seen = np.clip(256 - top, 0, tall) * np.clip(128 - left, 0, wide) / (256 * 128)
    assert np.mean(seen) == pytest.approx(0.097, abs=0.002)


def test_runs_in_float64(images):
    with jax.enable_x64(True):
        fine = augment(images[:32], seed=0, step=0, config=AugmentConfig(), dtype=np.float64)
    assert fine.dtype == np.float64
    coarse = augment(images[:32], seed=0, step=0, config=AugmentConfig())
    np.testing.assert_allclose(fine, coarse, atol=1e-5)


def test_seed_and_step_do_not_recompile(images):
    augment(images[:16], seed=0, step=0, config=PLAIN)
    before = augment._cache_size()
    for step in range(1, 4):
        augment(images[:16], seed=step, step=step, config=PLAIN)
    assert augment._cache_size() == before


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"flip": 1.5}, "flip=1.5"),
        ({"erase_probability": -0.1}, "erase_probability=-0.1"),
        ({"erase_area": (0.5, 0.2)}, "erase_area"),
        ({"erase_aspect": 0}, "erase_aspect=0"),
        ({"pad": -1}, "pad=-1"),
        ({"erase_fill": "grey"}, "erase_fill='grey'"),
        ({"erase_place": "corner"}, "erase_place='corner'"),
    ],
)
def test_wrong_settings_are_named(setting, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**setting)


def test_lists_are_accepted():
    assert AugmentConfig(erase_area=[0.02, 0.4], flip=1) == AugmentConfig(flip=1.0)


def test_grey_is_the_luma_of_pil(images):
    from PIL import Image

    expected = np.stack([np.asarray(Image.fromarray(x).convert("L")) for x in images[:20]])
    found = np.asarray(grey(images[:20]))
    np.testing.assert_array_equal(found, np.repeat(expected[..., None], 3, axis=-1))


def test_about_half_of_the_coloured_images_turn_grey(images, identity):
    coloured = jnp.arange(400) < 200
    config = change(grey=0.5, **identity)
    found = np.asarray(augment(images, None, coloured, seed=0, step=0, config=config))
    plain = images.astype(np.float32)
    luma = np.asarray(grey(images)).astype(np.float32)
    kept = np.array([np.allclose(a, b) for a, b in zip(found, plain, strict=True)])
    turned = np.array([np.allclose(a, b) for a, b in zip(found, luma, strict=True)])
    assert np.all(kept ^ turned) and np.all(kept[200:])
    assert stats.binomtest(int(turned[:200].sum()), 200, 0.5).pvalue > 1e-4
    all_of_them = augment(images, seed=0, step=0, config=change(grey=1.0, **identity))
    np.testing.assert_allclose(all_of_them, luma, rtol=1e-6)


def test_other_draws_do_not_change_with_grey(images):
    config = AugmentConfig(pad=2)
    turned = augment(grey(images), seed=1, step=2, config=config)
    found = augment(images, seed=1, step=2, config=dataclasses.replace(config, grey=1.0))
    np.testing.assert_array_equal(found, turned)


def test_aspects_of_the_logarithmic_law_lie_evenly_on_both_sides_of_1():
    config = change(erase_probability=1.0, erase_area=(0.1, 0.1), erase_law="log")
    draws = jax.random.uniform(jax.random.key(0), (2000, 3 + 2 * config.erase_tries))
    boxes = np.asarray(jax.vmap(lambda draw: erase_box(draw, 256, 256, config))(draws))
    ratio = np.log(boxes[:, 2] / boxes[:, 3])
    limit = np.log(1 / 0.3)
    assert np.abs(ratio).max() <= limit + 0.02
    assert stats.kstest(ratio, stats.uniform(-limit, 2 * limit).cdf).pvalue > 1e-4
