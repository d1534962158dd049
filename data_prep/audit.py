"""Is a draw of the synthetic people worth training on? The audit answers before any method trains.

A set is sound when colours alone do not solve it, a network with full labels does, a network that
knows identities inside each camera only does not cross cameras by itself although it knows its own
camera well, and no person of one role is nearly a person of another:

    a  best training-free baseline  <= 0.2 x (CNN, full labels)
    b  .55 <= mAP of the CNN with full labels <= .9
    c  CNN with intra-camera labels <= 0.6 x (CNN, full labels)
    d  rank-1 within the same camera of the CNN with intra-camera labels >= .9
    e  no near-identical people across training, test and tiny-CLIP people

The CNN is a small residual network on 64 x 32 images; both trainings have the same budget.
"""

import dataclasses
import functools
import io
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from ccafl_jax import numerics
from ccafl_jax.evaluation.ranking import rank
from data_prep import synthetic
from data_prep.synthetic.folder import render_names

BASELINE_RATIO, CNN_LOW, CNN_HIGH, INTRA_RATIO, SAME_CAMERA = 0.2, 0.55, 0.9, 0.6, 0.9
SAME_DOMAIN_DISTANCE, CROSS_DOMAIN_DISTANCE, PORTRAIT_DISTANCE = 3, 2, 1.0


AUDIT_DATA = synthetic.SyntheticConfig(train_ids=600, test_ids=120, cameras=6, images=4.0)
"""The set that is audited, but for its seed."""


@dataclasses.dataclass(frozen=True)
class AuditConfig:
    """Size of an audit.

    Attributes:
      data: the set; its seed is the data seed.
      steps: training steps of each CNN.
      classes: classes in a batch.
      instances: images of a class in a batch.
      learning_rate: peak of the cosine schedule.
      pretrain_ids: tiny-CLIP people compared for near-identity.
      pretrain_seed: their seed.
    """

    data: synthetic.SyntheticConfig = AUDIT_DATA
    steps: int = 1800
    classes: int = 32
    instances: int = 2
    learning_rate: float = 3e-3
    pretrain_ids: int = 3000
    pretrain_seed: int = 1000


@dataclasses.dataclass(frozen=True)
class Split:
    """Images with their labels: uint8[n, 64, 32, 3], int32[n] identity, int32[n] camera."""

    images: np.ndarray
    pid: np.ndarray
    camid: np.ndarray


def draw_splits(config: synthetic.SyntheticConfig) -> dict[str, Split]:
    """Draws a folder in memory at 64 x 32, JPEG included; junk images are left out.

    Returns:
      Splits train, query and gallery; the gallery keeps its distractors (identity 0).
    """
    splits = {}
    folders = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
    names = synthetic.folder_names(config)
    for split, folder in folders.items():
        parsed = [synthetic.parse_name(name) for name in names[folder]]
        parsed = [name for name in parsed if name.pid >= 0]
        images = np.empty((len(parsed), 64, 32, 3), np.uint8)
        for row, (pixels, quality) in enumerate(render_names(parsed, config)):
            picture = Image.open(io.BytesIO(synthetic.encode(pixels, quality)))
            images[row] = np.asarray(picture.resize((32, 64), Image.Resampling.BICUBIC))
        pid = np.array([name.pid for name in parsed], np.int32)
        splits[split] = Split(images, pid, np.array([n.camera for n in parsed], np.int32) - 1)
    return splits


def retrieval(query: Split, gallery: Split, query_f, gallery_f) -> dict[str, float]:
    """Scores mAP and rank-1 across cameras of float[n, dim] features."""
    ranking = rank(
        jnp.asarray(query_f, jnp.float32),
        jnp.asarray(gallery_f, jnp.float32),
        query.pid,
        gallery.pid,
        query.camid,
        gallery.camid,
    )
    summary = ranking.summary()
    return {"mAP": float(summary["mAP"]), "rank1": float(summary["rank1"])}


