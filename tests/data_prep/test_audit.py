"""The audit of the synthetic people: measures on hand-made cases, its table, a tiny training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccafl_jax.report.pages import with_table
from data_prep import audit, synthetic

TINY = audit.AuditConfig(
    data=synthetic.SyntheticConfig(seed=0, train_ids=8, test_ids=6, cameras=2, images=3.0),
    steps=3,
    classes=4,
    instances=2,
    pretrain_ids=20,
)


@pytest.fixture(scope="module")
def splits():
    return audit.draw_splits(TINY.data)


def split_of(pid, camid):
    images = np.zeros((len(pid), 64, 32, 3), np.uint8)
    return audit.Split(images, np.array(pid, np.int32), np.array(camid, np.int32))


def test_splits_hold_what_the_names_say(splits):
    names = synthetic.folder_names(TINY.data)
    assert len(splits["train"].pid) == len(names["bounding_box_train"])
    assert set(splits["gallery"].pid) == set(splits["query"].pid) | {0}
    assert splits["train"].images.shape[1:] == (64, 32, 3) and splits["train"].images.std() > 20
    assert set(splits["train"].camid) == {0, 1}


def test_same_camera_rank1_by_hand():
    query = split_of([1, 2, 3], [0, 0, 1])
    gallery = split_of([1, 2, 0, 1, 2], [0, 0, 0, 1, 1])
    query_f = np.array([[1.0, 0], [1, 0], [1, 0]])
    gallery_f = np.array([[0.9, 0.1], [0.5, 0.5], [1, 0], [1, 0], [1, 0]])
    # Query 1 finds itself (the distractor does not count), query 2 finds 1, query 3 has no match.
    assert audit.same_camera_rank1(query, gallery, query_f, gallery_f) == 0.5


def test_whitening_leaves_no_covariance():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 4)) @ rng.normal(size=(4, 4)) + 3
    white = audit._whiten(x, shrink=0.0)
    np.testing.assert_allclose(np.cov(white.T), np.eye(4), atol=1e-6)
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-9)


def test_perfect_colours_would_be_found_by_the_baselines():
    rng = np.random.default_rng(0)
    colour = rng.integers(20, 235, (12, 3))
    pid = np.repeat(np.arange(1, 13), 2)
    images = np.broadcast_to(colour[pid - 1][:, None, None], (24, 64, 32, 3)).astype(np.uint8)
    camid = np.tile([0, 1], 12).astype(np.int32)
    query = audit.Split(images[::2], pid[::2].astype(np.int32), camid[::2])
    gallery = audit.Split(images[1::2], pid[1::2].astype(np.int32), camid[1::2])
    assert audit.baselines({"query": query, "gallery": gallery})["stripes, centred"] == 1.0


def test_zero_shot_features_are_scored_plain_and_centred(splits):
    def features(images):
        flat = images.reshape(len(images), -1)[:, ::97].astype(np.float32)
        return flat, flat[:, :8]

    scores = audit.zero_shot(splits, features)
    assert set(scores) == {
        f"zero-shot {name}, {how}" for name in "fg" for how in ("plain", "centred")
    }
    assert scores["zero-shot f, plain"] != scores["zero-shot f, centred"]


def test_intra_camera_loss_ignores_other_cameras():
    rng = np.random.default_rng(0)
    feature = jnp.asarray(rng.normal(size=(4, 5)), jnp.float32)
    y = jnp.array([0, 0, 1, 1])
    rows = rng.normal(size=(4, 5)).astype(np.float32)
    group = jnp.array([0, 0, 1, 1])
    other = rows.copy()
    other[2:] = -other[2:]

    @jax.jit
    @jax.value_and_grad
    def loss(rows, group):
        return audit._loss({"classifier": rows}, feature, y, group)

    # All images belong to the first camera, whose classes are 0 and 1.
    value, gradient = loss(rows, group)
    np.testing.assert_allclose(value, loss(other, group)[0], rtol=1e-6)
    one_group = jnp.zeros(4, jnp.int32)
    assert abs(loss(rows, one_group)[0] - loss(other, one_group)[0]) > 1e-3
    assert np.all(np.asarray(gradient)[2:] == 0) and np.any(np.asarray(gradient)[:2] != 0)


def test_training_moves_the_features(splits):
    query = splits["query"].images
    embed = audit.train_cnn(splits["train"], TINY, intra_camera=True, log=lambda line: None)
    trained = embed(query)
    label = splits["train"].camid * 1000 + splits["train"].pid
    rng = np.random.default_rng(TINY.data.seed)
    start = audit._init_cnn(rng, len(np.unique(label)))
    untrained = jax.jit(lambda x: audit._cnn(*start, audit._scaled(x), train=False)[0])(query)
    assert trained.shape == (len(query), 4 * audit._WIDTHS[-1])
    np.testing.assert_allclose(np.linalg.norm(trained, axis=1), 1, rtol=1e-4)
    cosine = (trained * untrained).sum(1) / np.linalg.norm(untrained, axis=1)
    assert cosine.max() < 0.999


def test_near_identical_people_are_counted():
    distance = audit.near_identical(TINY)
    assert distance["data"] >= 3 and distance["pretrain"] >= 2 and distance["portrait"] > 0


def test_table_is_made_from_the_figures():
    result = {
        "seed": 100,
        "chance": 0.01,
        "training_free": {"stripes, plain": 0.1},
        "best_training_free": "stripes, plain",
        "cnn": {
            "full": {"mAP": 0.7, "rank1": 0.8, "same_camera_rank1": 0.95},
            "intra": {"mAP": 0.35, "rank1": 0.4, "same_camera_rank1": 0.92},
        },
        "distance": {"data": 3, "pretrain": 2, "portrait": 1.5},
        "shared_colours": 0.9,
        "verdicts": {"a": True, "b": True, "c": True, "d": False, "e": True},
    }
    page = "head\n<!-- audit table -->\nold\n<!-- end of audit table -->\ntail\n"
    new = with_table(page, "audit", audit.table({"seeds": [result]}))
    assert "old" not in new and new.startswith("head") and new.endswith("tail\n")
    assert "| 0.14 |" in new and "| 0.50 |" in new and "fails d" in new
    with pytest.raises(ValueError, match="add them"):
        with_table("nothing", "audit", "")
