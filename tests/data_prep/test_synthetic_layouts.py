"""The synthetic people in the layouts of other sets: names, info files, infrared, walks."""

import collections
import dataclasses
import hashlib
import io
import itertools
import json
import re
import sys

import numpy as np
import pytest
import scipy.io
from PIL import Image

from data_prep import synthetic
from data_prep.synthetic.__main__ import main
from data_prep.synthetic.cameras import NEAR, THERMAL
from data_prep.synthetic.layouts.common import Sensor, Track, iterate_pictures
from data_prep.synthetic.render import IMAGE_DRAWS, NORMAL, VISIT_DRAWS, Moment, shoot
from data_prep.synthetic.walks import moments, walk_draws

SIZE = {"seed": 3, "height": 32, "width": 16}
SMALL = {
    "mars": {"train_ids": 3, "test_ids": 3, "frames": 4},
    "lsvid": {"train_ids": 3, "test_ids": 2, "val_ids": 2, "cameras": 12, "frames": 4},
    "ilidsvid": {"ids": 8, "frames": 4},
    "sysumm01": {"train_ids": 6, "val_ids": 3, "test_ids": 5, "images": 2},
    "regdb": {"ids": 6, "images": 4},
    "veri776": {"train_ids": 5, "test_ids": 4},
}


def small(layout, **changes):
    return synthetic.layout_of(layout).config(**(SIZE | SMALL[layout] | changes))


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """One small set of every layout, and the counts that were returned."""
    root = tmp_path_factory.mktemp("layouts")
    counts = {
        layout: synthetic.write_layout(root / layout, layout, small(layout)) for layout in SMALL
    }
    return root, counts


