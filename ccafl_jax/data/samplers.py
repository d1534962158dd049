"""Which images form which batch: pure functions of the labels, a seed and a step.

Nothing is carried from call to call, so that a run resumed at any step, or a host that reads only
its rows, sees the batches of the uninterrupted run. All of it is NumPy on the host.
"""

import numpy as np

DRAWS = ("stream", "released")
"""How the batches of two modalities are drawn."""

# Independent random streams of one seed.
_CLASS_ORDER, _CLASS_IMAGES, _EPOCH_ORDER, _GROUPS = 1, 2, 3, 4
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
    _check_classes(classes_per_batch, num_classes)
    _check_counts(first_step, steps, images_per_class)
    first = first_step * classes_per_batch
    positions = steps * classes_per_batch
    classes = _class_stream(num_classes, seed, first, positions)
    uniform = _uniform(seed, first, positions, images_per_class)
    rows = _draw(count[classes], uniform)  # [positions, K]
    images = order[start[classes][:, None] + rows]
    return images.reshape(steps, classes_per_batch * images_per_class).astype(np.int32)


def plan_across_cameras(
    labels: np.ndarray,
    camid: np.ndarray,
    *,
    seed: int,
    first_step: int,
    steps: int,
    classes_per_batch: int,
    images_per_class: int,
) -> np.ndarray:
    """Image indices of P x K batches in which a class is seen by other cameras than its first row.

    Classes form the stream of `plan`; where there are fewer than P, some come twice in a batch. At
    each position one image is drawn, and K - 1 of the same class from all other cameras, images
    and not cameras being equally likely. Where no other camera has any, they are other images of
    the class; and a class of one image repeats it. Draws are without replacement where there are
    K - 1 to draw from, else each image may come K - 1 times.

    Args:
      labels: int[n], classes 0..N-1 of the images; rows with -1 are never drawn.
      camid: int[n], camera of each image, from 0.
      seed: seed of the run.
      first_step: first batch.
      steps: number of batches.
      classes_per_batch: P.
      images_per_class: K.

    Returns:
      int32[steps, P * K], the K rows of a class side by side, the image that was drawn first in
      front.

    Raises:
      ValueError: a class without images, shapes that do not fit, or a negative or zero count.

    Source: sampler of SpCL and ClusterContrast as CALR uses it (specification 5), which draws
      K - 1 with replacement where there are K - 1 exactly, and gives a class of one image one row.
    """
    camid = np.asarray(camid)
    if camid.shape != np.shape(labels):
        raise ValueError(
            f"labels have shape {np.shape(labels)} and camid {camid.shape}; expected [n] and [n]"
        )
    _check_counts(first_step, steps, images_per_class)
    if classes_per_batch < 1:
        raise ValueError(f"classes_per_batch is {classes_per_batch}; expected 1 or more")
    order, start, count = _group_by_class(labels, camid)
    first = first_step * classes_per_batch
    positions = steps * classes_per_batch
    classes = _class_stream(len(count), seed, first, positions)
    begin, size = start[classes], count[classes]
    uniform = _uniform(seed, first, positions, images_per_class)
    anchor = (uniform[:, 0] * size).astype(np.int64)
    # Images of one class and camera lie side by side; those of the anchor's camera are stepped
    # over, or the anchor alone where they are the whole class.
    run_of, run_start, run_size = _runs(np.asarray(labels)[order], camid[order])
    run = run_of[begin + anchor]
    elsewhere = run_size[run] < size
    left_out = np.where(elsewhere, run_start[run] - begin, anchor)
    width = np.where(elsewhere, run_size[run], np.minimum(size - 1, 1))
    others = _draw(size - width, uniform[:, 1:])
    others += np.where(others >= left_out[:, None], width[:, None], 0)
    rows = np.concatenate([anchor[:, None], others], axis=1)  # [positions, K]
    images = order[begin[:, None] + rows]
    return images.reshape(steps, classes_per_batch * images_per_class).astype(np.int32)


