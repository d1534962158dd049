"""Sizes of SYSU-MM01's protocol on a tree of the published structure, as training scores it."""

import numpy as np
import pytest

from ccafl_jax.data.layouts.sysumm01 import read_sysumm01
from ccafl_jax.methods.cclnet.config import DataConfig
from ccafl_jax.methods.cclnet.setup import whole_test_set
from ccafl_jax.scoring.evaluate import evaluate
from ccafl_jax.scoring.feature_set import feature_set

TRAIN, VAL, TEST = 296, 99, 96
IMAGES = {1: 1374, 2: 1565, 3: 1883, 4: 1918, 5: 1918, 6: 1920}
"""Test images by camera."""
SEEN = {1: 56, 2: 56, 3: 93, 4: 94, 5: 95, 6: 96}
"""Test identities by camera."""
INDOOR_IDS, INDOOR_CAMERA_3 = 56, 1088
"""Test identities that cameras 1 and 2 see, and their images under camera 3."""


def spread(images, ids):
    """Images of each of some identities, as even as can be."""
    return [len(part) for part in np.array_split(np.arange(images), ids)]


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    root = tmp_path_factory.mktemp("SYSU-MM01")
    ids = np.arange(1, TRAIN + VAL + TEST + 1)
    lists = np.split(ids, [TRAIN, TRAIN + VAL])
    (root / "exp").mkdir()
    for name, some in zip(("train", "val", "test"), lists, strict=True):
        (root / "exp" / f"{name}_id.txt").write_text(",".join(map(str, some)) + "\n")
    counts = {(camera, pid): 1 for pid in ids[: TRAIN + VAL] for camera in (1, 6)}
    test = lists[2]
    for camera in (1, 2, 4, 5, 6):
        seen = test[: SEEN[camera]] if camera < 3 else test[TEST - SEEN[camera] :]
        for pid, count in zip(seen, spread(IMAGES[camera], SEEN[camera]), strict=True):
            counts[camera, pid] = count
    rest = SEEN[3] - INDOOR_IDS
    for pids, images in (
        (test[:INDOOR_IDS], INDOOR_CAMERA_3),
        (test[-rest:], IMAGES[3] - INDOOR_CAMERA_3),
    ):
        for pid, count in zip(pids, spread(images, len(pids)), strict=True):
            counts[3, pid] = count
    for (camera, pid), count in counts.items():
        folder = root / f"cam{camera}" / f"{pid:04d}"
        folder.mkdir(parents=True)
        for number in range(1, count + 1):
            (folder / f"{number:04d}.jpg").touch()
    return read_sysumm01(root)


@pytest.mark.parametrize(
    ("mode", "shots", "gallery", "valid"),
    [
        ("all", 1, 301, 3803),
        ("all", 10, 3010, 3803),
        ("indoor", 1, 112, 2208),
        ("indoor", 10, 1120, 2208),
    ],
)
def test_sizes_of_the_protocol(collection, mode, shots, gallery, valid):
    dataset = whole_test_set(collection, DataConfig())
    assert len(set(dataset.train.pid)) == TRAIN + VAL
    assert (len(dataset.query), len(dataset.gallery)) == (3803, 1374 + 1565 + 1918 + 1918)
    test = dataset.query.join(dataset.gallery)
    features = np.random.default_rng(0).normal(size=(len(test), 4)).astype(np.float32)
    found = feature_set(
        {"test": test}, features, dataset="sysumm01", camera_codes=dataset.camera_codes
    )
    figures = evaluate(found, protocol="sysumm01", mode=mode, shots=shots, trials=1).per_trial[0]
    assert figures["counts"]["gallery"] == gallery
    assert figures["counts"]["queries"] == 3803
    assert figures["counts"]["queries_without_match"] == 3803 - valid