def same_camera_rank1(query: Split, gallery: Split, query_f, gallery_f) -> float:
    """Share of queries whose nearest gallery image of their own camera has their identity.

    Gallery: the images of test identities (no distractors) taken by the query's camera; queries
    without a further image of their identity there do not count.
    """
    query_f, gallery_f = np.asarray(query_f), np.asarray(gallery_f)
    similarity = query_f @ gallery_f.T
    usable = (query.camid[:, None] == gallery.camid[None]) & (gallery.pid > 0)[None]
    same = query.pid[:, None] == gallery.pid[None]
    valid = (usable & same).any(1)
    nearest = np.where(usable, similarity, -2.0).argmax(1)
    return float((gallery.pid[nearest] == query.pid)[valid].mean())


def baselines(splits: dict[str, Split]) -> dict[str, float]:
    """Scores colours of stripes, corrected camera by camera, without training: mAP by name."""
    query, gallery = splits["query"], splits["gallery"]
    count = len(query.pid)
    images = np.concatenate([query.images, gallery.images]).astype(np.float64)
    camid = np.concatenate([query.camid, gallery.camid])
    features = {}
    for name, pixels in (("stripes", images), ("whitened pixels", _whiten_pixels(images, camid))):
        for part, window in (("", slice(None)), (", middle", slice(8, 24))):
            strips = pixels[:, :, window].reshape(len(pixels), 8, 8, -1, 3).mean((2, 3))
            features[name + part] = strips.reshape(len(pixels), -1)
    results = {}
    corrections = {
        "plain": lambda x: x - x.mean(0),
        "centred": lambda x: x - x.mean(0),
        "z-score": lambda x: (x - x.mean(0)) / (x.std(0) + 1e-6),
        "whitened": _whiten,
    }
    for name, x in features.items():
        for correction, apply in corrections.items():
            y = apply(x) if correction == "plain" else _per_camera(x, camid, apply)
            y = y / (np.linalg.norm(y, axis=1, keepdims=True) + 1e-12)
            results[f"{name}, {correction}"] = retrieval(query, gallery, y[:count], y[count:])[
                "mAP"
            ]
    return results


def zero_shot(
    splits: dict[str, Split], features: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
) -> dict[str, float]:
    """Scores the mAP of zero-shot features, plain and with each camera's mean subtracted.

    Args:
      splits: the set.
      features: uint8[n, h, w, 3] -> (f float[n, d], g float[n, e]).
    """
    query, gallery = splits["query"], splits["gallery"]
    count = len(query.pid)
    pair = features(np.concatenate([query.images, gallery.images]))
    camid = np.concatenate([query.camid, gallery.camid])
    results = {}
    for name, x in zip(("f", "g"), pair, strict=True):
        x = np.asarray(x, np.float64)
        x = x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-12)
        for how, y in (("plain", x), ("centred", _per_camera(x, camid, lambda z: z - z.mean(0)))):
            y = y / (np.linalg.norm(y, axis=1, keepdims=True) + 1e-12)
            results[f"zero-shot {name}, {how}"] = retrieval(query, gallery, y[:count], y[count:])[
                "mAP"
            ]
    return results


