"""Pictures of people: body, clothes, scene, light, camera, JPEG.

One image costs a few dozen small array operations: a label map of the shape (cached), a table of
colours, one resize to the bounding box, then the camera. Only exact elementwise arithmetic and
integer resampling are used, so that the pixels do not depend on the machine.
"""

import dataclasses
import functools
import io
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageFilter

from data_prep.synthetic import body, streams
from data_prep.synthetic.cameras import SCENE, VISIBLE, Camera
from data_prep.synthetic.infrared import shades
from data_prep.synthetic.people import COLOURS, Person, draw_people

NORMAL, JUNK, STRANGER = range(3)
"""Kinds of shot: a person, a badly placed box around one, a passer-by or nobody."""

IMAGE_DRAWS = 32
"""Draws behind one image; `shoot` reads them by column."""
VISIT_DRAWS = 9
"""Draws shared by the images of one person under one camera."""

BYSTANDERS = 256
"""Passers-by to choose from."""
_NOISE = 1 << 18


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to draw: one row per image.

    Attributes:
      person: int32[n], row in the list of people.
      camera: int32[n], row in the list of cameras.
      visit: uint64[n], random row shared by the images of one person under one camera.
      image: uint64[n], random row of the image.
      kind: int8[n], NORMAL, JUNK or STRANGER.
    """

    person: np.ndarray
    camera: np.ndarray
    visit: np.ndarray
    image: np.ndarray
    kind: np.ndarray

    def __len__(self) -> int:
        return len(self.person)


@dataclasses.dataclass(frozen=True)
class Moment:
    """What a frame of a walk shows besides the person as usual.

    Attributes:
      turn: how far the person turned away from the direction of the walk, in eighths of a turn.
      crosser: number of the passer-by who comes before the person; None where nobody does.
      shift: place of the passer-by across the box, in its widths; 0 covers the person.
      crosser_view: direction of the passer-by, as `view` of `portrait`.
    """

    turn: int = 0
    crosser: int | None = None
    shift: float = 0.0
    crosser_view: int = 0


def make_plan(
    people: Sequence[Person],
    cameras: Sequence[Camera],
    person: np.ndarray,
    camera: np.ndarray,
    take: np.ndarray,
    *,
    seed: int,
    kind: np.ndarray | None = None,
) -> Plan:
    """Names the random rows of the images asked for.

    The image of (person, camera, take, seed) is the same in every plan.

    Args:
      people: the people.
      cameras: the cameras.
      person: int[n], row in `people`.
      camera: int[n], row in `cameras`.
      take: integer[n], number of the image among those of the same person and camera.
      seed: seed of the images' stream.
      kind: int[n], NORMAL where not given.

    Returns:
      A Plan of n rows.
    """
    person, camera = np.asarray(person, np.int32), np.asarray(camera, np.int32)
    pid = np.array([one.pid for one in people], np.int64)[person]
    code = np.array([one.code for one in cameras], np.int64)[camera]
    world = streams.stream_key("images", cameras[0].domain if cameras else "", seed)
    visit = streams.rows_of(world, pid, code)
    image = streams.rows_of(world, pid, code, np.asarray(take))
    kind = np.zeros(len(person), np.int8) if kind is None else np.asarray(kind, np.int8)
    return Plan(person, camera, visit, image, kind)


def render_images(
    people: Sequence[Person],
    cameras: Sequence[Camera],
    plan: Plan,
    *,
    height: int = 128,
    width: int = 64,
    jpeg: bool = True,
) -> np.ndarray:
    """Draws a plan in memory.

    Args:
      people: the people.
      cameras: the cameras.
      plan: n images.
      height: height of an image in pixels.
      width: width of an image in pixels.
      jpeg: whether the images pass through JPEG, as those in a folder do.

    Returns:
      uint8[n, height, width, 3], RGB.
    """
    images = np.empty((len(plan), height, width, 3), np.uint8)
    shots = iterate_images(people, cameras, plan, height=height, width=width)
    for row, (pixels, camera) in enumerate(shots):
        if jpeg:
            pixels = np.asarray(Image.open(io.BytesIO(encode(pixels, camera.quality))))
        images[row] = pixels
    return images


def iterate_images(
    people: Sequence[Person], cameras: Sequence[Camera], plan: Plan, *, height: int, width: int
) -> Iterator[tuple[np.ndarray, Camera]]:
    """Yields (uint8[height, width, 3], its camera) for each row of a plan, before JPEG."""
    key = streams.stream_key("shots")
    for start in range(0, len(plan), 1024):
        rows = slice(start, start + 1024)
        image_draws = streams.uniform(key, plan.image[rows], IMAGE_DRAWS).tolist()
        visit_draws = streams.uniform(key, plan.visit[rows], VISIT_DRAWS).tolist()
        for u, v, i, c, kind in zip(
            image_draws,
            visit_draws,
            plan.person[rows].tolist(),
            plan.camera[rows].tolist(),
            plan.kind[rows].tolist(),
            strict=True,
        ):
            yield shoot(people[i], cameras[c], u, v, kind, (width, height)), cameras[c]


def encode(pixels: np.ndarray, quality: int) -> bytes:
    """JPEG bytes of uint8[height, width, 3], or of uint8[height, width] (one channel)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def portrait(
    person: Person, view: int, *, height: int = 128, width: int = 64, band: str = VISIBLE
) -> np.ndarray:
    """The person on plain grey under neutral light, without a camera.

    Args:
      person: whom to draw.
      view: 0..7; 0 faces the camera, 4 shows the back.
      height: height in pixels.
      width: width in pixels.
      band: part of the spectrum, as in `Camera`.

    Returns:
      uint8[height, width, 3].
    """
    layer = _person_layer(person, view, 0, 0.0, body.FRAME, (width, height), band)
    scene = np.full((3, height, width), 128.0, np.float32)
    return _interleaved(_over(scene, layer))


