"""Shapes of people: label maps of a body, its clothes and what it carries, from eight sides.

A label map holds one small integer per pixel (skin, top, near trouser leg, bag, ...). It depends on
the shape of a person only; colours come in later through a table, so few maps serve many people.
Some labels show from one side alone: a print from the front, a backpack from behind (straps and a
rim elsewhere), an open jacket from the front, a tail of hair or a hood from behind.
"""

import functools
import math

import numpy as np
from PIL import Image, ImageDraw

CANVAS = (144, 264)
"""Width and height of a label map in canvas pixels; the nominal frame is 100 x 200 within it."""
FRAME = (22.0, 32.0, 100.0, 200.0)
"""Left, top, width and height of the nominal bounding box on the canvas."""
VIEWS = 8
"""Directions; view 0 faces the camera, 2 walks to the right, 4 shows the back."""
PHASES = 4
"""Phases of the gait."""

# Labels. Those of the top come in three states (see `pattern_map`): plain, patterned, printed.
EMPTY, SKIN, SKIN_FAR, TOP, TOP_NEAR, TOP_FAR, INNER, BOTTOM, BOTTOM_FAR, SHOE, SHOE_FAR = range(11)
HAIR, HEADWEAR, BAG, STRAP, FEATURE, FOLD = range(11, 17)
LABELS = 32

_CENTRE = 72.0
_HEAD, _NECK, _SHOULDER, _WAIST, _HIP, _KNEE, _ANKLE, _SOLE = 52, 66, 76, 116, 138, 178, 216, 226
# Half widths and depths of shoulder, waist and hip for the six builds of the people.
_BUILDS = (
    (19, 13, 15, 10, 7.5),
    (22, 16, 17, 12, 9.0),
    (27, 22, 21, 16, 10.5),
    (16, 11, 15, 9, 7.0),
    (19, 14, 18, 11, 8.5),
    (23, 19, 22, 15, 10.0),
)


@functools.lru_cache(maxsize=4096)
def body_map(view: int, phase: int, build: int, top: str, bottom: str) -> np.ndarray:
    """Label map of a body in its clothes.

    Args:
      view: 0..7.
      phase: 0..3.
      build: row of the build attribute.
      top: shirt, t-shirt, jacket, coat or hoodie.
      bottom: trousers, shorts, skirt or leggings.

    Returns:
      uint8[264, 144] labels, read-only.
    """
    image = Image.new("L", CANVAS, EMPTY)
    draw = ImageDraw.Draw(image)
    cos, sin = _direction(view)
    shoulder, waist, hip = _half_widths(view, build)
    limb = _BUILDS[build][4]
    swing = math.sin(2 * math.pi * (phase + 0.5) / PHASES)
    # Far limbs first. Seen from the side both hang from the middle, and near is the later one.
    for near, side in ((False, -1), (True, 1)):
        _leg(
            draw, side * swing, side * hip * 0.5 * (0.25 + 0.75 * abs(cos)), sin, limb, bottom, near
        )
        if abs(sin) > 0.4 and not near:
            _arm(draw, swing, -shoulder * abs(cos), sin, limb, top, False)
    _trunk(draw, shoulder, waist, hip, top, bottom, cos, sin)
    if abs(sin) <= 0.4:
        _arm(draw, swing * 0.5, -shoulder, sin, limb, top, True)
        _arm(draw, -swing * 0.5, shoulder, sin, limb, top, True)
    else:
        _arm(draw, -swing, shoulder * abs(cos) * 0.9, sin, limb, top, True)
    return _frozen(image)


