import gc
import logging
import threading
import time

import jax
import numpy as np
import pytest

from ccafl_jax.data.decoded import load_images
from ccafl_jax.data.sources import PixelFormat
from ccafl_jax.training import inputs
from ccafl_jax.training.inputs import ResidentImages, StreamedImages, choose_input
from ccafl_jax.training.sharding import make_mesh
from tests.data.images import broken_files, records_of, write_images

PIXELS = PixelFormat(16, 8)
COUNT = 30
DEVICES = (1, 2, 8)
PLAN = np.random.default_rng(5).integers(0, COUNT, (40, 16)).astype(np.int32)  # with repeats


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    return records_of(root, write_images(root, COUNT))


@pytest.fixture(scope="module")
def decoded(records):
    return load_images(records, PIXELS, progress=False)


@pytest.fixture
def sources(records, decoded, tmp_path):
    """By kind: a function of a mesh."""
    np.save(tmp_path / "decoded.npy", decoded)
    mapped = np.load(tmp_path / "decoded.npy", mmap_mode="r")
    return {
        "resident": lambda mesh: ResidentImages(decoded, mesh),
        "on devices": lambda mesh: ResidentImages(jax.numpy.asarray(decoded), mesh),
        "decoding": lambda mesh: StreamedImages(records, mesh, pixels=PIXELS),
        "host array": lambda mesh: StreamedImages(decoded, mesh),
        "mapped file": lambda mesh: StreamedImages(mapped, mesh),
    }


def input_threads():
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(("image-input", "grain"))]


def wait_until(condition):
    """Decoders that were at work when an iterator was closed end with their batch."""
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


