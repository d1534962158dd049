import numpy as np
import pytest

from ccafl_jax.data.clips import (
    chunks,
    clips_of,
    cut,
    dense_clips,
    restricted_random,
    segment_means,
    spread_clips,
    training_clips,
)
from ccafl_jax.data.records import Tracklets
from tests.golden_data import golden


def table(*counts, apart=0):
    """Tracklets one after the other, with unused rows between them."""
    count = np.array(counts, np.int64)
    start = np.cumsum(count + apart) - count
    number = np.arange(len(count), dtype=np.int32)
    return Tracklets(number, start, count, number + 10, number % 3)


def test_training_frames_are_the_published_ones():
    data = golden("frame_indices", "tfclip")
    count, offsets = data["in/num_frames"], data["in/rrs_train_offsets"]
    _, size = chunks(count, 8)
    found = restricted_random(count, (offsets + 0.5) / size)
    np.testing.assert_array_equal(found, data["out/rrs_train"])


def test_test_frames_are_the_published_ones():
    data = golden("frame_indices", "tfclip")
    count = data["in/num_frames"]
    tracks = table(*count, apart=3)
    spread = spread_clips(tracks, frames=8)
    np.testing.assert_array_equal(spread.rows - tracks.start[:, None], data["out/rrs_test"])
    np.testing.assert_array_equal(spread.tracklet, np.arange(len(count)))
    dense = dense_clips(tracks, frames=8)
    inside = dense.rows - tracks.start[dense.tracklet][:, None]
    np.testing.assert_array_equal(np.bincount(dense.tracklet), data["out/dense_num_clips"])
    np.testing.assert_array_equal(inside.ravel(), data["out/dense_flat"])


def test_kinds():
    tracks = table(5, 20)
    np.testing.assert_array_equal(
        clips_of(tracks, "dense", frames=8).rows, dense_clips(tracks, frames=8).rows
    )
    even = clips_of(tracks, "spread", frames=8, split="even")
    np.testing.assert_array_equal(even.rows, spread_clips(tracks, frames=8, split="even").rows)
    with pytest.raises(ValueError, match="kind is 'rrs'"):
        clips_of(tracks, "rrs", frames=8)


@pytest.mark.parametrize("count", [1, 3, 8, 9, 50])
def test_even_chunks_use_all_frames(count):
    first, size = (x[0] for x in chunks(np.array([count]), 8, split="even"))
    covered = {frame for a, n in zip(first, size, strict=True) for frame in range(a, a + n)}
    assert covered == set(range(count))
    assert size.max() - size.min() <= 1
    drawn = restricted_random(np.array([count]), np.full((1, 8), 0.999), split="even")[0]
    assert drawn.max() == count - 1
    if count >= 8:
        assert len(set(drawn)) == 8


def test_nine_frames_show_what_the_published_split_repeats():
    last = np.full((1, 8), 0.999)
    assert restricted_random(np.array([9]), last)[0].tolist() == [1, 3, 5, 7, 8, 8, 8, 8]
    assert restricted_random(np.array([9]), last, split="even")[0].tolist() == [
        0, 1, 2, 3, 4, 5, 6, 8,
    ]  # fmt: skip


def test_frames_of_an_epoch():
    tracks = table(3, 40, 17, apart=5)
    plan = np.array([[1, 0], [2, 1], [0, 2]])
    options = {"frames": 4, "seed": 3}
    rows = training_clips(tracks, plan, epoch=0, **options)
    assert rows.dtype == np.int32 and rows.shape == (3, 8)
    for found, which in zip(rows.reshape(-1, 4), plan.ravel(), strict=True):
        inside = found - tracks.start[which]
        assert np.all(np.diff(inside) >= 0) and inside.min() >= 0
        assert inside.max() < tracks.count[which]
    np.testing.assert_array_equal(rows, training_clips(tracks, plan, epoch=0, **options))
    assert not np.array_equal(rows, training_clips(tracks, plan, epoch=1, **options))
    other = {**options, "seed": 4}
    assert not np.array_equal(rows, training_clips(tracks, plan, epoch=0, **other))


def test_chunks_are_drawn_from_evenly():
    uniform = np.random.default_rng(0).random((4000, 8))
    found = restricted_random(np.full(4000, 32), uniform)
    for chunk in range(8):
        times = np.bincount(found[:, chunk] - 4 * chunk, minlength=4)
        assert times.min() > 900 and times.sum() == 4000


def test_pieces_keep_every_frame():
    tracks = table(20, 48, 95, 96, 200, apart=2)
    pieces = cut(tracks, length=48, step=48)
    assert pieces.count.tolist() == [20, 48, 95, 48, 48, 48, 48, 48, 56]
    assert np.bincount(pieces.number).tolist() == [1, 1, 1, 2, 4]
    np.testing.assert_array_equal(pieces.pid, tracks.pid[pieces.number])
    np.testing.assert_array_equal(pieces.camid, tracks.camid[pieces.number])
    for number in range(len(tracks)):
        mine = pieces.number == number
        starts, counts = pieces.start[mine], pieces.count[mine]
        np.testing.assert_array_equal(starts[1:], (starts + counts)[:-1])
        assert starts[0] == tracks.start[number]
        assert counts.sum() == tracks.count[number]


def test_windows_reach_the_last_frame():
    tracks = table(5, 8, 9, 13, 16)
    windows = cut(tracks, length=8, step=4)
    inside = windows.start - tracks.start[windows.number]
    assert list(zip(windows.number, inside, windows.count, strict=True)) == [
        (0, 0, 5),
        (1, 0, 8),
        (2, 0, 8),
        (2, 1, 8),
        (3, 0, 8),
        (3, 4, 8),
        (3, 5, 8),
        (4, 0, 8),
        (4, 4, 8),
        (4, 8, 8),
    ]
    with pytest.raises(ValueError, match="1 <= step <= length"):
        cut(tracks, length=8, step=9)


def test_means_by_identity_are_the_published_ones():
    data = golden("clip_memory", "tfclip")
    kept = data["in/labels"] >= 0
    found = segment_means(data["in/feats"][kept], data["in/labels"][kept], 4)
    np.testing.assert_allclose(found, data["out/memory"], rtol=1e-6)


def test_an_empty_segment_is_named():
    with pytest.raises(ValueError, match="1 of 3 segments have no row, the first is 1"):
        segment_means(np.ones((2, 4)), np.array([0, 2]), 3)