@functools.lru_cache(maxsize=4096)
def gear_map(view: int, build: int, hair: str, head: str, bag: str, top: str) -> np.ndarray:
    """Label map of head, hair, headwear and bag, drawn over a body; EMPTY lets the body through.

    Args:
      view: 0..7.
      build: row of the build attribute.
      hair: short, long, tied or no.
      head: none, cap or beanie.
      bag: none, backpack, satchel or handbag.
      top: kind of the top; a hoodie shows its hood.

    Returns:
      uint8[264, 144] labels, read-only.
    """
    image = Image.new("L", CANVAS, EMPTY)
    draw = ImageDraw.Draw(image)
    cos, sin = _direction(view)
    shoulder, _, hip = _half_widths(view, build)
    if bag == "backpack":
        _backpack(draw, cos, sin, shoulder)
    elif bag == "satchel":
        _satchel(draw, cos, sin, shoulder, hip)
    x = _CENTRE + 2.5 * sin
    width = 9.5 + 1.5 * abs(sin)
    if top == "hoodie":
        reach = 13 if cos < 0.3 else 11
        _ellipse(draw, _CENTRE - 4 * sin, _SHOULDER - 4, reach, 8 if cos < 0.3 else 5, TOP_FAR)
    if hair == "long":
        low = _SHOULDER + 12
        span = 12 if cos < 0.3 else 13
        draw.rectangle((x - 3 * sin - span, _HEAD - 4, x - 3 * sin + span, low), fill=HAIR)
    _ellipse(draw, x, _HEAD, width, 13, SKIN)
    if hair != "no":
        _hair(draw, x, width, cos, sin)
    if hair == "tied":
        _ellipse(draw, x - 11 * sin, _HEAD - 8 - 5 * abs(cos), 6, 6, HAIR)
        if cos < 0.3:
            draw.rectangle(
                (x - 12 * sin - 3, _HEAD - 6, x - 12 * sin + 3, _SHOULDER + 6), fill=HAIR
            )
    if cos > 0.5:
        for side in (-4, 4):
            _ellipse(draw, x + 3 * sin + side, _HEAD + 1, 1.5, 1.2, FEATURE)
    if head != "none":
        top_line = _HEAD - 15
        draw.pieslice((x - width - 2, top_line, x + width + 2, _HEAD + 10), 180, 360, fill=HEADWEAR)
        if head == "cap":
            reach = 9 * sin
            draw.rectangle(
                (x - 9 + reach, _HEAD - 4, x + 9 + reach, _HEAD - 1),
                fill=HEADWEAR if cos > -0.9 else HAIR,
            )
        else:
            draw.rectangle((x - width - 1, _HEAD - 4, x + width + 1, _HEAD), fill=HEADWEAR)
    if bag == "handbag":
        side = 1 if cos >= 0 else -1
        left = _CENTRE + side * (abs(cos) * (hip + 6)) + 4 * sin
        draw.line((left, _HIP - 8, left, _HIP + 14), fill=STRAP, width=2)
        draw.rectangle((left - 9, _HIP + 12, left + 9, _HIP + 32), fill=BAG)
    return _frozen(image)


@functools.lru_cache(maxsize=2048)
def pattern_map(view: int, build: int, pattern: str, mark: str, top: str) -> np.ndarray:
    """State of the top's cloth at every pixel: 0 plain, 1 patterned, 2 printed (chest, front only).

    Args:
      view: 0..7.
      build: row of the build attribute.
      pattern: plain, striped, checked, halved or sleeved (sleeves are a label, not a place).
      mark: none, disc, square, cross or bar.
      top: kind of the top; an open jacket or coat carries its print on one side.

    Returns:
      uint8[264, 144], read-only.
    """
    y, x = np.mgrid[: CANVAS[1], : CANVAS[0]].astype(np.float64)
    cos, sin = _direction(view)
    shoulder, _, _ = _half_widths(view, build)
    across = x - _CENTRE
    state = np.zeros((CANVAS[1], CANVAS[0]), np.uint8)
    if pattern == "striped":
        state[np.floor((y - _SHOULDER) / 9.0) % 2 == 1] = 1
    elif pattern == "checked":
        cells = np.floor((y - _SHOULDER) / 11.0) + np.floor((across - 8 * sin + 5.5) / 11.0)
        state[cells % 2 == 1] = 1
    elif pattern == "halved":
        state[y > _WAIST - 14] = 1
    if mark != "none" and cos > 0.3:
        offset = across - 0.75 * shoulder * sin - (0.45 * shoulder if top in _OPEN else 0.0)
        # Foreshortened where the body is turned.
        u, v = offset / max(cos, 0.4), y - (_SHOULDER + 17)
        state[_mark(mark, u, v)] = 2
    state.setflags(write=False)
    return state


_OPEN = ("jacket", "coat")


