"""The same people and scenes in infrared: shapes stay, colours do not.

Near infrared (lamps beside the camera) shows how a cloth reflects there, which depends on fibre and
dye, not on the colour that the eye sees: black and white cotton can look alike, a pattern can
vanish. Thermal infrared shows warmth: bare skin is bright, thick cloth dark, prints are not there.
A shade belongs to a person and is the same under all cameras of a band.
"""

import dataclasses

import numpy as np
from PIL import Image

from data_prep.synthetic import streams
from data_prep.synthetic.cameras import NEAR, THERMAL, VISIBLE, Camera
from data_prep.synthetic.people import COLOURS, Person

_DYED = {"top_colour": 0, "bottom_colour": 4, "shoes": 5, "head": 7, "bag": 8}
_PARTS = dict(zip(_DYED, ("top", "bottom", "shoe", "headwear", "bag"), strict=True))
_DYED_ALIKE = 0.5
"""How much of a cloth's shade in near infrared is what the eye sees; the rest is drawn."""
_AMBIENT = {NEAR: 118.0, THERMAL: 62.0}
_CONTRAST = {NEAR: 0.9, THERMAL: 0.22}
# Light from one side makes a shade up to 1.21 times as bright, in eight bits.
_BRIGHTEST = 206.0
# Warmth that comes through, thin cloth to thick.
_WARMTH = {"t-shirt": 172.0, "shirt": 158.0, "hoodie": 132.0, "jacket": 118.0, "coat": 104.0}
_LEG_WARMTH = {"leggings": 166.0, "shorts": 140.0, "trousers": 130.0, "skirt": 124.0}


def infrared_camera(camera: Camera, band: str) -> Camera:
    """The camera with a sensor for infrared: same place, direction and faults, other light.

    Args:
      camera: a camera for visible light.
      band: NEAR or THERMAL.

    Raises:
      ValueError: for another band.
    """
    _check_band(band)
    thermal = band == THERMAL
    weights = _scene_weights(camera.domain, camera.seed, camera.code)
    return dataclasses.replace(
        camera,
        band=band,
        blur=camera.blur + (0.5 if thermal else 0.1),
        noise=camera.noise * (0.6 if thermal else 1.0),
        # Lamps beside the camera, and warmth, are the same at every visit, unlike daylight.
        exposure_spread=camera.exposure_spread * 0.25,
        gradient=camera.gradient * 0.5,
        scenes=tuple(_gray_scene(scene, weights, band) for scene in camera.scenes),
        obstacles=tuple(
            (kind, (_gray_colour(colour, weights, band),) * 3) for kind, colour in camera.obstacles
        ),
    )


def shades(person: Person, band: str) -> dict[str, np.ndarray]:
    """What the parts of a person look like in infrared, whatever their colours.

    Args:
      person: who.
      band: NEAR or THERMAL.

    Returns:
      float64[3] (three times the same grey level) by part, with the keys that the renderer knows.

    Raises:
      ValueError: for another band.
    """
    _check_band(band)
    key = streams.stream_key("infrared", band, person.domain, person.seed)
    u = streams.uniform(key, np.array([person.pid]), 12)[0].tolist()
    grays = _near(person, u) if band == NEAR else _thermal(person, u)
    return {name: np.full(3, min(max(gray, 12.0), _BRIGHTEST)) for name, gray in grays.items()}


def tones(person: Person, band: str) -> dict[str, str]:
    """Whether clothes are light or dark in infrared, or in a grey picture of visible light.

    Args:
      person: who.
      band: NEAR, THERMAL or VISIBLE.

    Returns:
      "light" or "dark" by attribute, with those keys of `people.attributes` that name colours.
    """
    if band == VISIBLE:
        light = {name: _lightness(person.value(name)[-1]) > 0.4 for name in _DYED}
    else:
        grays = shades(person, band)
        light = {name: grays[part][0] > 130 for name, part in _PARTS.items()}
    words = {"head": "headwear"}
    return {words.get(name, name): "light" if is_so else "dark" for name, is_so in light.items()}


def _near(person, u):
    seen = {name: _lightness(person.value(name)[-1]) for name in _DYED}
    shade = {
        name: _DYED_ALIKE * lightness + (1 - _DYED_ALIKE) * u[column]
        for (name, column), lightness in zip(_DYED.items(), seen.values(), strict=True)
    }
    top = 62.0 + 150.0 * shade["top_colour"]
    return {
        "skin": 204.0 - 16.0 * person.skin,
        "top": top,
        # Patterns fade, and some turn around.
        "second": top + 110.0 * (u[1] - 0.5),
        "mark": top + 130.0 * (u[2] - 0.5),
        "inner": 150.0 + 70.0 * u[3],
        "bottom": 54.0 + 150.0 * shade["bottom_colour"],
        "shoe": 44.0 + 110.0 * shade["shoes"],
        "hair": 48.0 + 50.0 * u[6],
        "headwear": 50.0 + 150.0 * shade["head"],
        "bag": 50.0 + 150.0 * shade["bag"],
        "feature": 46.0,
    }


def _lightness(colour: str) -> float:
    """How light the eye sees a colour, 0 to 1; 0 for what is not there."""
    red, green, blue = COLOURS.get(colour, (0, 0, 0))
    return (0.299 * red + 0.587 * green + 0.114 * blue) / 255


def _thermal(person, u):
    top = _WARMTH[person.value("top")[0]] + 26.0 * (u[0] - 0.5)
    return {
        "skin": 192.0 + 14.0 * u[1],
        "top": top,
        "second": top,
        "mark": top,
        "inner": 168.0 + 20.0 * u[3],
        "bottom": _LEG_WARMTH[person.value("bottom")[0]] + 26.0 * (u[4] - 0.5),
        "shoe": 84.0 + 30.0 * u[5],
        "hair": 138.0 + 30.0 * u[6],
        "headwear": 108.0 + 30.0 * u[7],
        "bag": 66.0 + 26.0 * u[8],
        "feature": 180.0,
    }


def _scene_weights(domain: str, seed: int, code: int) -> tuple[float, float, float]:
    """How strongly each colour of a scene shows, with sign: no colour keeps its brightness."""
    key = streams.stream_key("infrared scenes", domain, seed)
    weights = 2 * streams.uniform(key, np.array([code]), 3)[0] - 1
    red, green, blue = (weights / np.abs(weights).sum()).tolist()
    return red, green, blue


def _gray_scene(scene: Image.Image, weights, band: str) -> Image.Image:
    return Image.fromarray(_gray(np.asarray(scene, np.float64), weights, band)).convert("RGB")


def _gray_colour(colour: tuple[int, int, int], weights, band: str) -> int:
    return int(_gray(np.array(colour, np.float64), weights, band))


def _gray(colours: np.ndarray, weights, band: str) -> np.ndarray:
    red, green, blue = (weights[i] * (colours[..., i] - 120.0) for i in range(3))
    level = _AMBIENT[band] + _CONTRAST[band] * (red + green + blue)
    return np.clip(level, 8, 247).astype(np.uint8)


def _check_band(band: str) -> None:
    if band not in _AMBIENT:
        raise ValueError(f"band {band!r} is not infrared; choose one of {', '.join(_AMBIENT)}")