def train_cnn(
    split: Split, config: AuditConfig, *, intra_camera: bool, log: Callable[[str], None] = print
) -> Callable[[np.ndarray], np.ndarray]:
    """Trains the small CNN; cross-entropy with smoothing .1 and batch-hard triplets.

    Args:
      split: the training images.
      config: budget.
      intra_camera: whether a class is a (camera, identity) pair, told apart from the classes of
        its own camera only, instead of an identity.
      log: receives a line now and then.

    Returns:
      A function uint8[n, 64, 32, 3] -> float32[n, dim], L2-normalised.
    """
    key = split.camid * 100_000 + split.pid if intra_camera else split.pid
    _, label = np.unique(key, return_inverse=True)
    num_classes = int(label.max()) + 1
    group_of = np.zeros(num_classes, np.int32)
    if intra_camera:
        group_of[label] = split.camid
    rng = np.random.default_rng(config.data.seed)
    rows_of = [np.flatnonzero(label == c) for c in range(num_classes)]
    params, stats = _init_cnn(rng, num_classes)
    warm = min(100, config.steps // 2)
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warm, config.steps)
    optimiser = optax.adamw(schedule, weight_decay=5e-4)
    opt_state = optimiser.init(params)
    images, label_d = jnp.asarray(split.images), jnp.asarray(label)
    group_d = jnp.asarray(group_of)

    @jax.jit
    def step(params, stats, opt_state, images, rows, seed):
        def loss_fn(params):
            batch = _augment(images[rows], jax.random.key(seed))
            feature, new_stats = _cnn(params, stats, batch, train=True)
            y = label_d[rows]
            return _loss(params, feature, y, group_d), new_stats

        (loss, stats), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimiser.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), stats, opt_state, loss

    start = time.perf_counter()
    for count in range(config.steps):
        chosen = rng.choice(num_classes, config.classes, replace=False)
        rows = np.concatenate(
            [
                rng.choice(rows_of[c], config.instances, len(rows_of[c]) < config.instances)
                for c in chosen
            ]
        )
        params, stats, opt_state, loss = step(
            params, stats, opt_state, images, rows, np.uint32(count)
        )
        if (count + 1) % 200 == 0:
            seconds = time.perf_counter() - start
            log(f"  step {count + 1:5d}  loss {float(loss):6.3f}  {seconds:5.0f} s")
    forward = jax.jit(lambda x: _cnn(params, stats, _scaled(x), train=False)[0])

    def embed(images):
        padded = np.concatenate([images, np.repeat(images[:1], -len(images) % 256, 0)])
        parts = [forward(padded[i : i + 256]) for i in range(0, len(padded), 256)]
        features = np.concatenate(parts)[: len(images)]
        return features / (np.linalg.norm(features, axis=1, keepdims=True) + 1e-12)

    return embed


def near_identical(config: AuditConfig) -> dict[str, float]:
    """Smallest distances between people of the three roles.

    Returns:
      Smallest number of differing attributes within the set ("data") and to the tiny-CLIP people
      ("pretrain"), and smallest mean absolute difference of two portraits in grey levels.
    """
    data = config.data
    train = synthetic.draw_people(1 + 2 * np.arange(data.train_ids), seed=data.seed)
    test = synthetic.draw_people(2 + 2 * np.arange(data.test_ids), seed=data.seed)
    other = synthetic.draw_people(
        np.arange(config.pretrain_ids), seed=config.pretrain_seed, domain="pretrain"
    )
    everyone = train + test
    within = synthetic.code_distance(everyone, everyone)
    np.fill_diagonal(within, 99)
    across = synthetic.code_distance(everyone, other)
    portraits = [_portraits(group) for group in (train, test, other)]
    closest = min(
        _closest(portraits[0], portraits[1]),
        _closest(portraits[0], portraits[2]),
        _closest(portraits[1], portraits[2]),
    )
    return {"data": int(within.min()), "pretrain": int(across.min()), "portrait": closest}


def shared_colours(people: list[synthetic.Person]) -> float:
    """Share of people who share the colours of top and trousers with another one."""
    outfits = [(p.value("top_colour"), p.value("bottom_colour")) for p in people]
    return float(np.mean([outfits.count(outfit) > 1 for outfit in outfits]))