def _mark(mark: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    if mark == "disc":
        return u * u + v * v < 110
    if mark == "square":
        return (abs(u) < 9) & (abs(v) < 9)
    if mark == "cross":
        return ((abs(u) < 4) & (abs(v) < 12)) | ((abs(v) < 4) & (abs(u) < 12))
    return (abs(u) < 14) & (abs(v) < 5)


def _direction(view: int) -> tuple[float, float]:
    angle = 2 * math.pi * view / VIEWS
    return round(math.cos(angle), 6), round(math.sin(angle), 6)


def _half_widths(view: int, build: int) -> tuple[float, float, float]:
    """Half widths of shoulder, waist and hip of an elliptic trunk seen from one side."""
    cos, sin = _direction(view)
    shoulder, waist, hip, depth, _ = _BUILDS[build]
    seen = [math.hypot(half * cos, depth * sin) for half in (shoulder, waist, hip)]
    return seen[0], seen[1], seen[2]


def _trunk(draw, shoulder, waist, hip, top, bottom, cos, sin):
    low = _HIP + (24 if top == "coat" else 2 if top != "jacket" else 6)
    if bottom == "skirt":
        _polygon(draw, [(hip, _WAIST), (hip * 1.45, _KNEE - 6)], BOTTOM)
    else:
        _polygon(draw, [(hip, _WAIST), (hip, _HIP + 8)], BOTTOM)
    draw.rectangle((_CENTRE - 6, _NECK - 8, _CENTRE + 6, _SHOULDER), fill=SKIN)
    wide = hip * (1.2 if top == "coat" else 1.05)
    _polygon(
        draw,
        [(6, _SHOULDER - 7), (shoulder, _SHOULDER), (waist, _WAIST), (wide, low)],
        TOP,
    )
    if top in _OPEN and cos > 0.3:
        shift = 0.8 * shoulder * sin
        draw.polygon(
            [
                (_CENTRE + shift - 6, _SHOULDER - 6),
                (_CENTRE + shift + 6, _SHOULDER - 6),
                (_CENTRE + shift + 4, _HIP),
                (_CENTRE + shift - 4, _HIP),
            ],
            fill=INNER,
        )
    if top == "shirt" and cos > 0.3:
        x = _CENTRE + 0.8 * shoulder * sin
        draw.line((x, _SHOULDER - 5, x, low), fill=FOLD, width=1)


def _leg(draw, swing, root, sin, limb, bottom, near):
    stride = 17 * swing * abs(sin)
    lift = 5 * max(0.0, swing) * (1 - abs(sin))
    forward = 1 if sin >= 0 else -1
    hip = (_CENTRE + root, _HIP)
    knee = (_CENTRE + root + forward * stride * 0.75, _KNEE - lift)
    ankle = (_CENTRE + root + forward * (stride * 1.25 - 4 * abs(sin)), _ANKLE - lift)
    bare = bottom in ("shorts", "skirt")
    cloth, skin = (BOTTOM, SKIN) if near else (BOTTOM_FAR, SKIN_FAR)
    thick = limb * (0.82 if bottom == "leggings" else 1.0)
    _limb(draw, hip, knee, thick * 1.9, thick * 1.6, skin if bottom == "skirt" else cloth)
    _limb(draw, knee, ankle, thick * 1.45, thick * 1.1, skin if bare else cloth)
    if bottom == "shorts":
        _limb(draw, knee, (knee[0], knee[1] + 3), thick * 2.0, thick * 2.0, cloth)
    toe = 8 * sin
    left, right = sorted((ankle[0] - 5 - toe * 0.3, ankle[0] + 5 + toe))
    box = (left, ankle[1] - 3, right, _SOLE - lift)
    draw.rectangle(box, fill=SHOE if near else SHOE_FAR)


def _arm(draw, swing, root, sin, limb, top, near):
    forward = 1 if sin >= 0 else -1
    reach = 15 * swing * abs(sin) * forward
    out = math.copysign(4.0, root) if abs(root) > 3 else 0.0
    start = (_CENTRE + root, _SHOULDER + 4)
    elbow = (_CENTRE + root + out + reach * 0.5, _SHOULDER + 34)
    hand = (_CENTRE + root + out * 1.2 + reach + 3 * sin, _SHOULDER + 62)
    cloth, skin = (TOP_NEAR, SKIN) if near else (TOP_FAR, SKIN_FAR)
    thick = limb * (1.25 if top in ("jacket", "coat", "hoodie") else 1.0)
    _ellipse(draw, hand[0], hand[1] + 3, limb * 0.5, limb * 0.65, skin)
    _limb(draw, elbow, hand, thick * 1.05, thick * 0.9, skin if top == "t-shirt" else cloth)
    _limb(draw, start, elbow, thick * 1.4, thick * 1.15, cloth)


def _hair(draw, x, width, cos, sin):
    if cos < -0.3:
        _ellipse(draw, x, _HEAD - 2, width + 1, 12.5, HAIR)
        return
    draw.pieslice((x - width - 1, _HEAD - 15, x + width + 1, _HEAD + 9), 180, 360, fill=HAIR)
    if abs(sin) > 0.4:
        back = x - 5 * sin
        _ellipse(draw, back, _HEAD - 3, width - 3, 10, HAIR)


def _backpack(draw, cos, sin, shoulder):
    if cos < -0.3:
        x = _CENTRE - 0.35 * shoulder * sin
        half = 15 * (0.45 + 0.55 * abs(cos))
        draw.rounded_rectangle((x - half, _SHOULDER, x + half, _WAIST + 6), 6, fill=BAG)
        draw.rectangle((x - half * 0.6, _WAIST - 16, x + half * 0.6, _WAIST - 2), fill=STRAP)
    elif abs(cos) <= 0.3:
        behind = -1 if sin > 0 else 1
        edge = _CENTRE + behind * (shoulder - 3)
        left, right = sorted((edge, edge + behind * 15))
        draw.rounded_rectangle((left, _SHOULDER, right, _WAIST + 6), 5, fill=BAG)
        draw.line((_CENTRE, _SHOULDER - 2, _CENTRE, _SHOULDER + 26), fill=STRAP, width=3)
    else:
        for side in (-0.6, 0.6):
            x = _CENTRE + side * shoulder + 3 * sin
            draw.line((x, _SHOULDER - 3, x, _SHOULDER + 30), fill=STRAP, width=3)


def _satchel(draw, cos, sin, shoulder, hip):
    # Worn on the left hip: on the right of the picture from the front, hidden from the right.
    x = _CENTRE + hip * cos - 3 * sin
    lean = 0.9 * shoulder * (cos if abs(cos) > 0.3 else 0.0)
    draw.line((_CENTRE - lean, _SHOULDER - 3, x, _HIP), fill=STRAP, width=3)
    if sin < 0.5:
        draw.rounded_rectangle((x - 11, _HIP - 6, x + 11, _HIP + 16), 3, fill=BAG)


def _limb(draw, start, end, wide, narrow, label):
    """A tapered bar with round ends."""
    length = math.hypot(end[0] - start[0], end[1] - start[1]) or 1.0
    nx, ny = (end[1] - start[1]) / length / 2, (start[0] - end[0]) / length / 2
    draw.polygon(
        [
            (start[0] + nx * wide, start[1] + ny * wide),
            (start[0] - nx * wide, start[1] - ny * wide),
            (end[0] - nx * narrow, end[1] - ny * narrow),
            (end[0] + nx * narrow, end[1] + ny * narrow),
        ],
        fill=label,
    )
    _ellipse(draw, *start, wide / 2, wide / 2, label)
    _ellipse(draw, *end, narrow / 2, narrow / 2, label)


def _ellipse(draw, x, y, half_width, half_height, label):
    draw.ellipse((x - half_width, y - half_height, x + half_width, y + half_height), fill=label)


def _polygon(draw, profile, label):
    """A shape symmetric about the middle, given by (half width, height) from top to bottom."""
    right = [(_CENTRE + half, height) for half, height in profile]
    left = [(_CENTRE - half, height) for half, height in reversed(profile)]
    draw.polygon(right + left, fill=label)


def _frozen(image: Image.Image) -> np.ndarray:
    labels = np.array(image)
    labels.setflags(write=False)
    return labels