def shoot(
    person: Person,
    camera: Camera,
    image_draws: Sequence[float],
    visit_draws: Sequence[float],
    kind: int,
    size: tuple[int, int],
    moment: Moment = Moment(),
) -> np.ndarray:
    """One picture from its random draws, before compression.

    Args:
      person: whom to draw.
      camera: who sees it.
      image_draws: IMAGE_DRAWS numbers in [0, 1) of this image.
      visit_draws: VISIT_DRAWS numbers in [0, 1) of the visit.
      kind: NORMAL, JUNK or STRANGER.
      size: width and height in pixels.
      moment: what happens in this frame of a walk.

    Returns:
      uint8[height, width, 3]; three equal channels where the camera sees infrared.
    """
    u, v = image_draws, visit_draws
    scene_row = int((v[1] if u[6] < 0.5 else u[7]) * len(camera.scenes))
    picture = _backdrop(camera.scenes[scene_row], u, size)
    view = camera.view + (body.VIEWS // 2 if v[0] < camera.reversal else 0)
    if u[0] < camera.view_spread:
        view += 1 if u[1] < 0.5 else -1
    view += moment.turn
    phase, light = int(u[2] * body.PHASES), 2 * u[15] - 1
    if u[19] < 0.05 or (kind == STRANGER and u[19] < 0.5):
        other = _bystanders()[int(u[25] * BYSTANDERS)]
        side = (0.45 + 0.35 * u[21]) * (1 if u[20] < 0.5 else -1)
        box = _frame(
            camera, (u[3], u[5], u[4]), v[6:9], shift=side if kind != STRANGER else side / 2
        )
        other_view = (view + int(u[26] * 8)) % body.VIEWS
        layer = _person_layer(other, other_view, phase, light, box, size, camera.band)
        picture = _over(picture, layer)
    if kind != STRANGER:
        shift = 0.0 if kind == NORMAL else (0.45 + 0.25 * u[27]) * (1 if u[28] < 0.5 else -1)
        box = _frame(camera, u[3:6], v[6:9], shift=shift)
        layer = _person_layer(person, view % body.VIEWS, phase, light, box, size, camera.band)
        picture = _over(picture, layer)
    if moment.crosser is not None:
        crosser = _bystanders()[moment.crosser]
        box = _frame(camera, (u[3], u[5], u[4]), v[6:9], shift=moment.shift)
        layer = _person_layer(crosser, moment.crosser_view, phase, light, box, size, camera.band)
        picture = _over(picture, layer)
    if u[16] < camera.occlusion:
        _obstruct(picture, camera.obstacles[scene_row], u)
    seen = _expose(picture, camera, u, v)
    return seen if camera.band == VISIBLE else np.repeat(seen[..., 1:2], 3, axis=2)


def _frame(camera, image_draws, visit_draws, *, shift):
    """The part of the canvas that a bounding box shows: a box placed not quite right."""
    left, top, width, height = body.FRAME
    # Mostly alike within a visit, as the boxes of one walk are.
    scale, across, down = (
        camera.slack * (0.8 * (2 * v - 1) + 0.35 * (2 * u - 1))
        for u, v in zip(image_draws, visit_draws, strict=True)
    )
    zoom = camera.zoom * (1 + scale)
    half_width, half_height = width / zoom / 2, height / zoom / 2
    x = left + width / 2 + width * (across - shift)
    y = top + height / 2 + height * 1.25 * down
    return x - half_width, y - half_height, 2 * half_width, 2 * half_height


def _person_layer(person, view, phase, light, frame, size, band):
    """Colours over black and the coverage of a person: float32[4, height, width], 0..255."""
    build = person.code[0]
    top, bottom = person.value("top")[0], person.value("bottom")[0]
    base = body.body_map(view, phase, build, top, bottom)
    gear = body.gear_map(
        view,
        build,
        person.value("hair")[0],
        person.value("head")[0],
        person.value("bag")[0],
        top,
    )
    state = body.pattern_map(view, build, person.value("pattern")[0], person.value("print")[0], top)
    labels = np.where(gear, gear, base) + state * np.uint8(body.LABELS)
    factors = np.array([1 + 0.14 * light * (level - 1.5) for level in range(_SHADES)])
    colours = (_colour_table(person, band)[None] * factors[:, None, None]).astype(np.uint8)
    colours = np.minimum(colours, 255)
    packed = _packed(colours)[labels + _shade_map()]
    image = Image.frombuffer("RGBX", body.CANVAS, packed, "raw", "RGBX", 0, 1)
    left, top_edge, width, height = frame
    source = (left, top_edge, left + width, top_edge + height)
    inside = (
        max(source[0], 0.0),
        max(source[1], 0.0),
        min(source[2], float(body.CANVAS[0])),
        min(source[3], float(body.CANVAS[1])),
    )
    if inside != source:
        return _resized_partly(image, source, inside, size)
    resized = image.resize(size, Image.Resampling.BILINEAR, box=source)
    return np.asarray(resized).transpose(2, 0, 1).astype(np.float32)


def _resized_partly(image, source, inside, size):
    """Resizes a frame that leaves the canvas; what lies outside is empty."""
    layer = np.zeros((4, size[1], size[0]), np.float32)
    step_x, step_y = (source[2] - source[0]) / size[0], (source[3] - source[1]) / size[1]
    x0 = int(np.ceil((inside[0] - source[0]) / step_x))
    x1 = int(np.floor((inside[2] - source[0]) / step_x))
    y0 = int(np.ceil((inside[1] - source[1]) / step_y))
    y1 = int(np.floor((inside[3] - source[1]) / step_y))
    if x1 <= x0 or y1 <= y0:
        return layer
    box = (
        max(source[0] + x0 * step_x, 0.0),
        max(source[1] + y0 * step_y, 0.0),
        min(source[0] + x1 * step_x, float(image.size[0])),
        min(source[1] + y1 * step_y, float(image.size[1])),
    )
    resized = image.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR, box=box)
    layer[:, y0:y1, x0:x1] = np.asarray(resized).transpose(2, 0, 1)
    return layer


