"""Every data set from its raw layout to batches: read, prepared, opened, decoded, streamed."""

import itertools
import os

import numpy as np
import pytest

from ccafl_jax.data.decoded import decode_rows, load_images
from ccafl_jax.data.known import PUBLISHED, Totals, count_collection, differences
from ccafl_jax.data.layouts import LAYOUTS, read_folder, select
from ccafl_jax.data.opening import open_collection
from ccafl_jax.data.records import take_tracklets, tracklets
from ccafl_jax.data.samplers import plan
from ccafl_jax.data.sources import PixelFormat
from ccafl_jax.data.streaming import stream_batches
from data_prep.prepare import prepare
from data_prep.synthetic import SyntheticConfig, write_folder, write_layout, write_names
from data_prep.synthetic.layouts import LAYOUTS as SYNTHETIC
from tests.data.images import encoded, random_pixels

PIXELS = PixelFormat(16, 8)
SMALL = {"height": 32, "width": 16, "test_ids": 4}
SETTINGS = {
    "mars": {"train_ids": 4, "tracklets": 2, "frames": 6, **SMALL},
    "lsvid": {"train_ids": 4, "tracklets": 2, "frames": 6, **SMALL},
    "ilidsvid": {"ids": 6, "frames": 5, "height": 32, "width": 16},
    "sysumm01": {"train_ids": 4, "val_ids": 2, "images": 3, **SMALL},
    "regdb": {"ids": 6, "height": 32, "width": 16},
    "veri776": {"train_ids": 5, "images": 3, **SMALL},
}


def market(folder, form):
    return [f"{folder}/{form(pid, camera, n)}" for pid, camera, n in PEOPLE[folder]]


PEOPLE = {
    "bounding_box_train": [(pid, c, n) for pid in (2, 7, 11) for c in (1, 12) for n in range(2)],
    "query": [(pid, 1, 8) for pid in (1, 3)],
    "bounding_box_test": [(pid, 12, 9) for pid in (1, 3, 5)],
}
FORMS = {
    "market1501": lambda pid, c, n: f"{pid:04d}_c{min(c, 6)}s1_{n:06d}_00.jpg",
    "dukemtmcreid": lambda pid, c, n: f"{pid:04d}_c{min(c, 8)}_f{n:07d}.jpg",
    "personx": lambda pid, c, n: f"{pid:04d}_c{min(c + 2, 12)}s1_{n:06d}.jpg",
    "msmt17_v2": lambda pid, c, n: f"{pid:04d}_c{c}_{n:04d}.jpg",
    "market_like": lambda pid, c, n: f"{pid}_c{c}-{n}.png",
}


def write_market_like(root, name):
    for folder in PEOPLE:
        (root / folder).mkdir(parents=True)
        for row, path in enumerate(market(folder, FORMS[name])):
            form = "PNG" if path.endswith("png") else "JPEG"
            (root / path).write_bytes(encoded(random_pixels(row), form))
    return {"train": 12, "query": 2, "gallery": 3}


def write_msmt17(root, folders=("train", "test")):
    """The list form: three training identities, the third in the list for validation too."""
    lines = {"train": [], "val": [], "query": [], "gallery": []}
    for pid, camera, n in itertools.product(range(3), (1, 15), range(2)):
        name = f"{pid:04d}/{pid:04d}_{n:03d}_{camera:02d}_0303morning_{n:04d}_0.jpg"
        lines["val" if pid == 2 and n else "train"].append(f"{name} {pid}")
        lines["gallery" if n else "query"].append(f"{name} {pid}")
    for part, folder in zip(lines, (folders[0], folders[0], folders[1], folders[1]), strict=True):
        (root / f"list_{part}.txt").parent.mkdir(parents=True, exist_ok=True)
        (root / f"list_{part}.txt").write_text("\n".join(lines[part]) + "\n")
        names = [line.split()[0] for line in lines[part]]
        for row, name in enumerate(names):
            path = root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(random_pixels(row), "JPEG"))
    return {"train": 12, "query": 6, "gallery": 6}


def write_synthetic_layout(root, name):
    settings = SYNTHETIC[name].config(**SETTINGS[name])
    told = write_layout(root, name, settings)
    images = {
        "mars": lambda: {"train": told["bbox_train"]},
        "lsvid": lambda: {"train": told["tracklet_train"]},
        "ilidsvid": lambda: {"all": told["sequences"]},
        "sysumm01": lambda: {},
        "regdb": lambda: {"all": told["Visible"] + told["Thermal"]},
        "veri776": lambda: {
            "train": told["image_train"],
            "query": told["image_query"],
            "gallery": told["image_test"],
        },
    }
    return images[name]()