def plan_of_modalities(
    labels: np.ndarray,
    infrared: np.ndarray,
    *,
    seed: int,
    steps: int,
    classes_per_batch: int,
    images_per_class: int,
    draws: str = "stream",
) -> np.ndarray:
    """Batches whose first half is visible and whose second half is infrared, P x K images each.

    The modalities draw apart: a batch shows other classes in one than in the other, and their
    labels have nothing to do with each other. A modality with fewer than P classes shows some of
    them twice in a batch.

    Args:
      labels: int[n], classes 0..N-1 in each modality; rows with -1 are never drawn.
      infrared: bool[n], which images are infrared.
      seed: seed of the epoch.
      steps: number of batches.
      classes_per_batch: P, of each modality.
      images_per_class: K.
      draws: "stream", see `plan`; or "released", where every batch draws P classes anew, and K
        images of each with replacement, in the order of the published code.

    Returns:
      int32[steps, 2 * P * K], the K rows of a class side by side.

    Raises:
      ValueError: a modality without classes, `released` with fewer than P of them, shapes that do
        not fit, other draws, or a negative or zero count.

    Source: sampler of CCLNet as released (specification 3).
    """
    labels, infrared = np.asarray(labels), np.asarray(infrared, bool)
    if infrared.shape != labels.shape:
        raise ValueError(
            f"labels have shape {labels.shape} and infrared {infrared.shape}; expected [n] and [n]"
        )
    if draws not in DRAWS:
        raise ValueError(f"draws is {draws!r}; choose one of {DRAWS}")
    _check_counts(0, steps, images_per_class)
    if classes_per_batch < 1:
        raise ValueError(f"classes_per_batch is {classes_per_batch}; expected 1 or more")
    groups = [_group_by_class(np.where(infrared == side, labels, -1)) for side in (False, True)]
    if draws == "released":
        return _released_draws(groups, seed, steps, classes_per_batch, images_per_class)
    positions = steps * classes_per_batch
    halves = []
    for side, (order, start, count) in enumerate(groups):
        own_seed = 2 * seed + side
        classes = _class_stream(len(count), own_seed, 0, positions)
        uniform = _uniform(own_seed, 0, positions, images_per_class)
        rows = _draw(count[classes], uniform)  # [positions, K]
        halves.append(order[start[classes][:, None] + rows].reshape(steps, -1))
    return np.concatenate(halves, axis=1).astype(np.int32)


def _released_draws(
    groups: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
    seed: int,
    steps: int,
    classes: int,
    images: int,
) -> np.ndarray:
    fewest = min(len(count) for _, _, count in groups)
    if fewest < classes:
        raise ValueError(
            f"a modality has {fewest} classes, and the released draws need {classes} in a batch: "
            "choose draws='stream'"
        )
    random = np.random.RandomState(seed)
    found = np.empty((steps, len(groups), classes, images), np.int32)
    for step in found:
        chosen = [random.choice(len(count), classes, replace=False) for _, _, count in groups]
        for place in range(classes):
            for side, (order, start, count) in enumerate(groups):
                first, size = start[chosen[side][place]], count[chosen[side][place]]
                step[side, place] = random.choice(order[first : first + size], images)
    return found.reshape(steps, -1)