_SHADES = 4


@functools.cache
def _shade_map() -> np.ndarray:
    """Offset into the colour table by place across the canvas: light falls from one side."""
    across = (np.arange(body.CANVAS[0]) + 0.5 - body.CANVAS[0] / 2) / 24.0
    level = np.clip(np.floor((across + 1) * 2), 0, _SHADES - 1).astype(np.uint16)
    return np.broadcast_to(level * np.uint16(3 * body.LABELS), body.CANVAS[::-1]).copy()


def _packed(colours: np.ndarray) -> np.ndarray:
    """Colours with coverage in one word each: uint32[shades * 96] from uint8[shades, 96, 3]."""
    words = np.full((*colours.shape[:2], 4), 255, np.uint8)
    words[..., :3] = colours
    words[:, body.EMPTY :: body.LABELS] = 0
    return words.reshape(-1, 4).view(np.uint32)[:, 0]


@functools.lru_cache(maxsize=8192)
def _colour_table(person: Person, band: str) -> np.ndarray:
    """Colour of every label in the three states of the cloth: float64[96, 3]."""
    base = _colours(person) if band == VISIBLE else shades(person, band)
    skin, top, second, bottom, shoe = (
        base[name] for name in ("skin", "top", "second", "bottom", "shoe")
    )
    sleeve = second if person.value("pattern")[0] == "sleeved" else top
    flat = {
        body.SKIN: skin,
        body.SKIN_FAR: skin * 0.8,
        body.TOP: top,
        body.TOP_NEAR: sleeve * 0.93,
        body.TOP_FAR: sleeve * 0.75,
        body.INNER: base["inner"],
        body.BOTTOM: bottom,
        body.BOTTOM_FAR: bottom * 0.76,
        body.SHOE: shoe,
        body.SHOE_FAR: shoe * 0.76,
        body.HAIR: base["hair"],
        body.HEADWEAR: base["headwear"],
        body.BAG: base["bag"],
        body.STRAP: base["bag"] * 0.72,
        body.FEATURE: base["feature"],
        body.FOLD: top * 0.7,
    }
    table = np.zeros((3, body.LABELS, 3))
    for label, colour in flat.items():
        table[:, label] = colour
    table[1, body.TOP] = second
    table[1, body.TOP_NEAR], table[1, body.TOP_FAR] = second * 0.93, second * 0.75
    table[2, body.TOP] = base["mark"]
    return table.reshape(-1, 3)


