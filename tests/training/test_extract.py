import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ccafl_jax.data.sources import PixelFormat
from ccafl_jax.training.extract import Stopped, make_extractor
from ccafl_jax.training.inputs import ResidentImages, StreamedImages
from ccafl_jax.training.sharding import make_mesh, replicate
from ccafl_jax.training.state import split_model
from tests.data.images import records_of, write_images

IMAGES = np.random.default_rng(0).integers(0, 256, (19, 2, 1, 3), np.uint8)
CAMERAS = np.arange(19) % 4


class Linear(nnx.Module):
    def __init__(self):
        self.linear = nnx.Linear(6, 4, rngs=nnx.Rngs(0))


def forward(model, images, cameras):
    features = model.linear(images.reshape(len(images), -1) / 255)
    return features + cameras[:, None]


def extractor(devices, on_trace=lambda: None, batch=6):
    """`extract` without the model's arguments, and its mesh."""
    graphdef, params, stats = split_model(Linear())
    mesh = make_mesh(devices)

    def traced(*args):
        on_trace()
        return forward(*args)

    extract = make_extractor(graphdef, traced, batch=batch, mesh=mesh)
    return (lambda *args, **options: extract(params, stats, *args, **options)), mesh


@pytest.mark.parametrize("devices", [1, 4])
def test_arrays_and_inputs_give_the_same_features_in_one_compilation(devices):
    traces = []
    extract, mesh = extractor(devices, lambda: traces.append(1))
    expected = forward(Linear(), IMAGES, CAMERAS)
    kinds = [
        IMAGES,
        jnp.asarray(IMAGES),
        replicate(IMAGES, mesh),
        ResidentImages(IMAGES, mesh),
        StreamedImages(IMAGES, mesh),
    ]
    for images in kinds:
        found = extract(images, CAMERAS)
        assert isinstance(found, jax.Array) and found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_allclose(extract(images), expected - CAMERAS[:, None], atol=1e-5)
    np.testing.assert_allclose(extract(IMAGES[:3], CAMERAS[:3]), expected[:3], atol=1e-5)
    assert len(traces) == 1
    with pytest.raises(ValueError, match="no images"):
        extract(IMAGES[:0])


@pytest.mark.parametrize("devices", [1, 4])
def test_clips_have_a_feature_each(devices):
    """Whatever the batch, clips are the rows that were chosen, with the camera of the first."""
    clips = np.random.default_rng(1).integers(0, 19, (11, 3))
    graphdef, params, stats = split_model(Linear())
    mesh = make_mesh(devices)

    def of_clips(model, images, cameras):
        assert images.shape[1:] == (3, 2, 1, 3)
        flat = images.reshape(-1, *images.shape[2:])
        return (
            forward(model, flat, 0 * flat[:, 0, 0, 0]).reshape(-1, 3, 4).mean(1)
            + (cameras[:, None])
        )

    options = {"batch": 4, "mesh": mesh, "frames": 3}
    extract = make_extractor(graphdef, of_clips, **options)
    frames = np.asarray(forward(Linear(), IMAGES, 0 * CAMERAS))
    expected = frames[clips].mean(1) + CAMERAS[clips[:, 0], None]
    for images in (IMAGES, ResidentImages(IMAGES, mesh), StreamedImages(IMAGES, mesh)):
        found = extract(params, stats, images, CAMERAS, chosen=clips)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_extraction_stops_between_batches_where_asked_to():
    extract, mesh = extractor(1, batch=2)
    for images in (IMAGES, ResidentImages(IMAGES, mesh), StreamedImages(IMAGES, mesh)):
        calls = iter([False] * 5 + [True])
        with pytest.raises(Stopped, match="features: stopped after 5 of 10 batches"):
            extract(images, stop=lambda calls=calls: next(calls))
    asked = []
    extract(IMAGES, stop=lambda: asked.append(1))
    assert len(asked) == 10


def test_an_image_that_is_gone_is_named(tmp_path):
    extract, mesh = extractor(1, batch=2)
    records = records_of(tmp_path, write_images(tmp_path, 5))
    (tmp_path / "003.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"003\.png: no such image file"):
        extract(StreamedImages(records, mesh, pixels=PixelFormat(2, 1)))


_PROCESS = """
import json, sys
import jax
import numpy as np
number, port = int(sys.argv[1]), sys.argv[2]
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=number)

from ccafl_jax.data.sources import PixelFormat
from ccafl_jax.training.extract import make_extractor
from ccafl_jax.training.inputs import StreamedImages, choose_input
from ccafl_jax.training.sharding import make_mesh
from ccafl_jax.training.state import split_model
from tests.data.images import records_of
from tests.training.test_extract import Linear, forward

root, pixels, mesh = sys.argv[3], PixelFormat(2, 1), make_mesh()
records = records_of(root, [f"{row:03d}.png" for row in range(11)])
reads = []
read = type(records.source).read
type(records.source).read = lambda self, rows: reads.extend(rows.tolist()) or read(self, rows)
plan = np.arange(24).reshape(3, 8)[::-1] % 11
found = {}
for kind in ("resident", "streaming"):
    source = choose_input(records, pixels, mesh, kind=kind, progress=False)
    reads.clear()
    sums = []
    total = jax.jit(lambda images, rows: (images.sum((1, 2, 3)) * (1 + rows)).sum())
    for images, rows in source.batches(plan):
        taken = jax.jit(lambda a, b: a[b])(images, rows) if source.resident else images
        sums.append(int(total(taken.astype("int32"), rows)))
    found[kind] = {"sums": sums, "read": sorted(reads)}
    graphdef, params, stats = split_model(Linear())
    extract = make_extractor(graphdef, forward, batch=6, mesh=mesh)
    features = extract(params, stats, source, np.arange(11) % 3)
    assert features.is_fully_addressable
    found[kind]["features"] = np.asarray(features).tolist()
    images = choose_input(records, pixels, mesh, kind="resident", progress=False).images
    same = extract(params, stats, images, np.arange(11) % 3)
    np.testing.assert_array_equal(same, features)
print(json.dumps(found))
"""


@pytest.mark.ci
def test_two_processes_share_batches_and_both_get_all_features(tmp_path):
    import os
    import socket

    from ccafl_jax.data.decoded import load_images

    records = records_of(tmp_path, write_images(tmp_path, 11))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PROCESS, str(number), port, str(tmp_path)],
            env=env | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    outputs = [process.communicate(timeout=240) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    pixels = load_images(records, PixelFormat(2, 1), progress=False)
    plan = np.arange(24).reshape(3, 8)[::-1] % 11
    sums = (pixels[plan].sum((2, 3, 4), dtype=np.int64) * (1 + plan)).sum(1).tolist()
    expected = forward(Linear(), pixels, np.arange(11) % 3)
    for number, (text, _) in enumerate(outputs):
        found = json.loads(text.splitlines()[-1])
        for kind in ("resident", "streaming"):
            assert found[kind]["sums"] == sums
            np.testing.assert_allclose(found[kind]["features"], expected, atol=1e-5)
        mine = plan[:, 4 * number : 4 * number + 4]
        assert found["streaming"]["read"] == sorted(mine.ravel().tolist())
        assert found["resident"]["read"] == []