def files_of(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def lines_of(path):
    text = path.read_text()
    assert text.endswith("\n")
    return text.splitlines()


def mat(path, variable):
    return scipy.io.loadmat(path)[variable]


def test_every_layout_has_a_small_set_here():
    assert set(SMALL) == set(synthetic.LAYOUTS)


# MARS.

MARS_PATH = re.compile(
    r"bbox_(?:train|test)/(00-1|\d{4})/(00-1|\d{4})C([1-6])T(\d{4})F(\d{3})\.jpg"
)


def test_mars_names_and_tracks_agree(sets):
    folder, counts = sets[0] / "mars", sets[1]["mars"]
    pids = {}
    for half in ("train", "test"):
        names = lines_of(folder / f"info/{half}_name.txt")
        paths = [f"bbox_{half}/{name[:4]}/{name}" for name in names]
        assert sorted(paths) == [p for p in files_of(folder) if p.startswith(f"bbox_{half}/")]
        assert len(set(paths)) == counts[f"bbox_{half}"] == len(paths)
        tracks = mat(folder / f"info/tracks_{half}_info.mat", f"track_{half}_info")
        assert tracks.dtype == np.int32 and tracks.shape[1] == 4
        # Every line once, in order.
        np.testing.assert_array_equal(tracks[1:, 0], tracks[:-1, 1] + 1)
        assert tracks[0, 0] == 1 and tracks[-1, 1] == len(names)
        for first, last, pid, camera in tracks.tolist():
            found = [MARS_PATH.fullmatch(path).groups() for path in paths[first - 1 : last]]
            assert {match[:3] for match in found} == {(found[0][0], found[0][0], str(camera))}
            assert int(found[0][0].replace("00-1", "-1")) == pid
            assert len({match[3] for match in found}) == 1
            assert [int(match[4]) for match in found] == list(range(1, last - first + 2))
            assert 2 <= last - first + 1 <= 6
        pids[half] = tracks[:, 2]
    assert len(pids["train"]) == counts["training tracklets"]
    assert len(pids["test"]) == counts["test tracklets"]
    assert len(set(pids["train"])) == 3 and min(pids["train"]) > 0
    assert len(set(pids["test"])) == 3 + 2 and {-1, 0} < set(pids["test"])
    assert not set(pids["train"]) & set(pids["test"])


def test_mars_queries_find_their_identity_under_both_kinds_of_camera(sets):
    info = sets[0] / "mars/info"
    query = mat(info / "query_IDX.mat", "query_IDX")
    tracks = mat(info / "tracks_test_info.mat", "track_test_info")
    assert query.dtype == np.int32 and query.shape == (1, sets[1]["mars"]["queries"])
    rows = query[0] - 1
    queries, gallery = tracks[rows], np.delete(tracks, rows, axis=0)
    assert min(queries[:, 2]) > 0 and len({tuple(row) for row in queries[:, 2:].tolist()}) == len(
        queries
    )
    for _, _, pid, camera in queries.tolist():
        own = gallery[gallery[:, 2] == pid]
        assert np.any(own[:, 3] == camera) and np.any(own[:, 3] != camera)


def test_more_identities_append_tracklets_and_change_no_picture(sets, tmp_path):
    more = small("mars", train_ids=4)
    synthetic.write_layout(tmp_path / "more", "mars", more)
    for path in files_of(sets[0] / "mars"):
        if path.startswith("bbox_"):
            assert (tmp_path / "more" / path).read_bytes() == (
                sets[0] / "mars" / path
            ).read_bytes(), path


# LS-VID and iLIDS-VID.


def test_lsvid_prefixes_cover_the_frames(sets):
    folder, counts = sets[0] / "lsvid", sets[1]["lsvid"]
    pids = {}
    for half in ("train", "val", "test"):
        on_disk = [p for p in files_of(folder) if p.startswith(f"tracklet_{half}/")]
        entries = [
            line.split(" ") for line in lines_of(folder / f"list_sequence/list_seq_{half}.txt")
        ]
        found = collections.Counter()
        for path in on_disk:
            match = re.fullmatch(
                rf"(tracklet_{half}/(\d{{4}})/(\d{{4}})_(\d{{4}})_(\d{{2}}))_(\d{{6}})\.jpg", path
            )
            assert match[2] == match[3] and 1 <= int(match[5]) <= 12
            found[match[1], match[2]] += 1
        assert found.keys() == {(prefix, f"{int(pid):04d}") for prefix, pid in entries}
        assert len(entries) == counts[f"{half} tracklets"]
        assert sum(found.values()) == counts[f"tracklet_{half}"]
        pids[half] = {int(pid) for _, pid in entries}
    assert [len(pids[half]) for half in ("train", "val", "test")] == [3, 2, 2]
    assert not (pids["train"] & pids["test"]) | (pids["val"] & pids["test"])


def test_lsvid_queries_are_in_hdf5_behind_a_matlab_header(sets):
    h5py = pytest.importorskip("h5py")
    folder = sets[0] / "lsvid"
    path = folder / "test/data/info_test.mat"
    assert path.read_bytes()[:10] == b"MATLAB 7.3"
    with pytest.raises(NotImplementedError, match="HDF"):
        scipy.io.loadmat(path)
    with h5py.File(path) as file:
        query, table = file["query"][()].T, file["info_test"][()].T
    entries = [line.split() for line in lines_of(folder / "list_sequence/list_seq_test.txt")]
    assert query.shape == (1, sets[1]["lsvid"]["test queries"]) and table.shape == (len(entries), 4)
    assert [int(pid) for _, pid in entries] == table[:, 2].tolist()
    assert [int(prefix[-2:]) for prefix, _ in entries] == table[:, 3].tolist()
    rows = query[0].astype(int) - 1
    pairs = [tuple(table[row, 2:]) for row in rows]
    assert len(set(pairs)) == len(pairs) == len({tuple(row) for row in table[:, 2:].tolist()})


def test_lsvid_without_h5py_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"ccafl_jax\[lsvid\]"):
        synthetic.write_layout(tmp_path / "set", "lsvid", small("lsvid"))
    with pytest.raises(SystemExit, match="2"):
        main(["--out", str(tmp_path / "set"), "--layout", "lsvid"])
    assert not list(tmp_path.iterdir())


def test_ilidsvid_sequences_and_splits(sets):
    folder = sets[0] / "ilidsvid"
    frames = collections.defaultdict(list)
    for path in files_of(folder / "i-LIDS-VID/sequences"):
        match = re.fullmatch(r"cam([12])/person(\d{3})/cam\1_person\2_(\d{5})\.png", path)
        frames[match[1], int(match[2])].append(int(match[3]))
    people = sorted({pid for _, pid in frames})
    assert len(people) == 8 and people != list(range(1, 9))
    assert len(frames) == 16
    assert all(some == list(range(some[0], some[0] + len(some))) for some in frames.values())
    assert sum(map(len, frames.values())) == sets[1]["ilidsvid"]["sequences"]
    splits = folder / "train-test people splits/train_test_splits_ilidsvid.mat"
    orders = mat(splits, "ls_set")
    assert orders.shape == (10, 8) and orders.dtype == np.float64
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(1, 9), (10, 1)))
    assert len(np.unique(orders, axis=0)) > 5


