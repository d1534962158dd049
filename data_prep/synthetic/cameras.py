"""How a camera sees: colour, light, direction, sharpness, and the scenes behind the people.

Every camera has several scenes as backdrop, so that the backdrop alone does not name the camera,
and a full 3x3 colour matrix with its own gamma, so that no per-channel correction undoes it.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data_prep.synthetic import streams

SCENE = (176, 208)
"""Width and height of a scene in scene pixels; an image shows a part of it."""
VISIBLE, NEAR, THERMAL = "visible", "near", "thermal"
"""Parts of the spectrum: visible light, near infrared (lamps), thermal infrared (heat)."""

_MUTED = (
    (96, 98, 100),
    (140, 138, 132),
    (176, 172, 162),
    (70, 74, 78),
    (122, 100, 82),
    (156, 130, 104),
    (82, 104, 74),
    (110, 128, 92),
    (96, 116, 138),
    (150, 166, 180),
    (58, 52, 50),
    (198, 192, 184),
    (134, 88, 76),
    (60, 76, 102),
)
_VIVID = (
    (168, 46, 44),
    (52, 92, 168),
    (204, 170, 60),
    (58, 124, 74),
    (206, 116, 50),
    (226, 224, 216),
    (30, 32, 38),
    (122, 66, 132),
)


@dataclasses.dataclass(frozen=True)
class Camera:
    """One camera.

    Attributes:
      code: number of the camera, from 1.
      domain: stream of the draw; cameras of two domains have nothing in common.
      seed: seed of the cameras' stream.
      matrix: float64[3, 3], seen colour = matrix @ true colour.
      gamma: exponent of the tone curve.
      exposure: mean gain; `exposure_spread` is its spread in stops over visits.
      tint_spread: relative spread of the colour of the light over visits.
      gradient: largest relative change of the light across an image.
      view: main direction of walking, in eighths of a turn; half of the people may come back.
      reversal: share of people who walk the other way.
      view_spread: share of images that show a neighbouring view.
      blur: width of the blur in pixels of a 64 x 128 image.
      noise: spread of the noise in grey levels.
      quality: JPEG quality.
      occlusion: share of images in which something of the scene stands before the person.
      zoom: mean scale of the box.
      slack: relative spread of scale and place of the box, over visits and images.
      scenes: backdrops, PIL images of size SCENE.
      obstacles: one (kind, colour) per scene.
      band: VISIBLE, NEAR or THERMAL.
    """

    code: int
    domain: str
    seed: int
    matrix: np.ndarray
    gamma: float
    exposure: float
    exposure_spread: float
    tint_spread: float
    gradient: float
    view: int
    reversal: float
    view_spread: float
    blur: float
    noise: float
    quality: int
    occlusion: float
    zoom: float
    slack: float
    scenes: tuple[Image.Image, ...]
    obstacles: tuple[tuple[str, tuple[int, int, int]], ...]
    band: str = VISIBLE

    @functools.cached_property
    def tone(self) -> np.ndarray:
        """The tone curve: float32[1024], linear light in 1/1023 -> grey level 0..255."""
        light = np.arange(1024) / 1023.0
        return (255.0 * light**self.gamma).astype(np.float32)


def draw_cameras(
    codes: Sequence[int] | np.ndarray, *, seed: int, domain: str = "data", strength: float = 1.0
) -> list[Camera]:
    """The cameras of the given numbers.

    A camera depends on (domain, seed, code, strength) alone.

    Args:
      codes: camera numbers.
      seed: seed of the cameras' stream.
      domain: name of the stream.
      strength: how far colours, tone and light depart from neutral; 0 leaves colours as they are.

    Returns:
      One Camera per entry of `codes`.
    """
    return [_draw_camera(int(code), seed, domain, float(strength)) for code in codes]


@functools.lru_cache(maxsize=256)
def _draw_camera(code: int, seed: int, domain: str, strength: float) -> Camera:
    draws = streams.uniform(streams.stream_key("cameras", domain, seed), np.array([code]), 48)[0]
    u = draws.tolist()
    signed = (2 * draws - 1).tolist()
    scenes, obstacles = _scenes(3 + int(u[0] * 3), seed, domain, code)
    return Camera(
        code=code,
        domain=domain,
        seed=seed,
        matrix=_colour_matrix(draws[20:40], strength),
        gamma=math.exp(strength * (0.24 * signed[1] - 0.15)),
        exposure=math.exp(0.16 * strength * signed[2]),
        exposure_spread=0.32,
        tint_spread=0.30,
        gradient=0.25 + 0.35 * u[3],
        view=int(u[4] * 8),
        reversal=0.35 * u[5],
        view_spread=0.04 + 0.08 * u[6],
        blur=0.2 + 0.5 * u[7],
        noise=2.0 + 4.0 * u[8],
        quality=int(50 + 42 * u[9]),
        occlusion=0.04 + 0.07 * u[10],
        zoom=1.0 + 0.08 * signed[11],
        slack=0.10 + 0.05 * u[12],
        scenes=scenes,
        obstacles=obstacles,
    )


def _colour_matrix(u: np.ndarray, strength: float) -> np.ndarray:
    """A turn of the hues, less or more saturation, crosstalk and white balance."""
    signed = 2 * u - 1
    angle = math.radians(22.0) * strength * signed[0]
    saturation = math.exp(strength * (0.28 * signed[1] - 0.12))
    grey = np.full((3, 3), 1 / 3)
    skew = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    turn = grey + saturation * (math.cos(angle) * (np.eye(3) - grey) + math.sin(angle) * skew)
    crosstalk = np.eye(3) + 0.08 * strength * signed[2:11].reshape(3, 3)
    balance = np.exp(0.13 * strength * signed[11:14])
    balance = balance / balance.mean()
    return balance[:, None] * (crosstalk @ turn)


def _scenes(count: int, seed: int, domain: str, code: int):
    key = streams.stream_key("scenes", domain, seed, code)
    draws = streams.uniform(key, np.arange(count), 400)
    scenes = tuple(_paint_scene(row) for row in draws)
    kinds = ("pole", "wall", "bush", "cart")
    obstacles = tuple(
        (kinds[int(row[399] * 4)], _MUTED[int(row[398] * len(_MUTED))]) for row in draws
    )
    return scenes, obstacles


def _paint_scene(u: np.ndarray) -> Image.Image:
    """A backdrop: wall, ground, and things that stand, hang or park there."""
    stream = iter(u)
    width, height = SCENE
    horizon = height * (0.30 + 0.40 * next(stream))
    image = Image.new("RGB", SCENE, _pick(_MUTED, next(stream), next(stream)))
    draw = ImageDraw.Draw(image)
    _paint_wall(draw, stream, horizon)
    draw.rectangle((0, horizon, width, height), fill=_pick(_MUTED, next(stream), next(stream)))
    _paint_ground(draw, stream, horizon)
    for _ in range(3 + int(4 * next(stream))):
        tall = 20 + 90 * next(stream)
        wide = 6 + 46 * next(stream)
        left = width * next(stream) - wide / 2
        base = horizon + (height - horizon) * 0.5 * next(stream)
        palette = _VIVID if next(stream) < 0.45 else _MUTED
        box = (left, base - tall, left + wide, base)
        fill = _pick(palette, next(stream), next(stream))
        if next(stream) < 0.3:
            draw.ellipse(box, fill=fill)
        else:
            draw.rectangle(box, fill=fill)
            draw.rectangle(
                (left + 3, base - tall + 3, left + wide * 0.6, base - tall * 0.6),
                fill=_pick(_MUTED, next(stream), next(stream)),
            )
    return image.filter(ImageFilter.BoxBlur(1))


def _paint_wall(draw, stream, horizon):
    kind, ink = next(stream), _pick(_MUTED, next(stream), next(stream))
    pitch = 14 + 22 * next(stream)
    if kind < 0.35:
        for x in np.arange(0, SCENE[0], pitch):
            for y in np.arange(4, horizon - 8, pitch * 1.2):
                draw.rectangle((x + 3, y, x + pitch * 0.7, y + pitch * 0.7), fill=ink)
    elif kind < 0.6:
        for y in np.arange(0, horizon, pitch * 0.4):
            draw.line((0, y, SCENE[0], y), fill=ink, width=2)
    elif kind < 0.85:
        for x in np.arange(0, SCENE[0], pitch):
            draw.rectangle((x, 0, x + pitch * 0.5, horizon), fill=ink)


def _paint_ground(draw, stream, horizon):
    kind, ink = next(stream), _pick(_MUTED, next(stream), next(stream))
    if kind < 0.4:
        for step in range(6):
            y = horizon + (SCENE[1] - horizon) * (step / 6) ** 1.6
            draw.line((0, y, SCENE[0], y), fill=ink, width=2)
    elif kind < 0.75:
        middle = SCENE[0] * next(stream)
        for step in range(-6, 7):
            draw.line((middle, horizon, middle + step * 60, SCENE[1]), fill=ink, width=2)


def _pick(palette, which: float, shade: float) -> tuple[int, int, int]:
    factor = 0.75 + 0.5 * shade
    red, green, blue = palette[int(which * len(palette))]
    return tuple(min(255, int(value * factor)) for value in (red, green, blue))