def write_raw(root, name):
    """A small tree of a data set; returns the number of images of its parts."""
    if name in FORMS:
        return write_market_like(root, name)
    if name in ("msmt17", "msmt17_v1"):
        return write_msmt17(root)
    if name == "synthetic":
        config = SyntheticConfig(train_ids=4, test_ids=3, cameras=3, height=32, width=16)
        told = write_folder(root, config)
        return {"train": told["bounding_box_train"], "query": told["query"]}
    if name == "manifest":
        write_market_like(root, "market_like")
        lines = ["path,pid,camid,split"]
        for folder, split in zip(PEOPLE, ("train", "query", "gallery"), strict=True):
            for (pid, camera, _), path in zip(
                PEOPLE[folder], market(folder, FORMS["market_like"]), strict=True
            ):
                lines.append(f"{path},{pid},{camera},{split}")
        (root / "manifest.csv").write_text("\n".join(lines) + "\n")
        return {"train": 12, "query": 2, "gallery": 3}
    layout = {"synthetic_tracklets": "mars"}.get(name, name.removeprefix("synthetic_"))
    return write_synthetic_layout(root, layout)


@pytest.mark.parametrize("name", LAYOUTS)
def test_from_raw_to_batches(tmp_path, name):
    told = write_raw(tmp_path / "raw", name)
    collection = read_folder(name, tmp_path / "raw")
    for part, images in told.items():
        assert len(collection.parts[part]) == images, part
    result = prepare(collection, tmp_path / "out", progress=False)
    assert result.images == sum(len(records) for records in collection.parts.values())
    prepared = open_collection(name, tmp_path / "out", source="prepared")
    assert prepared.name == collection.name and prepared.name == result.folder.parent.name
    assert count_collection(prepared) == count_collection(collection)
    if name in PUBLISHED:  # a small set is not taken for the published one
        assert differences(name, count_collection(prepared))
    raw_set, prepared_set = select(collection), select(prepared)
    assert raw_set.summary().splitlines()[1:] == prepared_set.summary().splitlines()[1:]
    assert len(prepared_set.train) and len(prepared_set.query) and len(prepared_set.gallery)
    for split in ("train", "query", "gallery"):
        raw, records = getattr(raw_set, split), getattr(prepared_set, split)
        assert list(raw.path) == list(records.path)
        for column, values in raw.columns().items():
            np.testing.assert_array_equal(values, records.columns()[column])
    check_batches(raw_set.train, prepared_set.train)
    if LAYOUTS[name].kind == "video":
        check_tracklets(prepared_set.query)


def check_batches(raw, prepared):
    """One plan: from the folder, from records resident, from records streamed."""
    _, labels = np.unique(raw.pid, return_inverse=True)
    steps = plan(labels, seed=0, first_step=0, steps=3, classes_per_batch=2, images_per_class=2)
    resident = load_images(prepared, PIXELS, progress=False)
    for rows, batch in zip(steps, stream_batches(prepared, steps, PIXELS), strict=True):
        np.testing.assert_array_equal(batch, decode_rows(raw, rows, PIXELS))
        np.testing.assert_array_equal(batch, resident[rows])
    assert resident.std() > 5


def check_tracklets(records):
    """Eight random frames of one tracklet are eight random reads."""
    table = tracklets(records)
    assert table.count.sum() == len(records) and len(table) > 1
    last = len(table) - 1
    rows = table.start[last] + np.random.default_rng(0).integers(0, table.count[last], 8)
    frames = decode_rows(records, rows, PIXELS)
    one = take_tracklets(records, table, np.array([last]))
    np.testing.assert_array_equal(frames, decode_rows(one, rows - table.start[last], PIXELS))
    assert set(one.pid) == {table.pid[last]} and np.all(np.diff(one.frame) > 0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ilidsvid", [{"split": 10}, {"orientation": "tfclip"}]),
        ("regdb", [{"split": 10}, {"direction": "thermal_to_visible"}]),
        (
            "sysumm01",
            [{"mode": "indoor"}, {"shots": 2, "trial": 3}, {"draw": "official", "trial": 9}],
        ),
    ],
)
def test_protocols_pick_the_same_from_raw_and_prepared(tmp_path, name, options):
    write_raw(tmp_path / "raw", name)
    collection = read_folder(name, tmp_path / "raw")
    prepare(collection, tmp_path / "out", progress=False)
    prepared = open_collection(name, tmp_path / "out")
    first = select(collection)
    seen = {tuple(np.concatenate([first.train.index, first.query.index, first.gallery.index]))}
    for option in options:
        raw, again = select(collection, **option), select(prepared, **option)
        for split in ("train", "query", "gallery"):
            assert list(getattr(raw, split).path) == list(getattr(again, split).path)
        indices = (raw.train.index, raw.query.index, raw.gallery.index)
        seen.add(tuple(np.concatenate(indices)))
    assert len(seen) == len(options) + 1  # each option picks other images