def _colours(person: Person) -> dict[str, np.ndarray]:
    """What the parts of a person look like in visible light: float64[3] each."""
    light_skin, dark_skin = np.array([214, 172, 146.0]), np.array([104, 70, 52.0])
    top = np.array(COLOURS[person.value("top_colour")[0]], float)
    return {
        "skin": light_skin + (dark_skin - light_skin) * person.skin,
        "top": top,
        "second": _contrast(person.value("pattern"), top),
        "mark": _contrast(person.value("print"), top),
        "inner": np.array([206.0, 204, 200]),
        "bottom": np.array(COLOURS[person.value("bottom_colour")[0]], float),
        "shoe": np.array(COLOURS[person.value("shoes")[0]], float),
        "hair": np.array(_HAIR_COLOURS[person.value("hair")[-1]], float),
        "headwear": np.array(COLOURS.get(person.value("head")[-1], (0, 0, 0)), float),
        "bag": np.array(COLOURS.get(person.value("bag")[-1], (0, 0, 0)), float),
        "feature": np.array([40.0, 30, 30]),
    }


_HAIR_COLOURS = {
    "black": (28, 24, 24),
    "brown": (92, 60, 38),
    "blond": (206, 172, 104),
    "gray": (160, 158, 156),
    "no": (0, 0, 0),
}


def _contrast(value: tuple[str, ...], ground: np.ndarray) -> np.ndarray:
    """The second colour of a cloth; one that equals the ground is set off from it."""
    if len(value) < 2:
        return ground
    colour = np.array(COLOURS[value[1]], float)
    if np.abs(colour - ground).sum() < 40:
        return ground * 0.45 + (110.0 if ground.mean() < 128 else 0.0)
    return colour


@functools.cache
def _bystanders() -> list[Person]:
    return draw_people(np.arange(BYSTANDERS), seed=0, domain="bystander")


