"""Training augmentation on the device: uint8 images in, normalised float images out.

Grey, flip, pad and crop, normalise, erase: the recipe of the published CLIP-based ReID systems.
Each row draws from its own key, fold_in(fold_in(key(seed), step), row), so that a row's pixels
depend neither on the size of the batch nor on the device that holds it.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_LAWS = ("uniform", "log")
_FILLS = {"release": IMAGENET_MEAN, "zero": (0.0, 0.0, 0.0), "random": None}
_PLACES = ("drawn", "size")


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Settings of `augment`.

    Attributes:
      grey: probability that an image loses its colours (those of visible light, where images of
        other light are among them).
      flip: probability of a horizontal flip.
      pad: black pixels added on every side before the random crop back to size; 0 for none.
      erase_probability: probability of erasing one rectangle.
      erase_area: range of the rectangle's share of the image, before it is rounded to pixels.
      erase_aspect: smallest ratio height / width; drawn up to its inverse.
      erase_law: "uniform" in the ratio, as most published systems draw it, or "log", uniform in its
        logarithm, as torchvision does.
      erase_tries: rectangles drawn until one is strictly smaller than the image on both sides.
      erase_fill: "release" writes (.485, .456, .406) into the normalised image, a mild grey, as
        the published systems do; "zero" writes the mean colour; "random" draws a colour for each
        rectangle, as TF-CLIP does.
      erase_place: "drawn" erases at the place that was drawn; "size" at as many pixels from the
        left and the top as the rectangle is wide and high, cut off at the edges: so TF-CLIP was
        released.
      mean: colour subtracted from images scaled to 0..1.
      std: colour the difference is divided by.
    """

    grey: float = 0.0
    flip: float = 0.5
    pad: int = 10
    erase_probability: float = 0.5
    erase_area: tuple[float, float] = (0.02, 0.4)
    erase_aspect: float = 0.3
    erase_law: str = "uniform"
    erase_tries: int = 100
    erase_fill: str = "release"
    erase_place: str = "drawn"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self):
        # Lists, as configuration files give them, cannot be part of a static argument.
        for name in ("erase_area", "mean", "std"):
            object.__setattr__(self, name, tuple(float(x) for x in getattr(self, name)))
        for name in ("grey", "flip", "erase_probability"):
            object.__setattr__(self, name, float(getattr(self, name)))
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is not a probability, 0 to 1")
        if len(self.erase_area) != 2 or not 0 < self.erase_area[0] <= self.erase_area[1] <= 1:
            raise ValueError(f"erase_area={self.erase_area}; expected 0 < low <= high <= 1")
        if not 0 < self.erase_aspect <= 1:
            raise ValueError(f"erase_aspect={self.erase_aspect}; expected 0 < aspect <= 1")
        if self.pad < 0 or self.erase_tries < 1:
            raise ValueError(f"pad={self.pad} must be 0 or more, erase_tries={self.erase_tries} 1")
        if self.erase_law not in _LAWS:
            raise ValueError(f"erase_law={self.erase_law!r}; expected one of {list(_LAWS)}")
        if self.erase_fill not in _FILLS:
            raise ValueError(f"erase_fill={self.erase_fill!r}; expected one of {list(_FILLS)}")
        if self.erase_place not in _PLACES:
            raise ValueError(f"erase_place={self.erase_place!r}; expected one of {list(_PLACES)}")


@functools.partial(jax.jit, static_argnames=("config", "frames", "dtype"))
def augment(
    images: jax.Array,
    rows: jax.Array | None = None,
    coloured: jax.Array | None = None,
    *,
    seed: int | jax.Array,
    step: int | jax.Array,
    config: AugmentConfig,
    frames: int = 1,
    dtype: jnp.dtype = jnp.float32,
) -> jax.Array:
    """Augments and normalises one batch.

    The frames of a clip are flipped, cropped and greyed alike, by the draws of the first, and each
    is erased by its own.

    Args:
      images: uint8[b, H, W, 3].
      rows: int32[b], place of each image in the global batch, to which its draws belong; 0..b-1
        when None.
      coloured: bool[b], which images have colours that they may lose; all when None.
      seed: seed of the run.
      step: step of the run; the draws of a row differ from step to step.
      config: settings.
      frames: of a clip, which lie side by side in the batch; 1 for single images.
      dtype: of the result.

    Returns:
      float[b, H, W, 3], normalised.

    Source: CLIP-ReID, CCAFL and TF-CLIP training transforms; random erasing of arXiv 1708.04896.
    """
    if rows is None:
        rows = jnp.arange(images.shape[0])
    step_key = jax.random.fold_in(jax.random.key(seed), step)
    keys = jax.vmap(lambda row: jax.random.fold_in(step_key, row))(rows)
    draws = jax.vmap(lambda key: _row_draws(key, config))(keys)
    first = jnp.arange(images.shape[0]) // frames * frames  # of the clip that each is a frame of
    if config.grey:
        is_grey = _is_grey(keys[first], coloured, config)
        images = jnp.where(is_grey[:, None, None, None], grey(images), images)
    height, width = images.shape[1:3]
    boxes = jax.vmap(lambda draw: erase_box(draw, height, width, config))(draws["erase"])
    move = functools.partial(flip_and_crop, config=config)
    moved = jax.vmap(move)(images, draws["move"][first])
    normalised = normalize(moved, config.mean, config.std, dtype=dtype)
    if config.erase_fill == "random":
        colour = _below(draws["colour"], 256).astype(jnp.uint8)
        fill = normalize(colour, config.mean, config.std, dtype=dtype)[:, None, None]
    else:
        fill = jnp.asarray(_FILLS[config.erase_fill], dtype)
    inside = jax.vmap(lambda box: _box_mask(box, height, width))(boxes)
    return jnp.where(inside[..., None], fill, normalised)