def shuffled_pairs(
    visible: np.ndarray, infrared: np.ndarray, *, seed: int, epoch: int, batch: int
) -> tuple[np.ndarray, np.ndarray]:
    """All images of two modalities in random order, in batches with as many of each.

    Those of the modality that has fewer are topped up by some of them, drawn with replacement.

    Args:
      visible: int[n], rows of the data set.
      infrared: int[m], rows of the data set.
      seed: seed of the run.
      epoch: counted from 0; each epoch has its own order.
      batch: rows of each modality in a batch.

    Returns:
      Rows int32[steps, 2 * batch], the visible ones in front, and valid bool[steps, 2 * batch];
      the last batch is filled up with rows that are not valid. steps = ceil(max(n, m) / batch).

    Raises:
      ValueError: a modality without images, or an empty batch.

    Source: CCLNet as released, prompt learning (specification 6.1).
    """
    sides = [np.asarray(rows) for rows in (visible, infrared)]
    longest = max(map(len, sides))
    if not min(map(len, sides)) or batch < 1:
        raise ValueError(
            f"{len(visible)} visible and {len(infrared)} infrared images in batches of {batch}: "
            "all must be 1 or more"
        )
    steps = -(-longest // batch)
    halves = []
    for side, rows in enumerate(sides):
        random = _generator(2 * seed + side, _EPOCH_ORDER, epoch)
        more = random.integers(0, len(rows), longest - len(rows))
        order = np.concatenate([random.permutation(len(rows)), more])
        filled = np.pad(rows[order], (0, steps * batch - longest), mode="edge")
        halves.append(filled.reshape(steps, batch))
    valid = (np.arange(steps * batch) < longest).reshape(steps, batch)
    return np.concatenate(halves, axis=1).astype(np.int32), np.concatenate([valid, valid], axis=1)


def plan_groups(
    labels: np.ndarray,
    *,
    seed: int,
    epoch: int,
    classes_per_batch: int,
    images_per_class: int,
) -> np.ndarray:
    """Indices of the P x K batches of one epoch, which shows each image once at most.

    The images of every class are shuffled and cut into groups of K, those left over are not shown;
    a class of fewer than K has one group, drawn with replacement. A batch takes one group each of P
    classes, drawn from those that have groups left; the epoch ends when fewer than P have.

    Args:
      labels: int[n], classes 0..N-1 of the images (or tracklets); rows with -1 are never drawn.
      seed: seed of the run.
      epoch: counted from 0.
      classes_per_batch: P, at most N.
      images_per_class: K.

    Returns:
      int32[steps, P * K], the K rows of a class side by side; the number of steps differs a little
      from epoch to epoch.

    Raises:
      ValueError: as `plan`.

    Source: the identity sampler of fast-reid's ancestors, as CLIP-ReID and TF-CLIP use it.
    """
    order, start, count = _group_by_class(labels)
    num_classes = len(count)
    _check_classes(classes_per_batch, num_classes)
    _check_counts(0, 0, images_per_class)
    generator = _generator(seed, _GROUPS, epoch)
    owner = np.repeat(np.arange(num_classes), count)
    shuffled = order[np.lexsort((generator.random(len(order)), owner))]
    groups = np.maximum(count // images_per_class, 1)
    drawn = (generator.random((num_classes, images_per_class)) * count[:, None]).astype(np.int64)
    left, batches = groups.copy(), []
    while np.count_nonzero(left) >= classes_per_batch:
        chosen = generator.choice(np.flatnonzero(left), classes_per_batch, replace=False)
        left[chosen] -= 1
        place = (left[chosen] * images_per_class)[:, None] + np.arange(images_per_class)
        small = (count[chosen] < images_per_class)[:, None]
        rows = start[chosen][:, None] + np.where(small, 0, place)
        batches.append(
            np.where(small, order[start[chosen][:, None] + drawn[chosen]], shuffled[rows]).ravel()
        )
    return np.array(batches, np.int32)


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


def _check_classes(classes_per_batch: int, num_classes: int) -> None:
    if not 1 <= classes_per_batch <= num_classes:
        raise ValueError(
            f"classes_per_batch is {classes_per_batch}; the labels hold {num_classes} classes, so "
            f"it must be 1 to {num_classes}"
        )


def _check_counts(first_step: int, steps: int, images_per_class: int) -> None:
    if images_per_class < 1 or steps < 0 or first_step < 0:
        raise ValueError(
            f"images_per_class {images_per_class} must be 1 or more, first_step {first_step} and "
            f"steps {steps} 0 or more"
        )


def _group_by_class(
    labels: np.ndarray, camid: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image indices sorted by class, and where each class starts and how many it has.

    With cameras, the images of a class are sorted by these.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be int[n], found {labels.dtype}{list(labels.shape)}")
    if labels.size == 0 or labels.max() < 0:
        raise ValueError("no labelled image: labels must hold classes 0..N-1")
    order = np.argsort(labels, kind="stable") if camid is None else np.lexsort((camid, labels))
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


def _runs(labels: np.ndarray, camid: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs of equal class and camera: that of each entry, and the start and length of each."""
    change = (np.diff(labels) != 0) | (np.diff(camid) != 0)
    run_of = np.concatenate([[0], np.cumsum(change)])
    size = np.bincount(run_of)
    return run_of, np.cumsum(size) - size, size


def _draw(count: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Ordered draws without replacement, position by position: int[positions, draws] < count.

    Args:
      count: int[positions], how many there are to draw from; fewer than draws are repeated.
      uniform: float64[positions, draws], random numbers in [0, 1).
    """
    draws = uniform.shape[1]
    pool = np.where(count >= draws, count, count * draws)
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


def _uniform(seed: int, first: int, positions: int, draws: int) -> np.ndarray:
    """float64[positions, draws] in [0, 1); row i depends on the seed and on first + i only.

    Each position owns a fixed range of one counter-based stream, which is read from any point.
    """
    blocks = -(-draws // _WORDS_PER_BLOCK)
    key = np.random.SeedSequence([seed, _CLASS_IMAGES]).generate_state(2, np.uint64)
    stream = np.random.Philox(key=key, counter=first * blocks)
    words = stream.random_raw(positions * blocks * _WORDS_PER_BLOCK)
    words = words.reshape(positions, blocks * _WORDS_PER_BLOCK)[:, :draws]
    return (words >> np.uint64(11)) * 2.0**-53


def _generator(seed: int, stream: int, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stream, index])))
