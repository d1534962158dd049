import json

import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ccafl_jax.data.decoded import load_images
from ccafl_jax.data.samplers import plan
from ccafl_jax.data.sources import PixelFormat
from ccafl_jax.data.streaming import host_rows, stream_batches
from ccafl_jax.training.sharding import make_mesh
from tests.data.images import broken_files, records_of, write_images

PIXELS = PixelFormat(16, 8)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    return records_of(root, write_images(root, 24))


@pytest.fixture(scope="module")
def steps():
    labels = np.arange(24) // 3
    return plan(labels, seed=3, first_step=0, steps=11, classes_per_batch=4, images_per_class=2)


def test_batches_are_those_of_the_resident_array(records, steps):
    resident = load_images(records, PIXELS, progress=False)
    streamed = list(stream_batches(records, steps, PIXELS))
    assert len(streamed) == len(steps)
    for rows, batch in zip(steps, streamed, strict=True):
        assert batch.dtype == np.uint8
        np.testing.assert_array_equal(batch, resident[rows])


def test_a_new_iterator_goes_on_where_the_state_was_taken(records, steps):
    whole = list(stream_batches(records, steps, PIXELS))
    first = stream_batches(records, steps, PIXELS)
    for _ in range(4):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    second = stream_batches(records, steps, PIXELS, threads=1, prefetch=1)
    second.set_state(state)
    rest = list(second)
    assert len(rest) == 7
    for batch, expected in zip(rest, whole[4:], strict=True):
        np.testing.assert_array_equal(batch, expected)


class TwoHosts:
    """Four devices that take turns between two hosts, as one of the hosts sees them."""

    def __init__(self, host):
        self.host = host

    def addressable_devices_indices_map(self, shape):
        share = shape[0] // 4
        return {d: (slice(d * share, (d + 1) * share),) for d in (self.host, self.host + 2)}


def test_hosts_read_the_rows_of_their_devices(records, steps):
    whole = list(stream_batches(records, steps, PIXELS))
    shares = [
        list(stream_batches(records, host_rows(steps, TwoHosts(host)), PIXELS)) for host in (0, 1)
    ]
    for step, batch in enumerate(whole):
        np.testing.assert_array_equal(shares[0][step], batch[[0, 1, 4, 5]])
        np.testing.assert_array_equal(shares[1][step], batch[[2, 3, 6, 7]])


def test_one_host_reads_all_rows(steps):
    over_rows = NamedSharding(make_mesh(4), PartitionSpec("data"))
    np.testing.assert_array_equal(host_rows(steps, over_rows), steps)


def test_bad_plans_and_images_are_named(records, steps, tmp_path):
    with pytest.raises(ValueError, match=r"plan is float64\[2\], expected int\[steps, batch\]"):
        stream_batches(records, np.zeros(2), PIXELS)
    with pytest.raises(ValueError, match="rows 0 to 24 of 24 images"):
        stream_batches(records, np.array([[0, 24]]), PIXELS)
    write_images(tmp_path, 3)
    (tmp_path / "001.png").write_bytes(broken_files()["text"][0])
    broken = records_of(tmp_path, ["000.png", "001.png", "002.png"])
    with pytest.raises(ValueError, match=r"001\.png: not a readable image"):
        list(stream_batches(broken, np.array([[0, 2], [1, 0]]), PIXELS))
