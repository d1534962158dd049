"""Small sets of features with all that an option may ask for."""

import numpy as np

from ccafl_jax.scoring.feature_set import (
    DISTRACTOR,
    GALLERY,
    MULTI_QUERY,
    QUERY,
    TEST,
    FeatureSet,
)

DIM = 6


def features_of(pid, camid, *, seed=0, noise=1.5):
    """float32[n, DIM] that know the person and a little of the camera."""
    rng = np.random.default_rng(seed)
    people, cameras = rng.standard_normal((64, DIM)), rng.standard_normal((16, DIM))
    made = people[np.asarray(pid) % 64] + 0.7 * cameras[np.asarray(camid)]
    return (made + noise * rng.standard_normal(made.shape)).astype(np.float32)


def made_set(pid, camid, part, *, dataset="market1501", seed=0, names=None, **more):
    pid, camid = np.asarray(pid, np.int32), np.asarray(camid, np.int32)
    if names is None:
        names = np.array([f"{row:04d}.jpg" for row in range(len(pid))])
    fields = {
        "dataset": dataset,
        "features": features_of(pid, camid, seed=seed),
        "pid": pid,
        "camid": camid,
        "part": np.asarray(part, np.int8),
        "names": np.asarray(names),
        "camera_codes": tuple(range(1, int(camid.max(initial=-1)) + 2)),
    }
    return FeatureSet(**(fields | more))


def market(seed=0, queries=20, gallery=60, **more):
    """Queries, gallery with junk and distractors, hand-drawn boxes, more distractors."""
    rng = np.random.default_rng(100 + seed)
    parts = np.repeat([QUERY, GALLERY, MULTI_QUERY, DISTRACTOR], [queries, gallery, 15, 12])
    pid = rng.integers(1, 7, len(parts))
    camid = rng.integers(0, 3, len(parts))
    junk = (parts == GALLERY) & (rng.random(len(parts)) < 0.2)
    pid = np.where(junk, rng.choice([-1, 0], len(parts)), pid)
    pid = np.where(parts == DISTRACTOR, 0, pid)
    camid = np.where(parts == DISTRACTOR, -1, camid)
    return made_set(pid, camid, parts, seed=seed, **({"camera_codes": (1, 2, 3)} | more))


def visible_infrared(seed=0, dataset="sysumm01", people=8, images=4, **more):
    """All test images of each person under six cameras, by camera, person and file."""
    camera, pid, _ = (
        x.ravel() for x in np.meshgrid(np.arange(6), np.arange(1, people + 1), np.arange(images))
    )
    order = np.lexsort((pid, camera))
    camera, pid = camera[order], pid[order]
    return made_set(
        pid,
        camera,
        np.full(len(pid), TEST),
        dataset=dataset,
        seed=seed,
        **({"modality": np.isin(camera, (2, 5)).astype(np.int8)} | more),
    )