def normalize(
    images: jax.Array,
    mean: Sequence[float] | jax.Array = IMAGENET_MEAN,
    std: Sequence[float] | jax.Array = IMAGENET_STD,
    *,
    dtype: jnp.dtype | None = None,
) -> jax.Array:
    """Scales uint8 images to 0..1 and normalises their colours; all that a test image gets.

    Args:
      images: uint8[..., 3].
      mean: float[3].
      std: float[3].
      dtype: of the result; when None that of `mean` if it is an array, at least float32.

    Returns:
      float[..., 3].
    """
    if dtype is None:
        dtype = jnp.promote_types(getattr(mean, "dtype", jnp.float32), jnp.float32)
    mean, std = jnp.asarray(mean, dtype), jnp.asarray(std, dtype)
    return (jnp.asarray(images).astype(dtype) / 255 - mean) / std


def grey(images: jax.Array) -> jax.Array:
    """Images without colours: the luma of ITU-R 601 in all channels, rounded as PIL does.

    Args:
      images: uint8[..., 3].

    Returns:
      uint8[..., 3].
    """
    weights = jnp.array([19595, 38470, 7471], jnp.int32)  # of 2 ** 16
    luma = (jnp.sum(images.astype(jnp.int32) * weights, axis=-1, keepdims=True) + 2**15) >> 16
    return jnp.broadcast_to(luma.astype(jnp.uint8), images.shape)


def flip_and_crop(image: jax.Array, draws: jax.Array, config: AugmentConfig) -> jax.Array:
    """Flips, pads with black and crops one image.

    Args:
      image: uint8[H, W, 3].
      draws: float32[3], uniform in 0..1: whether to flip, top and left of the crop.
      config: settings.

    Returns:
      uint8[H, W, 3].
    """
    image = jnp.where(draws[0] < config.flip, image[:, ::-1], image)
    if config.pad == 0:
        return image
    pad = config.pad
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    top, left = _below(draws[1:], 2 * pad + 1)
    return jax.lax.dynamic_slice(padded, (top, left, np.int32(0)), image.shape)


def erase_box(draws: jax.Array, height: int, width: int, config: AugmentConfig) -> jax.Array:
    """The rectangle to erase in one image.

    All tries are drawn at once and the first that fits is taken, which is what drawing one after
    the other would give.

    Args:
      draws: float32[3 + 2 tries], uniform in 0..1: whether to erase, top, left, the areas of the
        tries and their aspects.
      height: of the image.
      width: of the image.
      config: settings.

    Returns:
      int32[4]: top, left, height, width; all 0 if nothing is erased. What lies beyond the image is
      not erased.
    """
    areas, aspects = draws[3:].reshape(2, config.erase_tries)
    low, high = config.erase_area
    area = (low + areas * (high - low)) * (height * width)
    if config.erase_law == "log":
        aspect = config.erase_aspect ** (1 - 2 * aspects)
    else:
        aspect = config.erase_aspect + aspects * (1 / config.erase_aspect - config.erase_aspect)
    tall = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    wide = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits = (tall < height) & (wide < width)
    first = jnp.argmax(fits)
    size = jnp.stack([tall[first], wide[first]])
    if config.erase_place == "drawn":
        place = _below(draws[1:3], jnp.array([height, width], jnp.int32) - size + 1)
    else:
        place = size
    used = fits[first] & (draws[0] < config.erase_probability)
    return jnp.where(used, jnp.concatenate([place, size]), 0)


def _row_draws(key: jax.Array, config: AugmentConfig) -> dict[str, jax.Array]:
    """All the uniform numbers of one row, in one call of the generator: it compiles faster."""
    move, erase = 3, 3 + 2 * config.erase_tries
    colour = 3 if config.erase_fill == "random" else 0
    # float32 whatever the default, so that a run in float64 sees the same pixels.
    draws = jax.random.uniform(key, (move + erase + colour,), jnp.float32)
    parts = {"move": draws[:move], "erase": draws[move : move + erase]}
    return parts | ({"colour": draws[move + erase :]} if colour else {})


def _is_grey(keys: jax.Array, coloured: jax.Array | None, config: AugmentConfig) -> jax.Array:
    """Which rows lose their colours, bool[b]."""
    # A key of its own, so that the other draws do not change with this option.
    draws = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), (), jnp.float32))(
        keys
    )
    chosen = draws < config.grey
    return chosen if coloured is None else chosen & coloured


def _below(draws: jax.Array, bound: int | jax.Array) -> jax.Array:
    """Uniform integers 0..bound - 1 from uniform numbers, int32."""
    return (draws * bound).astype(jnp.int32)


def _box_mask(box: jax.Array, height: int, width: int) -> jax.Array:
    """Where the rectangle lies, bool[H, W]."""
    row, column = jnp.arange(height), jnp.arange(width)
    top, left, tall, wide = box
    return ((row >= top) & (row < top + tall))[:, None] & (
        (column >= left) & (column < left + wide)
    )