# SYSU-MM01 and RegDB.


def sysu_images(folder):
    images = collections.defaultdict(list)
    for path in files_of(folder):
        if path.startswith("cam"):
            match = re.fullmatch(r"cam([1-6])/(\d{4})/(\d{4})\.jpg", path)
            images[int(match[1]), int(match[2])].append(int(match[3]))
    return images


def test_sysumm01_lists_and_absences(sets):
    folder, counts = sets[0] / "sysumm01", sets[1]["sysumm01"]
    images = sysu_images(folder)
    ids = {}
    for name in ("train", "val", "test", "available"):
        (line,) = lines_of(folder / f"exp/{name}_id.txt")
        ids[name] = [int(word) for word in line.split(",")]
        table = mat(folder / f"exp/{name}_id.mat", "id")
        assert table.shape == (1, len(ids[name])) and table[0].tolist() == ids[name]
    assert [len(ids[name]) for name in ("train", "val", "test")] == [6, 3, 5]
    parts = ids["train"] + ids["val"] + ids["test"]
    assert sorted(parts) == ids["available"] == sorted({pid for _, pid in images})
    assert max(parts) > len(parts)
    assert all(some == list(range(1, len(some) + 1)) for some in images.values())
    cameras = {pid: {camera for camera, of in images if of == pid} for pid in parts}
    assert all(seen & {1, 2, 4, 5} and seen & {3, 6} for seen in cameras.values())
    assert any(len(seen) < 6 for seen in cameras.values())
    for camera in range(1, 7):
        total = sum(len(some) for (of, _), some in images.items() if of == camera)
        assert total == counts[f"cam{camera}"] > 0


def test_sysumm01_permutations(sets):
    folder = sets[0] / "sysumm01"
    images = sysu_images(folder)
    cells = mat(folder / "exp/rand_perm_cam.mat", "rand_perm_cam")
    assert cells.shape == (6, 1) and cells.dtype == object
    most = max(pid for _, pid in images)
    empty = 0
    for camera in range(1, 7):
        of_camera = cells[camera - 1, 0]
        assert of_camera.shape == (most, 1) and of_camera.dtype == object
        for pid in range(1, most + 1):
            orders, count = of_camera[pid - 1, 0], len(images.get((camera, pid), ()))
            assert orders.shape == (10, count) and orders.dtype == np.float64
            np.testing.assert_array_equal(
                np.sort(orders, axis=1), np.tile(np.arange(1, count + 1), (10, 1))
            )
            empty += count == 0
    assert empty > 0
    assert len(np.unique(cells[5, 0][most - 1, 0], axis=0)) > 1


def test_sysumm01_infrared_files_have_one_channel(sets):
    folder = sets[0] / "sysumm01"
    for path in folder.glob("cam*/*/*.jpg"):
        with Image.open(path) as image:
            infrared = path.parts[-3] in ("cam3", "cam6")
            assert image.mode == ("L" if infrared else "RGB") and image.size == (16, 32)
            assert np.asarray(image).std() > 3


