"""Which images form which batch: pure functions of the labels, a seed and a step.

Nothing is carried from call to call, so that a run resumed at any step, or a host that reads only
its rows, sees the batches of the uninterrupted run. All of it is NumPy on the host.
"""

import numpy as np

# Independent random streams of one seed.
_CLASS_ORDER, _CLASS_IMAGES, _EPOCH_ORDER = 1, 2, 3
_WORDS_PER_BLOCK = 4  # uint64 words that Philox makes per value of its counter


def plan(
    labels: np.ndarray,
    *,
    seed: int,
    first_step: int,
    steps: int,
    classes_per_batch: int,
    images_per_class: int,
) -> np.ndarray:
    """Image indices of the P x K batches `first_step` to `first_step + steps - 1`.

    The classes form one endless stream: position i is entry i % N of the i // N-th shuffle of all
    N classes, and batch t takes positions t P to (t + 1) P - 1. A shuffle that ends inside a batch
    is followed by the next one, so every batch is full; only there can a class come twice. The K
    images at a position are drawn without replacement from the class if it has K or more, else
    from the multiset that holds each of its images K times.

    Args:
      labels: int[n], classes 0..N-1 of the images; rows with -1 are never drawn.
      seed: seed of the run.
      first_step: first batch.
      steps: number of batches.
      classes_per_batch: P, at most N.
      images_per_class: K.

    Returns:
      int32[steps, P * K], the K rows of a class side by side.

    Raises:
      ValueError: a class without images, or P not in 1..N, or a negative or zero count.

    Source: sampler of Precise-ICS as CCAFL uses it; the random access is ours.
    """
    order, start, count = _group_by_class(labels)
    num_classes = len(count)
    if not 1 <= classes_per_batch <= num_classes:
        raise ValueError(
            f"classes_per_batch is {classes_per_batch}; the labels hold {num_classes} classes, so "
            f"it must be 1 to {num_classes}"
        )
    if images_per_class < 1 or steps < 0 or first_step < 0:
        raise ValueError(
            f"images_per_class {images_per_class} must be 1 or more, first_step {first_step} and "
            f"steps {steps} 0 or more"
        )
    first = first_step * classes_per_batch
    positions = steps * classes_per_batch
    classes = _class_stream(num_classes, seed, first, positions)
    rows = _draw(count[classes], images_per_class, seed, first)  # [positions, K]
    images = order[start[classes][:, None] + rows]
    return images.reshape(steps, classes_per_batch * images_per_class).astype(np.int32)


def epoch_permutation(n: int, *, seed: int, epoch: int) -> np.ndarray:
    """Random order of n images in one epoch, int32[n]."""
    return _generator(seed, _EPOCH_ORDER, epoch).permutation(n).astype(np.int32)


def shuffled_batches(n: int, *, seed: int, epoch: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """All n images once, in random order, in batches of one shape.

    Args:
      n: number of images.
      seed: seed of the run.
      epoch: counted from 0; each epoch has its own order.
      batch: rows of a batch.

    Returns:
      Indices int32[steps, batch] and valid bool[steps, batch]; the last batch is filled up with
      index 0, not valid. steps = ceil(n / batch).
    """
    if n < 1 or batch < 1:
        raise ValueError(f"{n} images in batches of {batch}: both must be 1 or more")
    steps = -(-n // batch)
    indices = np.zeros(steps * batch, np.int32)
    indices[:n] = epoch_permutation(n, seed=seed, epoch=epoch)
    valid = np.arange(steps * batch) < n
    return indices.reshape(steps, batch), valid.reshape(steps, batch)


def _group_by_class(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image indices sorted by class, and where each class starts and how many it has."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be int[n], found {labels.dtype}{list(labels.shape)}")
    if labels.size == 0 or labels.max() < 0:
        raise ValueError("no labelled image: labels must hold classes 0..N-1")
    order = np.argsort(labels, kind="stable")
    order = order[labels[order] >= 0]
    count = np.bincount(labels[order])
    empty = np.flatnonzero(count == 0)
    if empty.size:
        raise ValueError(
            f"{empty.size} of {len(count)} classes have no image (e.g. class {empty[0]}); labels "
            "must be dense, 0..N-1"
        )
    return order, np.cumsum(count) - count, count


def _class_stream(num_classes: int, seed: int, first: int, length: int) -> np.ndarray:
    """Classes at positions first..first + length - 1 of the stream, int[length]."""
    first_pass, offset = divmod(first, num_classes)
    passes = -(-(offset + length) // num_classes)
    shuffles = [
        _generator(seed, _CLASS_ORDER, first_pass + p).permutation(num_classes)
        for p in range(passes)
    ]
    if not shuffles:
        return np.zeros(0, np.int64)
    return np.concatenate(shuffles)[offset : offset + length]


def _draw(count: np.ndarray, draws: int, seed: int, first: int) -> np.ndarray:
    """Ordered draws without replacement, position by position: int[positions, draws] < count."""
    pool = np.where(count >= draws, count, count * draws)
    words = _random_words(seed, first, len(count), draws)
    uniform = (words >> np.uint64(11)) * 2.0**-53
    taken = np.full((len(count), draws), np.iinfo(np.int64).max)  # ascending, filled from the left
    drawn = np.empty((len(count), draws), np.int64)
    for k in range(draws):
        # The r-th entry that is still free: step over every smaller taken one, in order.
        entry = (uniform[:, k] * (pool - k)).astype(np.int64)
        for column in range(k):
            entry += entry >= taken[:, column]
        drawn[:, k] = entry
        taken[:, k] = entry
        taken.sort(axis=1)
    return drawn % count[:, None]


def _random_words(seed: int, first: int, positions: int, draws: int) -> np.ndarray:
    """uint64[positions, draws]; row i depends on the seed and on position first + i only.

    Each position owns a fixed range of one counter-based stream, which is read from any point.
    """
    blocks = -(-draws // _WORDS_PER_BLOCK)
    key = np.random.SeedSequence([seed, _CLASS_IMAGES]).generate_state(2, np.uint64)
    stream = np.random.Philox(key=key, counter=first * blocks)
    words = stream.random_raw(positions * blocks * _WORDS_PER_BLOCK)
    return words.reshape(positions, blocks * _WORDS_PER_BLOCK)[:, :draws]


def _generator(seed: int, stream: int, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stream, index])))
