"""Frames of a walk: pictures that follow one another instead of standing alone.

A picture is drawn from IMAGE_DRAWS random numbers (see `render.shoot`). For a walk most of them
stay as they are from frame to frame; those below change smoothly, so the legs move, the box
wobbles, the backdrop passes, the light varies a little, and now and then something comes before the
person. Besides, a person may turn on the way, so that what one side alone shows (a print, a
backpack) is seen for some frames only, and a passer-by may cross before the person (`moments`).
"""

import numpy as np

from data_prep.synthetic import streams
from data_prep.synthetic.render import BYSTANDERS, IMAGE_DRAWS, Moment

_PHASE, _BACKDROP, _OBSTACLE, _GRAIN = 2, 9, 16, 22
# By column: how much of the number changes on the way, the rest belongs to the walk.
_DRIFT = {
    **dict.fromkeys((3, 4, 5), 0.8),  # size and place of the box
    **dict.fromkeys((8, 10), 0.1),  # what part of the scene is seen, besides the pan
    **dict.fromkeys((11, 14, 15, 23), 0.4),  # strength, slope and side of the light
    **dict.fromkeys((29, 30, 31), 0.3),  # colour of the light
    **dict.fromkeys((17, 18), 0.5),  # place and size of what stands before the person
    21: 0.6,  # place of a passer-by
    27: 0.3,  # how badly the box of a junk walk is placed
    _OBSTACLE: 1.0,
}
_KNOT = 8
"""Frames between two independent numbers; those in between are blended."""
_TURN = 2
"""How far a person turns at most, in eighths of a turn."""
_STRETCH, _CROSSING = 16, 7
"""Frames in which one passer-by crosses at most, and how many frames that takes."""
_RIGHT, _LEFT = 2, 6


def walk_draws(row: int, frames: np.ndarray) -> np.ndarray:
    """Draws of the frames of one walk.

    A frame depends on (row, its number) alone, whichever others are asked for.

    Args:
      row: random row of the walk.
      frames: int[n], numbers of the frames, 0 or more.

    Returns:
      float64[n, IMAGE_DRAWS] in [0, 1).
    """
    frames = np.asarray(frames, np.int64)
    held = streams.uniform(streams.stream_key("walks"), np.array([row]), IMAGE_DRAWS + 2)[0]
    draws = np.repeat(held[None, :IMAGE_DRAWS], len(frames), axis=0)
    columns, share = list(_DRIFT), np.array(list(_DRIFT.values()))
    drift = _blended("drifts", row, frames, IMAGE_DRAWS)[:, columns]
    draws[:, columns] = (1 - share) * held[columns] + share * drift
    step = 1 / (12 + 8 * held[IMAGE_DRAWS])
    draws[:, _PHASE] = (held[_PHASE] + step * frames) % 1.0
    speed = (2 * held[IMAGE_DRAWS + 1] - 1) / 80
    draws[:, _BACKDROP] = _folded(held[_BACKDROP] + speed * frames)
    grain = streams.rows_of(streams.stream_key("grain"), np.full(len(frames), row), frames)
    draws[:, _GRAIN] = streams.uniform(streams.stream_key("grains"), grain, 1)[:, 0]
    return np.clip(draws, 0.0, np.nextafter(1.0, 0.0))


def moments(row: int, frames: np.ndarray, ambiguity: float) -> list[Moment]:
    """What happens in the frames of one walk; as with `walk_draws`, each depends on itself alone.

    Args:
      row: random row of the walk.
      frames: int[n], numbers of the frames, 0 or more.
      ambiguity: share of the walks in which the person turns, and of the stretches of 16 frames in
        which a passer-by crosses; 0 gives walks of which every frame shows the same.

    Returns:
      n moments.
    """
    frames = np.asarray(frames, np.int64)
    turns = streams.uniform(streams.stream_key("turning"), np.array([row]), 1)[0, 0] < ambiguity
    sway = _blended("turns", row, frames, 1)[:, 0]
    turn = np.floor(sway * (2 * _TURN + 1)).astype(int) - _TURN if turns else 0 * frames
    stretch, place = np.divmod(frames, _STRETCH)
    walk = np.full(len(frames), row, np.uint64)
    key = streams.stream_key("crossings")
    happens, start, side, who = streams.uniform(key, streams.rows_of(key, walk, stretch), 4).T
    progress = place - np.floor(start * (_STRETCH - _CROSSING + 1))
    crossed = (happens < ambiguity) & (progress >= 0) & (progress < _CROSSING)
    shift = 2 * (progress + 0.5) / _CROSSING - 1
    to_the_right = side < 0.5
    return [
        Moment(
            turn=int(turn[i]),
            crosser=int(who[i] * BYSTANDERS),
            shift=float(shift[i] if to_the_right[i] else -shift[i]),
            crosser_view=_RIGHT if to_the_right[i] else _LEFT,
        )
        if crossed[i]
        else Moment(turn=int(turn[i]))
        for i in range(len(frames))
    ]


def _blended(stream: str, row: int, frames: np.ndarray, columns: int) -> np.ndarray:
    """Numbers that are independent at every _KNOT-th frame and smooth between."""
    knots, place = np.divmod(frames, _KNOT)
    t = place[:, None] / _KNOT
    weight = t * t * (3 - 2 * t)
    key = streams.stream_key(stream)
    walk = np.full(len(frames), row, np.uint64)
    before, after = (
        streams.uniform(key, streams.rows_of(key, walk, knots + ahead), columns) for ahead in (0, 1)
    )
    return before + weight * (after - before)


def _folded(x: np.ndarray) -> np.ndarray:
    """Turns back at 0 and 1."""
    return 1 - np.abs(1 - x % 2)