def test_regdb_pictures_and_splits(sets):
    folder = sets[0] / "regdb"
    rule = re.compile(r"(Visible|Thermal)/(\d+)/(?:fe)?male_(?:front|back)_([vt])_(\d{5})_\2\.bmp")
    of_person = collections.Counter()
    on_disk = {p for p in files_of(folder) if p.endswith(".bmp")}
    for path in on_disk:
        match = rule.fullmatch(path)
        assert match[3] == match[1][0].lower()
        of_person[match[1], int(match[2])] += 1
    assert of_person == {(m, pid): 4 for m in ("Visible", "Thermal") for pid in range(1, 7)}
    assert sets[1]["regdb"] == {"Visible": 24, "Thermal": 24, "people": 6, "splits": 10}
    halves = set()
    for split in range(1, 11):
        listed, people = [], {}
        for part in ("train", "test"):
            labels = []
            for modality in ("visible", "thermal"):
                lines = lines_of(folder / f"idx/{part}_{modality}_{split}.txt")
                entries = [line.rsplit(" ", 1) for line in lines]
                assert all(path.startswith(modality.title()) for path, _ in entries)
                listed += [path for path, _ in entries]
                labels.append({(int(path.split("/")[1]), int(label)) for path, label in entries})
            assert labels[0] == labels[1] and {label for _, label in labels[0]} == {0, 1, 2}
            people[part] = frozenset(pid for pid, _ in labels[0])
        assert len(listed) == len(on_disk) and set(listed) == on_disk
        assert len(people["train"]) == len(people["test"]) == 3
        halves.add(people["train"])
    assert len(halves) > 3


def test_regdb_thermal_pictures_are_gray_and_visible_ones_are_not(sets):
    for path in (sets[0] / "regdb").rglob("*.bmp"):
        with Image.open(path) as image:
            assert image.mode == "RGB" and image.size == (16, 32)
            spread = np.ptp(np.asarray(image).astype(int), axis=-1).max()
            assert (spread == 0) == ("Thermal" in path.parts)


# VeRi.

VERI = re.compile(r"(\d{4})_c(\d{3})_(\d{8})_(\d+)\.jpg")


def test_veri_names_indices_and_tracks(sets):
    folder, counts = sets[0] / "veri776", sets[1]["veri776"]
    names = {}
    for part in ("train", "query", "test"):
        names[part] = lines_of(folder / f"name_{part}.txt")
        assert names[part] == sorted(p.name for p in (folder / f"image_{part}").iterdir())
        assert len(names[part]) == counts[f"image_{part}"]
    who = {part: [VERI.fullmatch(n).group(1, 2) for n in some] for part, some in names.items()}
    assert not {pid for pid, _ in who["train"]} & {pid for pid, _ in who["test"]}
    assert max(int(camera) for _, camera in who["train"]) >= 10
    assert set(names["query"]) < set(names["test"])
    assert sorted(who["query"]) == sorted(set(who["test"]))
    lists = [lines_of(folder / f"{kind}_index.txt") for kind in ("gt", "jk")]
    for (pid, camera), good, junk in zip(who["query"], *lists, strict=True):
        good, junk = (
            [who["test"][int(line) - 1] for line in text.split()] for text in (good, junk)
        )
        assert good and {of for of, _ in good} == {pid} and camera not in {by for _, by in good}
        assert set(junk) == {(pid, camera)}
        assert len(good) + len(junk) == sum(of == pid for of, _ in who["test"])
    tracked = []
    for line in lines_of(folder / "test_track.txt"):
        label, *images = line.split()
        assert {"_".join(image.split("_")[:2]) for image in images} == {label[:9]}
        assert images == sorted(images)
        tracked += images
    assert sorted(tracked) == names["test"]
    assert len(lines_of(folder / "test_track.txt")) == counts["test tracks"]


def test_veri_queries_are_copies_of_gallery_pictures(sets):
    folder = sets[0] / "veri776"
    for path in (folder / "image_query").iterdir():
        assert path.read_bytes() == (folder / "image_test" / path.name).read_bytes()


# All of them.


@pytest.mark.parametrize("layout", SMALL)
def test_the_bytes_of_a_seed_are_equal(sets, tmp_path, layout):
    first, again = sets[0] / layout, tmp_path / "again"
    synthetic.write_layout(again, layout, small(layout))
    assert files_of(first) == files_of(again) and len(files_of(first)) > 20
    for path in files_of(first):
        assert (first / path).read_bytes() == (again / path).read_bytes(), path


@pytest.mark.parametrize("layout", SMALL)
def test_the_pictures_of_two_seeds_differ(layout):
    seen = []
    for seed in (3, 4):
        config = small(layout, seed=seed)
        tracks = synthetic.layout_of(layout).blueprint(config).tracks[::7]
        seen.append({pixels.tobytes() for _, pixels, _ in iterate_pictures(tracks, config)})
    assert min(map(len, seen)) > 5 and not seen[0] & seen[1]