def shared_out(ids, totals: Totals, classes):
    """(identity, camera) of each image, with exactly these counts per camera."""
    labels, first = [], 0
    for camera, (images, count) in enumerate(zip(totals.per_camera, classes, strict=True), 1):
        people = [ids[(first + i) % len(ids)] for i in range(count)]
        labels += [(people[n % count], camera) for n in range(images)]
        first += count
    return labels


def link_all(root, paths):
    """One picture of one pixel under all these names."""
    root.mkdir(parents=True, exist_ok=True)
    picture = encoded(np.full((1, 1, 3), 90, np.uint8), "JPEG")
    for folder in {os.path.dirname(path) for path in paths}:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for start in range(0, len(paths), 50_000):  # a file may have some 65,000 names
        first, *others = paths[start : start + 50_000]
        (root / first).write_bytes(picture)
        for path in others:
            os.link(root / first, root / path)


def published_market1501(root):
    train = PUBLISHED["market1501"]["train"]
    labels = shared_out(range(2, 753), train, (652, 541, 694, 241, 576, 558))
    people = [(1 + n % 750, 1 + (n + n // 750) % 6) for n in range(3368)]
    gallery = [(-1, 1 + n % 6) for n in range(3819)] + [(0, 1 + n % 6) for n in range(2798)]
    gallery += [people[n % len(people)] for n in range(19732 - len(gallery))]
    paths = []
    for folder, found in (
        ("bounding_box_train", labels),
        ("query", people),
        ("bounding_box_test", gallery),
    ):
        for n, (pid, camera) in enumerate(found):
            name = "-1" if pid < 0 else f"{pid:04d}"
            paths.append(f"{folder}/{name}_c{camera}s{1 + n % 6}_{n:06d}_{n % 100:02d}.jpg")
    link_all(root, paths)


def published_msmt17_v1(root):
    totals = PUBLISHED["msmt17_v1"]
    classes = (669, 14, 81, 173, 679, 207, 670, 137, 154, 58, 389, 308, 379, 649, 254)
    train = shared_out(range(1041), totals["train"], classes)
    test = [(n % 3060, 1 + n // 3060 % 15) for n in range(11659 + 82161)]
    lists = {"train": train[2373:], "val": train[:2373], "query": test[:11659]}
    lists["gallery"] = test[11659:]
    # Every camera has queries: the identities above see only the first four of them.
    lists["query"] = [(pid, 1 + n % 15) for n, (pid, _) in enumerate(lists["query"])]
    paths, number = [], 0
    for part, labels in lists.items():
        folder = "train" if part in ("train", "val") else "test"
        lines = []
        for pid, camera in labels:
            name = f"{pid:04d}_{number:06d}_{camera:02d}_0303morning_{number % 9999:04d}_0.jpg"
            lines.append(f"{pid:04d}/{name} {pid}")
            paths.append(f"{folder}/{pid:04d}/{name}")
            number += 1
        root.mkdir(parents=True, exist_ok=True)
        (root / f"list_{part}.txt").write_text("\n".join(lines) + "\n")
    link_all(root, paths)


@pytest.mark.ci
@pytest.mark.parametrize(
    ("name", "write"),
    [("market1501", published_market1501), ("msmt17_v1", published_msmt17_v1)],
)
def test_the_published_number_of_files(tmp_path, name, write):
    write(tmp_path / "raw")
    collection = read_folder(name, tmp_path / "raw")
    assert differences(name, count_collection(collection)) == ()
    result = prepare(collection, tmp_path / "out", progress=False)
    assert result.images == sum(totals.images for totals in PUBLISHED[name].values())
    prepared = open_collection(name, tmp_path / "out")
    assert differences(name, count_collection(prepared)) == ()
    train = select(prepared).train
    steps = np.random.default_rng(0).integers(0, len(train), (2, 64))
    for batch in stream_batches(train, steps, PIXELS):
        assert batch.shape == (64, 16, 8, 3) and np.all(batch == batch[0, 0, 0])


def test_names_of_msmt17_in_market_like_form(tmp_path):
    """Cameras of two digits: one digit would make 1 of 10 to 15."""
    names = [
        f"bounding_box_train/{pid:04d}_c{c}_{pid:04d}.jpg" for pid in (1, 2) for c in range(1, 16)
    ]
    rest = ["query/0001_c14_0001.jpg", "bounding_box_test/0001_c2_0002.jpg"]
    write_names(tmp_path, [*names, *rest], SyntheticConfig(height=32, width=16))
    collection = read_folder("msmt17_v1", tmp_path)
    assert collection.camera_codes == tuple(range(1, 16))
    assert count_collection(collection)["train"].classes == 30
