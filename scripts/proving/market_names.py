"""A test split of Market-1501's size for a list of its training names."""

import re

import numpy as np

TEST_IDS, QUERIES, GALLERY, DISTRACTORS, JUNK = 750, 3368, 13_115, 2798, 3819
CAMERAS = 6
_PID = re.compile(r"(\d+)_c\d+s\d+_\d+_\d+")


def market_like(train: list[str], *, seed: int = 0, scale: float = 1.0) -> list[str]:
    """Paths of a whole data set: the given training names, and made-up ones to test.

    Identities of the test are none of the training's. Each is seen by two cameras or more, and has
    one query in each of them; the gallery has an image at least wherever there is a query, and more
    by chance.

    Args:
      train: file names such as `0002_c1s1_000451_03.jpg`.
      seed: of the draw.
      scale: of the numbers of the test split; that of Market-1501 is 1.

    Returns:
      Paths below the folder of the data set.

    Raises:
      ValueError: a name of another kind.
    """
    strange = [name for name in train if not _PID.match(name)]
    if strange:
        raise ValueError(
            f"{strange[0]!r} is no name of Market-1501's training set; expected one like "
            "0002_c1s1_000451_03.jpg"
        )
    ids, queries, gallery, distractors, junk = (
        max(2, round(scale * number)) for number in (TEST_IDS, QUERIES, GALLERY, DISTRACTORS, JUNK)
    )
    taken = {int(_PID.match(name)[1]) for name in train}
    pids = [pid for pid in range(1, len(taken) + ids + 1) if pid not in taken][:ids]
    random = np.random.default_rng(seed)
    # Two cameras for everybody, and further pairs by chance.
    order = random.permuted(np.tile(np.arange(CAMERAS), (ids, 1)), axis=1)
    rank = np.argsort(order, axis=1)
    likely = np.where(rank < 2, -1.0, random.random(rank.shape)).ravel()
    pairs = np.argsort(likely, kind="stable")[: max(queries, 2 * ids)]
    images = 1 + random.multinomial(
        max(gallery - len(pairs), 0), np.full(len(pairs), 1 / len(pairs))
    )

    def name(pid: int | str, camera: int, frame: int) -> str:
        shown = pid if isinstance(pid, str) else f"{pid:04d}"
        return f"{shown}_c{camera + 1}s1_{frame:06d}_00.jpg"

    paths = [f"bounding_box_train/{each}" for each in train]
    for pair, count in zip(pairs, images, strict=True):
        pid, camera = pids[pair // CAMERAS], int(pair % CAMERAS)
        paths.append(f"query/{name(pid, camera, 0)}")
        paths += [f"bounding_box_test/{name(pid, camera, frame)}" for frame in range(1, count + 1)]
    for pid, count in (("0000", distractors), ("-1", junk)):
        cameras = random.integers(CAMERAS, size=count)
        paths += [
            f"bounding_box_test/{name(pid, int(camera), frame)}"
            for frame, camera in enumerate(cameras, 1)
        ]
    return paths