@pytest.mark.parametrize("layout", SMALL)
def test_counts_are_those_of_the_folders(sets, layout):
    folder = sets[0] / layout
    record = json.loads((folder / "generator.json").read_text())
    assert record["counts"] == sets[1][layout] and record["layout"] == layout
    assert record["version"] == synthetic.LAYOUTS_VERSION
    assert record["settings"] == dataclasses.asdict(small(layout))
    folders = {p.name: p for p in folder.rglob("*") if p.is_dir()}
    pictures = {name: n for name, n in record["counts"].items() if name in folders}
    suffixes = (".jpg", ".png", ".bmp")
    for name, number in pictures.items():
        assert number == sum(p.suffix in suffixes for p in folders[name].rglob("*"))
    assert sum(pictures.values()) == sum(p.endswith(suffixes) for p in files_of(folder))


def test_the_market_folder_and_the_pictures_of_the_layouts_are_as_before():
    assert synthetic.VERSION == "1.1" and synthetic.sample_hash() == synthetic.SAMPLE_SHA256
    digest = hashlib.sha256()
    for layout in SMALL:
        config = small(layout)
        plan = synthetic.layout_of(layout).blueprint(config)
        for path, pixels, camera in iterate_pictures(plan.tracks[::5], config):
            digest.update(f"{path} {camera.quality}".encode() + pixels.tobytes())
        for path, data in sorted(plan.files.items()):
            if path.endswith(".txt"):
                digest.update(path.encode() + data)
    # With another hash goes another LAYOUTS_VERSION.
    assert (synthetic.LAYOUTS_VERSION, digest.hexdigest()) == ("1.1", PINNED)


PINNED = "d5f9f401967c4f3721f6cebc2932805ec339c5edb22136aae109b1a6d27c05f1"


def test_a_finished_set_is_kept_and_another_refused(sets):
    folder = sets[0] / "veri776"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert synthetic.write_layout(folder, "veri776", small("veri776")) == sets[1]["veri776"]
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(FileExistsError, match="choose another"):
        synthetic.write_layout(folder, "veri776", small("veri776", images=5))
    with pytest.raises(FileExistsError, match="choose another"):
        synthetic.write_layout(folder, "mars", small("mars"))
    with pytest.raises(FileExistsError, match="choose another"):
        synthetic.write_folder(folder, synthetic.SyntheticConfig())
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_an_interrupted_set_is_not_there_and_the_next_call_completes_it(
    sets, tmp_path, monkeypatch
):
    from data_prep.synthetic.layouts import common

    calls = []

    def stop_at_ten(*arguments):
        calls.append(arguments)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return shoot(*arguments)

    monkeypatch.setattr(common, "shoot", stop_at_ten)
    with pytest.raises(KeyboardInterrupt):
        synthetic.write_layout(tmp_path / "set", "veri776", small("veri776"))
    assert not (tmp_path / "set").exists() and (tmp_path / "set.partial").is_dir()
    monkeypatch.undo()
    synthetic.write_layout(tmp_path / "set", "veri776", small("veri776"))
    assert files_of(tmp_path / "set") == files_of(sets[0] / "veri776")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


# The pictures.


def contrast(pictures):
    """Strength of the edges of float[n, height, width]."""
    down, across = np.gradient(pictures, axis=(1, 2))
    return np.hypot(down, across)


def correlation(a, b):
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


@pytest.mark.parametrize("band", [NEAR, THERMAL])
def test_people_keep_their_shape_in_infrared(band):
    people = synthetic.draw_people(np.arange(1, 31), seed=0)
    plain = synthetic.draw_cameras([1], seed=0)
    infrared = [synthetic.infrared_camera(camera, band) for camera in plain]
    plan = synthetic.make_plan(people, plain, np.arange(30), np.zeros(30, int), [0] * 30, seed=0)
    size = {"height": 64, "width": 32, "jpeg": False}
    seen, dark = (synthetic.render_images(people, c, plan, **size) for c in (plain, infrared))
    np.testing.assert_array_equal(dark[..., 0], dark[..., 1])
    np.testing.assert_array_equal(dark[..., 0], dark[..., 2])
    edges = [contrast(images.mean(-1)) for images in (seen, dark)]
    same = np.mean([correlation(a, b) for a, b in zip(*edges, strict=True)])
    other = np.mean(
        [correlation(a, b) for a, b in zip(edges[0], np.roll(edges[1], 1, 0), strict=True)]
    )
    assert same > 0.4 and same > other + 0.2


