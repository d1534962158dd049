"""From tracklets to clips: which frames are looked at, as arrays of rows.

A clip is a row of `frames` frame numbers; all functions here are pure, and NumPy on the host.

Source: the samplers of TF-CLIP as released (specification 2), which take them from older video
re-identification: restricted random sampling is of Li et al., "Diversity regularized spatiotemporal
attention for video-based person re-identification".
"""

import dataclasses

import numpy as np

from ccafl_jax.data.records import Tracklets
from ccafl_jax.options import require, require_choice
from ccafl_jax.ragged import ranges

SPLITS = ("ceil", "even")
KINDS = ("dense", "spread")

_OFFSETS = 5  # random stream of one seed, apart from those of the samplers


@dataclasses.dataclass(frozen=True)
class Clips:
    """Clips of some tracklets.

    Attributes:
      rows: int32[clips, frames], rows of the records; those of a tracklet side by side.
      tracklet: int32[clips], whose it is: a row of the table they were made from.
    """

    rows: np.ndarray
    tracklet: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


def chunks(count: np.ndarray, frames: int, *, split: str = "ceil") -> tuple[np.ndarray, np.ndarray]:
    """Splits tracklets into as many chunks as a clip has frames.

    Args:
      count: int[n], frames of each tracklet, 1 or more.
      frames: of a clip.
      split: `ceil` makes chunks of ceil(count / frames) frames, of which those at the end may lie
        behind the last frame, which stands for them (as released: nine frames give a clip of
        eight that ends in four times the last one); `even` makes them as equal as can be.

    Returns:
      First frame and number of frames of each chunk, int64[n, frames] both.
    """
    require_choice("split", split, SPLITS)
    require(frames >= 1, f"frames is {frames}, must be 1 or more")
    count = np.asarray(count, np.int64)[:, None]
    number = np.arange(frames)
    if split == "ceil":
        size = -(-count // frames)
        return number * size, np.broadcast_to(size, (len(count), frames))
    first, stop = number * count // frames, (number + 1) * count // frames
    return first, np.maximum(stop - first, 1)


def restricted_random(count: np.ndarray, uniform: np.ndarray, *, split: str = "ceil") -> np.ndarray:
    """One frame of each chunk.

    Args:
      count: int[n], frames of each tracklet.
      uniform: float[n, frames], random numbers in [0, 1).
      split: see `chunks`.

    Returns:
      int64[n, frames], counted inside the tracklet.
    """
    first, size = chunks(count, uniform.shape[1], split=split)
    drawn = first + (uniform * size).astype(np.int64)
    return np.minimum(drawn, np.asarray(count)[:, None] - 1)


def training_clips(
    table: Tracklets,
    plan: np.ndarray,
    *,
    frames: int,
    seed: int,
    epoch: int,
    split: str = "ceil",
) -> np.ndarray:
    """The frames of the batches of an epoch, each time drawn anew.

    Args:
      table: of the tracklets.
      plan: int[steps, clips], rows of the table.
      frames: of a clip.
      seed: of the run.
      epoch: counted from 0.
      split: see `chunks`.

    Returns:
      int32[steps, clips * frames], rows of the records, those of a clip side by side.
    """
    chosen = np.asarray(plan).ravel()
    generator = np.random.Generator(
        np.random.Philox(np.random.SeedSequence([seed, _OFFSETS, epoch]))
    )
    uniform = generator.random((len(chosen), frames))
    inside = restricted_random(table.count[chosen], uniform, split=split)
    rows = table.start[chosen][:, None] + inside
    return rows.reshape(len(plan), -1).astype(np.int32)


def spread_clips(table: Tracklets, *, frames: int, split: str = "ceil") -> Clips:
    """One clip of each tracklet: the first frame of every chunk."""
    first, _ = chunks(table.count, frames, split=split)
    inside = np.minimum(first, table.count[:, None] - 1)
    rows = table.start[:, None] + inside
    return Clips(rows.astype(np.int32), np.arange(len(table), dtype=np.int32))


def dense_clips(table: Tracklets, *, frames: int) -> Clips:
    """All frames: consecutive clips, of which the last one cycles through what is left."""
    require(frames >= 1, f"frames is {frames}, must be 1 or more")
    clips = -(-table.count // frames)
    tracklet = np.repeat(np.arange(len(table)), clips)
    first = ranges(np.zeros_like(clips), clips) * frames
    left = np.minimum(table.count[tracklet] - first, frames)
    inside = first[:, None] + np.arange(frames) % left[:, None]
    rows = table.start[tracklet][:, None] + inside
    return Clips(rows.astype(np.int32), tracklet.astype(np.int32))


def clips_of(table: Tracklets, kind: str, *, frames: int, split: str = "ceil") -> Clips:
    """Clips of a kind: `dense_clips` or `spread_clips`."""
    require_choice("kind", kind, KINDS)
    if kind == "dense":
        return dense_clips(table, frames=frames)
    return spread_clips(table, frames=frames, split=split)


def cut(table: Tracklets, *, length: int, step: int) -> Tracklets:
    """Cuts tracklets into pieces, or into windows that overlap.

    With `step` = `length` the last piece keeps what is left, so that pieces have `length` frames or
    up to twice as many less one. With a smaller step the last window ends with the tracklet. A
    tracklet shorter than `length` stays whole, which the released code drops from LS-VID.

    Args:
      table: of the tracklets.
      length: frames of a piece or window.
      step: frames from one to the next.

    Returns:
      The table of all pieces; each has the number, identity and camera of its tracklet.
    """
    require(1 <= step <= length, f"step {step} and length {length}: 1 <= step <= length is needed")
    beyond = np.maximum(table.count - length, 0)
    pieces = 1 + (beyond // length if step == length else -(-beyond // step))
    whose = np.repeat(np.arange(len(table)), pieces)
    first = ranges(np.zeros_like(pieces), pieces) * step
    if step < length:
        first = np.minimum(first, beyond[whose])
        count = np.minimum(table.count[whose], length)
    else:
        last = np.append(whose[1:] != whose[:-1], True)[: len(whose)]
        count = np.where(last, table.count[whose] - first, length)
    return Tracklets(
        number=table.number[whose],
        start=table.start[whose] + first,
        count=count,
        pid=table.pid[whose],
        camid=table.camid[whose],
    )


def segment_means(values: np.ndarray, segment: np.ndarray, segments: int) -> np.ndarray:
    """Means of the rows of each segment.

    Args:
      values: float[n, dim].
      segment: int[n].
      segments: their number; each has a row.

    Returns:
      float64[segments, dim].

    Raises:
      ValueError: a segment without a row.
    """
    count = np.bincount(segment, minlength=segments)
    empty = np.flatnonzero(count == 0)
    if empty.size:
        raise ValueError(
            f"{empty.size} of {segments} segments have no row, the first is {empty[0]}; expected "
            "one or more of each"
        )
    values = np.asarray(values)
    if np.any(np.diff(segment) < 0):
        values = values[np.argsort(segment, kind="stable")]
    sums = np.add.reduceat(values, np.cumsum(count) - count, axis=0, dtype=np.float64)
    return sums / count[:, None]