def audit(
    config: AuditConfig,
    *,
    clip_features: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None,
    log: Callable[[str], None] = print,
) -> dict:
    """Runs the audit on one data seed.

    Args:
      config: the set and the budget.
      clip_features: zero-shot features (f, g) of the tiny CLIP; without it they are not compared.
      log: receives progress.

    Returns:
      The figures, the verdicts of a to e, and "passed".
    """
    start = time.perf_counter()
    splits = draw_splits(config.data)
    query, gallery = splits["query"], splits["gallery"]
    free = baselines(splits)
    if clip_features is not None:
        free |= zero_shot(splits, clip_features)
    best = max(free, key=free.get)
    log(f"seed {config.data.seed}: best training-free {best} {free[best]:.3f}")
    cnn = {}
    for name, intra in (("full", False), ("intra", True)):
        embed = train_cnn(splits["train"], config, intra_camera=intra, log=log)
        features = embed(query.images), embed(gallery.images)
        cnn[name] = retrieval(query, gallery, *features)
        cnn[name]["same_camera_rank1"] = same_camera_rank1(query, gallery, *features)
        log(f"seed {config.data.seed}: CNN {name} {cnn[name]}")
    distance = near_identical(config)
    passed = verdicts(free[best], cnn, distance)
    return {
        "seed": config.data.seed,
        "images": {name: len(split.pid) for name, split in splits.items()},
        "chance": chance_map(query, gallery),
        "training_free": free,
        "best_training_free": best,
        "cnn": cnn,
        "distance": distance,
        "shared_colours": shared_colours(
            synthetic.draw_people(1 + 2 * np.arange(config.data.train_ids), seed=config.data.seed)
        ),
        "verdicts": passed,
        "passed": all(passed.values()),
        "seconds": round(time.perf_counter() - start, 1),
    }