def wearing(person, **values):
    """The person with the given values (by number) of some attributes."""
    names = list(synthetic.ATTRIBUTES)
    code = [values.get(name, own) for name, own in zip(names, person.code, strict=True)]
    return dataclasses.replace(person, code=tuple(code))


@pytest.mark.parametrize(("band", "most"), [(NEAR, 0.85), (THERMAL, 0.2)])
def test_colours_do_not_survive_in_infrared(band, most):
    """In near infrared one half of a shade is drawn: a third of its variance and more."""
    people = synthetic.draw_people(np.arange(1, 256), seed=1)
    people = [wearing(person, bag=0, pattern=0, print=0) for person in people]
    torso = np.s_[50:60, 28:36]
    gray, light = (
        np.array([synthetic.portrait(p, 4, **kind)[torso].mean((0, 1)) for p in people])
        for kind in ({"band": band}, {})
    )
    assert gray.std() > 5
    for channel in (*light.T, light.mean(-1)):
        assert abs(correlation(gray[:, 0], channel)) < most
    # People in the same colour have shades from dark to light.
    black = light.mean(-1) < 40
    assert band == THERMAL or np.ptp(gray[black, 0]) > 50


def test_a_shade_belongs_to_the_person_and_the_band():
    people = synthetic.draw_people([5], seed=0) + synthetic.draw_people([5, 6], seed=2)
    near = [synthetic.portrait(person, 0, band=NEAR) for person in people]
    np.testing.assert_array_equal(near[0], synthetic.portrait(people[0], 0, band=NEAR))
    assert not np.array_equal(near[1], near[2])
    assert not np.array_equal(near[0], synthetic.portrait(people[0], 0, band=THERMAL))


def test_thermal_pictures_show_no_print():
    people = synthetic.draw_people(np.arange(400), seed=0)
    marked = next(
        p for p in people if p.value("print")[0] == "square" and p.value("top")[0] == "t-shirt"
    )
    unmarked = wearing(marked, print=0)
    thermal, visible = (
        [synthetic.portrait(p, 0, **kind) for p in (marked, unmarked)]
        for kind in ({"band": THERMAL}, {})
    )
    np.testing.assert_array_equal(*thermal)
    assert not np.array_equal(*visible)


def test_an_unknown_band_is_refused():
    camera = synthetic.draw_cameras([1], seed=0)[0]
    with pytest.raises(ValueError, match="choose one of near, thermal"):
        synthetic.infrared_camera(camera, "visible")


def walks(numbers, frames, **changes):
    """Pictures of walks of one person under one camera: float[walks, frames, ...]."""
    config = small("mars", height=64, width=32, **changes)
    paths = tuple(map(str, range(frames)))
    tracks = [Track(paths, 1, Sensor(2), number) for number in numbers]
    pictures = np.stack([pixels for _, pixels, _ in iterate_pictures(tracks, config)])
    return pictures.reshape(len(numbers), frames, 64, 32, 3).astype(float)


def test_frames_of_a_tracklet_are_more_alike_than_those_of_others():
    pictures = walks(range(1, 13), 20)
    step = np.abs(np.diff(pictures, axis=1)).mean((2, 3, 4))  # [walk, frame]
    within = np.abs(pictures[:, :1] - pictures[:, 1:]).mean()
    between = np.abs(pictures - np.roll(pictures, 1, axis=0)).mean()
    assert step.mean() < 0.5 * between and within < 0.8 * between
    assert step.mean() < 0.8 * within
    # But they move: legs, box and backdrop, not the grain alone.
    assert np.all(within > 0) and np.mean(step > 5) > 0.3


def test_a_frame_depends_on_its_number_alone():
    frames = np.arange(40)
    draws = walk_draws(12345, frames)
    assert draws.shape == (40, IMAGE_DRAWS) and draws.min() >= 0 and draws.max() < 1
    np.testing.assert_array_equal(walk_draws(12345, frames[[33, 7]]), draws[[33, 7]])
    assert not np.array_equal(walk_draws(12346, frames), draws)
    # Smooth but for the grain and the phase of the gait, which goes round.
    smooth = np.delete(draws, [2, 22], axis=1)
    assert np.abs(np.diff(smooth, axis=0)).max() < 0.25
    assert np.abs(np.diff(draws[:, 22])).max() > 0.5
    assert len(np.unique(np.floor(4 * draws[:20, 2]))) == 4