def _backdrop(scene, u, size):
    tall = 120 + 60 * u[8]
    wide = tall * 0.55
    left = (SCENE[0] - wide) * u[9]
    top = (SCENE[1] - tall) * u[10]
    box = (left, top, left + wide, top + tall)
    part = scene.resize(size, Image.Resampling.BILINEAR, box=box)
    return np.asarray(part).transpose(2, 0, 1).astype(np.float32)


def _over(picture, layer):
    """Lays a layer over a picture: float32[3, height, width]."""
    through = np.float32(1) - layer[3] * np.float32(1 / 255)
    return picture * through + layer[:3]


def _obstruct(picture, obstacle, u):
    """Puts something of the scene before the person, in place."""
    kind, colour = obstacle
    _, height, width = picture.shape
    x, amount = u[17], u[18]
    if kind == "pole":
        thick = max(1, int(width * (0.08 + 0.10 * amount)))
        left = int((width - thick) * x)
        area = np.s_[:, :, left : left + thick]
    elif kind == "wall":
        area = np.s_[:, int(height * (0.88 - 0.22 * amount)) :, :]
    elif kind == "bush":
        span = int(width * (0.35 + 0.25 * amount))
        left = 0 if x < 0.5 else width - span
        area = np.s_[:, int(height * (0.78 - 0.15 * amount)) :, left : left + span]
    else:
        span = int(width * (0.30 + 0.20 * amount))
        left = int((width - span) * x)
        area = np.s_[
            :, int(height * (0.72 - 0.08 * amount)) : int(height * 0.95), left : left + span
        ]
    picture[area] = np.array(colour, np.float32)[:, None, None]


def _expose(picture, camera, u, v):
    """Light, colours, tone, sharpness and noise of a camera: uint8[height, width, 3]."""
    _, height, width = picture.shape
    # The light differs from visit to visit, and less from image to image of a visit.
    stops = camera.exposure_spread * (2.9 * (v[2] - 0.5) + 1.2 * (u[11] - 0.5))
    gain = np.float32(camera.exposure * 2.0**stops * (1023 / 255))
    across, down = _ramps(height, width)
    slope_x = np.float32(camera.gradient * (2 * u[14] - 1))
    slope_y = np.float32(camera.gradient * (2 * u[23] - 1))
    picture = picture * ((1 + slope_x * across + slope_y * down) * gain)
    red, green, blue = picture
    seen = np.empty((height, width, 3), np.float32)
    spread = camera.tint_spread
    tint = [1 + spread * (1.5 * a + 0.5 * b - 1) for a, b in zip(v[3:6], u[29:32], strict=True)]
    matrix = (camera.matrix * tint).astype(np.float32)
    for channel, (a, b, c) in enumerate(matrix):
        seen[..., channel] = a * red + b * green + c * blue
    np.clip(seen, 0, 1023, out=seen)
    seen = camera.tone[seen.astype(np.uint16)]
    radius = camera.blur * height / 128
    soft = Image.fromarray(seen.astype(np.uint8)).filter(ImageFilter.BoxBlur(radius))
    start = int(u[22] * (_NOISE - 1))
    noise = _noise_bank()
    grain = noise[start : start + seen.size]
    grain = grain.reshape(seen.shape) * np.float32(camera.noise)
    seen = np.asarray(soft) + grain
    return np.clip(seen, 0, 255, out=seen).astype(np.uint8)


@functools.lru_cache(maxsize=8)
def _ramps(height, width):
    across = np.linspace(-1, 1, width, dtype=np.float32)[None]
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    return across, down


@functools.lru_cache(maxsize=2)
def _noise_bank(extra: int = 3 * 512 * 256) -> np.ndarray:
    """Draws of nearly normal noise of unit spread; images read it from different places."""
    u = streams.uniform(streams.stream_key("noise"), np.arange(_NOISE + extra), 3)
    return ((u.sum(1) - 1.5) * 2.0).astype(np.float32)


def _interleaved(picture):
    return np.clip(picture, 0, 255).astype(np.uint8).transpose(1, 2, 0)