def clip_features(directory: Path) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Zero-shot features of the tiny CLIP in a directory: uint8[n, h, w, 3] -> (f, g).

    Raises:
      ValueError: if the library offers no zero-shot features.
    """
    try:
        from data_prep.tiny_clip import zero_shot_features
    except ImportError as error:
        raise ValueError("data_prep.tiny_clip offers no zero_shot_features") from error
    return functools.partial(zero_shot_features, directory=directory)


def verdicts(
    training_free: float, cnn: dict[str, dict[str, float]], distance: dict[str, float]
) -> dict[str, bool]:
    """Which of the five conditions hold.

    Args:
      training_free: mAP of the best baseline.
      cnn: figures of the CNN by kind of labels, "full" and "intra".
      distance: result of `near_identical`.
    """
    full, intra = cnn["full"]["mAP"], cnn["intra"]["mAP"]
    return {
        "a": training_free <= BASELINE_RATIO * full,
        "b": CNN_LOW <= full <= CNN_HIGH,
        "c": intra <= INTRA_RATIO * full,
        "d": cnn["intra"]["same_camera_rank1"] >= SAME_CAMERA,
        "e": distance["data"] >= SAME_DOMAIN_DISTANCE
        and distance["pretrain"] >= CROSS_DOMAIN_DISTANCE
        and distance["portrait"] >= PORTRAIT_DISTANCE,
    }


def figures(results: list[dict], config: AuditConfig) -> dict:
    """The record of an audit over several data seeds, as written to JSON."""
    settings = dataclasses.asdict(config)
    del settings["data"]["seed"]
    return {
        "version": synthetic.VERSION,
        "sample_sha256": synthetic.sample_hash(),
        "settings": settings,
        "seeds": results,
        "passed": all(result["passed"] for result in results),
    }


def table(figures: dict) -> str:
    """The figures as a Markdown table, one row per data seed."""
    lines = [
        "| data seed | chance | best training-free (a) | CNN, full labels (b) | ratio (a) "
        "| CNN, intra-camera labels (c) | ratio (c) | same-camera rank-1 (d): intra, full "
        "| attributes apart (e): in the set, to tiny-CLIP | nearest portraits (e) "
        "| same colours | verdict |",
        "|" + "---|" * 12,
    ]
    for result in figures["seeds"]:
        best, full = result["best_training_free"], result["cnn"]["full"]
        free, intra, distance = (
            result["training_free"][best],
            result["cnn"]["intra"],
            result["distance"],
        )
        failed = [name for name, passed in result["verdicts"].items() if not passed]
        verdict = "fails " + " ".join(failed) if failed else "passes"
        lines.append(
            f"| {result['seed']} | {result['chance']:.3f} | {free:.3f} ({best}) "
            f"| {full['mAP']:.3f} | {free / full['mAP']:.2f} | {intra['mAP']:.3f} "
            f"| {intra['mAP'] / full['mAP']:.2f} "
            f"| {intra['same_camera_rank1']:.3f}, {full['same_camera_rank1']:.3f} "
            f"| {distance['data']}, {distance['pretrain']} | {distance['portrait']:.1f} "
            f"| {result['shared_colours']:.2f} | {verdict} |"
        )
    return "\n".join(lines)


def chance_map(query: Split, gallery: Split) -> float:
    """Scores the mAP of random features."""
    rng = np.random.default_rng(0)
    draws = [rng.normal(size=(len(split.pid), 64)) for split in (query, gallery)]
    return retrieval(query, gallery, *draws)["mAP"]


def _per_camera(x, camid, apply):
    y = np.empty_like(x)
    for camera in np.unique(camid):
        y[camid == camera] = apply(x[camid == camera])
    return y


def _whiten(x, shrink=0.02):
    """Subtracts the mean and turns the covariance into (nearly) the identity, symmetrically."""
    x = x - x.mean(0)
    values, vectors = np.linalg.eigh(np.cov(x.T))
    scale = 1 / np.sqrt(values + shrink * values.mean())
    return x @ (vectors * scale) @ vectors.T


def _whiten_pixels(images, camid):
    def apply(x):
        return _whiten(x.reshape(-1, 3)).reshape(x.shape)

    return _per_camera(images, camid, apply)


def _portraits(people):
    """Front and back at 32 x 16 pixels: float32[n, features]."""
    rows = [
        np.concatenate(
            [synthetic.portrait(p, view, height=32, width=16).ravel() for view in (0, 4)]
        )
        for p in people
    ]
    return np.array(rows, np.float32)


def _closest(first, second):
    return float(min(np.abs(second - row).mean(1).min() for row in first))


# The small CNN, written out: a stem and three residual blocks, features pooled in four strips.
_WIDTHS = (24, 48, 96)


def _init_cnn(rng, num_classes):
    def kernel(*shape):
        scale = np.sqrt(2.0 / np.prod(shape[:-1]))
        return jnp.asarray(rng.normal(size=shape) * scale, jnp.float32)

    params, stats = {"stem": kernel(3, 3, 3, _WIDTHS[0])}, {}
    norms = {"stem": _WIDTHS[0]}
    before = _WIDTHS[0]
    for block, width in enumerate(_WIDTHS):
        params[f"a{block}"] = kernel(3, 3, before, width)
        params[f"b{block}"] = kernel(3, 3, width, width)
        params[f"skip{block}"] = kernel(1, 1, before, width)
        norms |= {f"a{block}": width, f"b{block}": width}
        before = width
    norms["neck"] = 4 * before
    for name, width in norms.items():
        params[f"{name}_scale"] = jnp.ones(width)
        params[f"{name}_shift"] = jnp.zeros(width)
        stats[name] = (jnp.zeros(width), jnp.ones(width))
    # Short rows turn quickly under Adam; the classifier normalises them.
    rows = 0.03 * rng.normal(size=(num_classes, 4 * before))
    params["classifier"] = jnp.asarray(rows, jnp.float32)
    return params, stats


def _cnn(params, stats, x, *, train):
    """float32[n, 64, 32, 3] -> (float32[n, dim], new running statistics)."""
    new = dict(stats)

    def norm(x, name):
        axes = tuple(range(x.ndim - 1))
        if train:
            mean, variance = x.mean(axes), x.var(axes)
            old = stats[name]
            new[name] = (0.95 * old[0] + 0.05 * mean, 0.95 * old[1] + 0.05 * variance)
        else:
            mean, variance = stats[name]
        scale = params[f"{name}_scale"] * jax.lax.rsqrt(variance + 1e-5)
        return x * scale + (params[f"{name}_shift"] - mean * scale)

    x = jax.nn.relu(norm(_conv(x, params["stem"], 2), "stem"))
    for block in range(len(_WIDTHS)):
        stride = 1 if block == 0 else 2
        y = jax.nn.relu(norm(_conv(x, params[f"a{block}"], stride), f"a{block}"))
        y = norm(_conv(y, params[f"b{block}"], 1), f"b{block}")
        x = jax.nn.relu(y + _conv(x, params[f"skip{block}"], stride))
    window = (1, x.shape[1] // 4, x.shape[2], 1)
    # A windowed maximum: the gradient of jnp.max divides by the number of ties, which is zero
    # when the compiler computes x twice and not alike.
    highest = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
    pooled = 0.5 * (x.reshape(len(x), 4, -1, x.shape[-1]).mean(2) + highest[:, :, 0])
    return norm(pooled.reshape(len(x), -1), "neck"), new


def _conv(x, kernel, stride):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _scaled(images):
    return images.astype(jnp.float32) / 127.5 - 1.0


def _augment(images, key):
    """Flip, pad-crop by up to 4 and 2 pixels, erase a box in three of ten images."""
    flip_key, crop_key, erase_key = jax.random.split(key, 3)
    count, height, width, _ = images.shape
    x = _scaled(images)
    flip = jax.random.bernoulli(flip_key, 0.5, (count, 1, 1, 1))
    x = jnp.where(flip, x[:, :, ::-1], x)
    shift = jax.random.randint(crop_key, (count, 2), 0, jnp.array([9, 5]))
    padded = jnp.pad(x, ((0, 0), (4, 4), (2, 2), (0, 0)))
    cut = jax.vmap(lambda im, s: jax.lax.dynamic_slice(im, (s[0], s[1], 0), (height, width, 3)))
    x = cut(padded, shift)
    u = jax.random.uniform(erase_key, (count, 5, 1, 1))
    rows, columns = jnp.arange(height)[None, :, None], jnp.arange(width)[None, None]
    tall, wide = height * (0.1 + 0.3 * u[:, 0]), width * (0.2 + 0.4 * u[:, 1])
    top, left = (height - tall) * u[:, 2], (width - wide) * u[:, 3]
    inside = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
    return jnp.where((inside & (u[:, 4] < 0.3))[..., None], 0.0, x)


def _loss(params, feature, y, group_of):
    """Cosine softmax inside the own group with smoothing .1, plus batch-hard triplets inside it.

    Args:
      params: holds the classifier float32[classes, dim].
      feature: float32[batch, dim].
      y: int32[batch] class.
      group_of: int32[classes]; all equal with full labels, the camera with intra-camera labels.
    """
    f = numerics.l2_normalize(feature)
    weight = numerics.l2_normalize(params["classifier"])
    group = group_of[y]
    known = group[:, None] == group_of[None]
    logits = jnp.where(known, 16.0 * numerics.einsum("bd,cd->bc", f, weight), numerics.NEG)
    log_p = jax.nn.log_softmax(logits)
    own = jnp.take_along_axis(log_p, y[:, None], 1)[:, 0]
    smooth = jnp.where(known, log_p, 0.0).sum(1) / known.sum(1)
    entropy = -(0.9 * own + 0.1 * smooth).mean()
    distance = 1.0 - numerics.einsum("bd,cd->bc", f, f)
    same = y[:, None] == y[None]
    rival = (group[:, None] == group[None]) & ~same
    farthest = jnp.where(same, distance, -1.0).max(1)
    nearest = jnp.where(rival, distance, 1e3).min(1)
    hinge = jax.nn.relu(farthest - nearest + 0.3)
    return entropy + jnp.where(rival.any(1), hinge, 0.0).mean()