def test_ambiguity_is_the_share_of_walks_that_turn_and_of_stretches_that_are_crossed():
    frames = np.arange(64)
    found = [moments(row, frames, 0.5) for row in range(400)]
    turned = [any(one.turn for one in walk) for walk in found]
    crossed = np.array([[one.crosser is not None for one in walk] for walk in found])
    stretches = crossed.reshape(400, 4, 16)
    assert abs(np.mean(turned) - 0.5) < 0.08
    assert abs(stretches.any(2).mean() - 0.5) < 0.04 and set(stretches.sum(2).flat) == {0, 7}
    assert {one.turn for walk in found for one in walk} == {-2, -1, 0, 1, 2}
    # People turn by steps, and the passer-by moves on in the direction that they face.
    for walk in found[:50]:
        for before, after in itertools.pairwise(walk):
            assert abs(after.turn - before.turn) <= 1
            if before.crosser is not None and after.crosser == before.crosser:
                assert (after.shift > before.shift) == (before.crosser_view == 2)
    assert moments(7, frames[[33, 5]], 0.5) == [found[7][33], found[7][5]]
    assert set(moments(7, frames, 0.0)) == {Moment()}


def test_a_passer_by_hides_the_person_and_a_turn_what_one_side_shows():
    people, camera = synthetic.draw_people([4], seed=1), synthetic.draw_cameras([2], seed=1)[0]
    draws, visit = walk_draws(5, np.array([0]))[0].tolist(), [0.5] * VISIT_DRAWS
    draws[16] = draws[19] = 0.99  # nothing else stands there

    def seen(moment):
        return shoot(people[0], camera, draws, visit, NORMAL, (32, 64), moment).astype(int)

    usual = seen(Moment())
    changed = np.abs(seen(Moment(crosser=9, shift=0.0)) - usual).max(2)[8:56, 8:24] > 8
    aside = np.abs(seen(Moment(crosser=9, shift=0.9)) - usual).max(2)[8:56, 8:24] > 8
    assert changed.mean() > 0.5 > 3 * aside.mean()
    around = [seen(Moment(turn=turn)) for turn in (-2, 0, 2)]
    np.testing.assert_array_equal(around[1], usual)
    assert min(np.abs(around[i] - around[j]).mean() for i, j in ((0, 1), (1, 2), (0, 2))) > 3


def test_walks_without_ambiguity_show_the_same_throughout():
    plain, crossed = (
        [pixels for _, pixels, _ in iterate_pictures(tracks_of(ambiguity), small("mars"))]
        for ambiguity in (0.0, 1.0)
    )
    different = [not np.array_equal(a, b) for a, b in zip(plain, crossed, strict=True)]
    assert 0.4 < np.mean(different) <= 1


def tracks_of(ambiguity):
    """All tracks of a small set in the layout of MARS."""
    return synthetic.layout_of("mars").blueprint(small("mars", ambiguity=ambiguity)).tracks


# Settings and the command line.