@pytest.mark.parametrize("devices", DEVICES)
def test_all_kinds_give_the_pixels_of_the_plan(sources, decoded, devices):
    mesh = make_mesh(devices)
    for kind, make in sources.items():
        source = make(mesh)
        assert (len(source), source.shape) == (COUNT, (COUNT, 16, 8, 3))
        batches = list(source.batches(PLAN))
        assert len(batches) == len(PLAN)
        for expected, (images, rows) in zip(PLAN, batches, strict=True):
            np.testing.assert_array_equal(rows, expected)
            assert rows.dtype == np.int32 and images.dtype == np.uint8
            assert len(rows.addressable_shards) == devices
            assert rows.addressable_shards[0].data.shape == (16 // devices,)
            if source.resident:
                assert images.is_fully_replicated
                images = images[rows]
            else:
                assert images.addressable_shards[0].data.shape == (16 // devices, 16, 8, 3)
            np.testing.assert_array_equal(images, decoded[expected], err_msg=kind)


def test_a_plan_that_starts_in_the_middle_gives_the_same_batches(sources):
    mesh = make_mesh(2)
    for kind in ("resident", "decoding", "mapped file"):
        source = sources[kind](mesh)
        whole, rest = list(source.batches(PLAN)), list(source.batches(PLAN[35:]))
        assert len(rest) == 5
        for (images, rows), (later_images, later_rows) in zip(whole[35:], rest, strict=True):
            np.testing.assert_array_equal(rows, later_rows)
            np.testing.assert_array_equal(images, later_images)
    assert not list(source.batches(PLAN[:0]))


def test_all_images_come_in_order_and_the_last_fills_up(sources, decoded):
    for make in sources.values():
        batches = list(make(make_mesh(4)).in_order(8))
        assert [len(rows) for _, rows in batches] == [8] * 4
        order = np.concatenate([rows for _, rows in batches])
        assert order.tolist() == [*range(COUNT), COUNT - 1, COUNT - 1]
        for images, rows in batches:
            assert images.addressable_shards[0].data.shape == (2, 16, 8, 3)
            np.testing.assert_array_equal(images, decoded[rows])


def test_wrong_plans_are_told_at_once(sources):
    for make in sources.values():
        source = make(make_mesh(8))
        with pytest.raises(ValueError, match="12 rows does not divide over 8 devices"):
            source.batches(PLAN[:, :12])
        with pytest.raises(ValueError, match="rows 3 to 30 of 30 images"):
            source.batches(np.full((1, 8), 3) + 27 * (np.arange(8) == 1))
        with pytest.raises(ValueError, match=r"expected int\[steps, batch\]"):
            source.batches(PLAN[0])


@pytest.mark.parametrize("kind", ["damaged", "gone"])
def test_an_unreadable_image_is_named_at_the_step_that_needs_it(tmp_path, kind):
    records = records_of(tmp_path, write_images(tmp_path, 6))
    if kind == "gone":
        (tmp_path / "004.png").unlink()
        error, text = FileNotFoundError, r"004\.png: no such image file"
    else:
        (tmp_path / "004.png").write_bytes(broken_files()["truncated"][0])
        error, text = ValueError, r"004\.png: not a readable image"
    plan = np.array([[0, 1], [2, 3], [3, 3], [5, 4], [0, 1], [1, 2]])
    batches = StreamedImages(records, make_mesh(2), pixels=PIXELS).batches(plan)
    for step in range(3):
        assert next(batches)[1].tolist() == plan[step].tolist()
    with pytest.raises(error, match=text) as caught:
        next(batches)
    assert "\n" not in str(caught.value)
    wait_until(lambda: not input_threads())


def test_a_vanished_folder_ends_a_long_epoch_with_an_error(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    records = records_of(folder, write_images(folder, 6))
    source = StreamedImages(records, make_mesh(1), pixels=PIXELS)
    with pytest.raises(FileNotFoundError, match=r"images.*\.png: no such image file"):
        for step, _ in enumerate(source.batches(np.full((1000, 2), 3))):
            if step == 10:
                folder.rename(tmp_path / "elsewhere")
    assert step < 100
    wait_until(lambda: not input_threads())


@pytest.mark.parametrize("kind", ["decoding", "mapped file"])
def test_leaving_early_stops_all_threads(sources, kind):
    source = sources[kind](make_mesh(2))
    batches = source.batches(np.repeat(PLAN, 20, axis=0))
    next(batches)
    assert input_threads()
    batches.close()
    assert "image-input_0" not in input_threads()
    wait_until(lambda: not input_threads())

    for _ in source.batches(PLAN):  # nobody closes this one
        break
    for _ in source.in_order(8):
        break
    gc.collect()
    wait_until(lambda: not input_threads())


class Watched:
    """Images on the host that note which batches were read."""

    shape, dtype = (8, 16, 8, 3), np.uint8

    def __init__(self, seconds=0.0):
        self.read, self.seconds = 0, seconds

    def __len__(self):
        return 8

    def __getitem__(self, rows):
        time.sleep(self.seconds)
        self.read += 1
        return np.zeros((len(rows), 16, 8, 3), np.uint8)


def test_streaming_runs_ahead_by_a_bounded_number_of_batches():
    for ahead in (1, 3):
        images = Watched()
        batches = StreamedImages(images, make_mesh(1), ahead=ahead).batches(PLAN % 8)
        for step in range(1, 4):
            next(batches)
            wait_until(lambda images=images, due=step + ahead: images.read == due)
            time.sleep(0.05)
            assert images.read == step + ahead
        batches.close()
        assert images.read == step + ahead


def test_waiting_is_measured():
    slow = StreamedImages(Watched(0.05), make_mesh(1))
    list(slow.batches(PLAN[:10] % 8))
    assert 0.5 <= slow.wait_seconds
    quick = StreamedImages(Watched(0.002), make_mesh(1))
    for _ in quick.batches(PLAN[:10] % 8):
        time.sleep(0.05)  # the step takes longer than reading
    assert 0 < quick.wait_seconds < 0.25


class Device:
    def __init__(self, limit):
        self.limit = limit

    def memory_stats(self):
        return {"bytes_limit": self.limit, "bytes_in_use": 0}


class Accelerators:
    """What is asked of a mesh about memory."""

    is_multi_process = False

    def __init__(self, *limits):
        self.local_devices = [Device(limit) for limit in limits]


def test_the_memory_of_the_smallest_device_decides(decoded, monkeypatch, caplog):
    monkeypatch.setattr(inputs, "ResidentImages", lambda images, mesh: "resident")
    monkeypatch.setattr(inputs, "StreamedImages", lambda images, mesh, pixels: "streaming")
    size = decoded.nbytes
    assert choose_input(decoded, PIXELS, Accelerators(4 * size), share=0.25) == "resident"
    assert choose_input(decoded, PIXELS, Accelerators(4 * size - 1), share=0.25) == "streaming"
    two = Accelerators(8 * size, 3 * size)
    assert choose_input(decoded, PIXELS, two, share=0.25) == "streaming"
    assert choose_input(decoded, PIXELS, two, share=0.25, kind="resident") == "resident"
    large = Accelerators(10**12)
    caplog.clear()
    with caplog.at_level(logging.INFO, "ccafl_jax"):
        assert choose_input(decoded, PIXELS, large, kind="streaming") == "streaming"
    assert caplog.messages == [
        "streaming input (streaming): 30 images take 0.000 GB, and 300.000 GB of each device may "
        "be used"
    ]
    with pytest.raises(ValueError, match="kind"):
        choose_input(decoded, PIXELS, large, kind="residents")


def test_processors_share_the_memory_of_the_host(decoded, monkeypatch):
    pages = 8 * decoded.nbytes
    monkeypatch.setattr(inputs.os, "sysconf", {"SC_PHYS_PAGES": pages, "SC_PAGE_SIZE": 1}.get)
    assert choose_input(decoded, PIXELS, make_mesh(8), share=1.0).resident
    assert not choose_input(decoded, PIXELS, make_mesh(8), share=0.99).resident
    assert choose_input(decoded, PIXELS, make_mesh(4), share=0.5).resident


def test_streaming_with_a_cache_decodes_each_image_once(records, decoded, tmp_path, monkeypatch):
    mesh = make_mesh(2)
    options = {"kind": "streaming", "progress": False}
    cached = choose_input(records, PIXELS, mesh, cache=tmp_path / "cache", **options)
    plain = choose_input(records, PIXELS, mesh, **options)
    resident = choose_input(records, PIXELS, mesh, kind="resident", progress=False)
    assert (cached.resident, plain.resident, resident.resident) == (False, False, True)
    reads = []
    read = type(records.source).read
    monkeypatch.setattr(type(records.source), "read", lambda *args: reads.append(1) or read(*args))
    for source, decodes in ((cached, False), (plain, True), (resident, False)):
        reads.clear()
        for images, rows in source.in_order(8):
            np.testing.assert_array_equal(images, decoded[rows])
        assert bool(reads) == decodes