@pytest.mark.parametrize(
    ("layout", "wrong"),
    [
        ("mars", {"cameras": 10}),
        ("mars", {"frames": 1}),
        ("mars", {"junk": -0.5}),
        ("lsvid", {"ambiguity": 1.5}),
        ("ilidsvid", {"frames": 1}),
        ("lsvid", {"val_ids": 0}),
        ("ilidsvid", {"ids": 7}),
        ("sysumm01", {"images": 0}),
        ("regdb", {"ids": 3}),
        ("veri776", {"test_ids": 0}),
        ("veri776", {"height": 8}),
    ],
)
def test_wrong_settings_are_refused(layout, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*; expected"):
        small(layout, **wrong)


def test_unknown_layouts_and_settings_of_another_are_refused(tmp_path):
    with pytest.raises(ValueError, match="choose one of mars"):
        synthetic.write_layout(tmp_path / "set", "marz")
    with pytest.raises(ValueError, match="MarsConfig; expected a VeriConfig"):
        synthetic.write_layout(tmp_path / "set", "veri776", small("mars"))
    assert not list(tmp_path.iterdir())


def test_smallest_sets_are_drawn(tmp_path):
    least = {"train_ids": 1, "test_ids": 1, "val_ids": 1, "ids": 2, "frames": 2, "images": 2}
    for layout, kind in synthetic.LAYOUTS.items():
        fields = {field.name for field in dataclasses.fields(kind.config)}
        config = kind.config(**SIZE, **{k: v for k, v in least.items() if k in fields})
        assert min(synthetic.write_layout(tmp_path / layout, layout, config).values()) > 0


def test_command_line_takes_the_options_of_the_layout(sets, tmp_path, capsys):
    options = ["--layout", "regdb", "--ids", "6", "--images", "4", "--seed", "3"]
    size = ["--height", "32", "--width", "16"]
    main(["--out", str(tmp_path / "set"), *options, *size])
    assert "24 Visible, 24 Thermal" in capsys.readouterr().out
    for path in files_of(sets[0] / "regdb"):
        assert (tmp_path / "set" / path).read_bytes() == (sets[0] / "regdb" / path).read_bytes()
    with pytest.raises(SystemExit, match="2"):
        main(["--out", str(tmp_path / "set"), *options, *size, "--strength", "0"])
    assert "choose another" in capsys.readouterr().err
    for wrong in (["--layout", "regdb", "--cameras", "3"], ["--layout", "regbd"]):
        with pytest.raises(SystemExit):
            main(["--out", str(tmp_path / "other"), *wrong])
    assert "invalid choice: 'regbd'" in capsys.readouterr().err


def test_help_shows_examples_and_the_options_of_the_layout(capsys):
    for layout, option in (("mars", "--tracklets"), ("market", "--names")):
        with pytest.raises(SystemExit) as stopped:
            main(["--layout", layout, "--help"])
        text = capsys.readouterr().out
        assert stopped.value.code == 0 and option in text and "--layout mars --seed 0" in text


def test_jpeg_of_one_channel_is_what_the_file_holds(sets):
    config = small("sysumm01")
    plan = synthetic.layout_of("sysumm01").blueprint(config)
    track = next(t for t in plan.tracks if t.paths[0].startswith("cam6/"))
    _, pixels, camera = next(iterate_pictures([track], config))
    data = synthetic.encode(pixels[..., 0], camera.quality)
    assert (sets[0] / "sysumm01" / track.paths[0]).read_bytes() == data
    assert Image.open(io.BytesIO(data)).mode == "L"


# The readers of the layouts.


def test_the_readers_read_them(sets):
    from ccafl_jax.data.layouts import ilidsvid, lsvid, mars, regdb, sysumm01, veri

    root, counts = sets
    found = {
        "mars": mars.read_mars(root / "mars"),
        "lsvid": lsvid.read_lsvid(root / "lsvid"),
        "ilidsvid": ilidsvid.read_ilidsvid(root / "ilidsvid"),
        "sysumm01": sysumm01.read_sysumm01(root / "sysumm01"),
        "regdb": regdb.read_regdb(root / "regdb"),
        "veri776": veri.read_veri(root / "veri776"),
    }
    assert not any(collection.report["warnings"] for collection in found.values())
    images = {name: {p: len(r) for p, r in c.parts.items()} for name, c in found.items()}
    told = counts["veri776"]
    assert images["veri776"] == {
        "train": told["image_train"],
        "query": told["image_query"],
        "gallery": told["image_test"],
    }
    assert images["mars"]["train"] == counts["mars"]["bbox_train"]
    assert len(found["mars"].tables["query.track"]) == counts["mars"]["queries"]
    assert images["lsvid"]["train"] == counts["lsvid"]["tracklet_train"]
    assert len(found["lsvid"].tables["query.track"]) == counts["lsvid"]["test queries"]
    assert images["ilidsvid"] == {"all": counts["ilidsvid"]["sequences"]}
    assert images["regdb"] == {"all": 48}
    cameras = sum(counts["sysumm01"][f"cam{camera}"] for camera in range(1, 7))
    assert sum(images["sysumm01"].values()) == cameras
