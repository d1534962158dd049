"""From a model and a data set to features: what is embedded, averaged, kept and found again."""

import dataclasses
import logging
import shutil

import numpy as np
import pytest
from PIL import Image

from ccafl_jax.data.opening import open_collection
from ccafl_jax.data.records import tracklets
from ccafl_jax.deploy import features as features_module
from ccafl_jax.deploy import fingerprints
from ccafl_jax.deploy.embedder import Embedder, ImageEmbedder
from ccafl_jax.deploy.features import camera_rows
from ccafl_jax.scoring import feature_set
from ccafl_jax.training.features import Extracted
from data_prep import synthetic
from tests.deploy import tiny

SIZE = {"seed": 3, "height": 32, "width": 16}
LAYOUTS = {
    "mars": {"train_ids": 1, "test_ids": 3, "frames": 6},
    "ilidsvid": {"ids": 6, "frames": 3},
    "sysumm01": {"train_ids": 2, "val_ids": 1, "test_ids": 3, "images": 2},
    "regdb": {"ids": 6, "images": 2},
    "veri776": {"train_ids": 2, "test_ids": 3},
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A small set of each kind."""
    root = tmp_path_factory.mktemp("sets")
    for layout, size in LAYOUTS.items():
        config = synthetic.layout_of(layout).config(**SIZE, **size)
        synthetic.write_layout(root / layout, layout, config)
    config = synthetic.SyntheticConfig(**SIZE, train_ids=1, test_ids=4, cameras=3)
    synthetic.write_folder(root / "market_like", config)
    return root


@pytest.fixture
def collection(sets):
    return lambda name: open_collection(name, sets / name)


@pytest.fixture
def market(sets, tmp_path):
    """A copy that tests may change, with hand-drawn boxes of the queries."""
    shutil.copytree(sets / "market_like", tmp_path / "market")
    shutil.copytree(tmp_path / "market" / "query", tmp_path / "market" / "gt_bbox")
    return tmp_path / "market"


def extract(bundle, collection, **options):
    return features_module.extract(bundle, collection, **({"batch": 16} | options))


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def embed(records, kind="resnet", cameras=None, **options):
    paths = [records.locate(row) for row in range(len(records))]
    return Embedder(tiny.bundle(kind), batch=16).embed(paths, cameras, **options)


# Mirror images.


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_flipping_is_the_mean_with_the_mirror_image(kind):
    bundle, images = tiny.bundle(kind), tiny.pixels(5)
    model, cameras = Embedder(bundle, batch=4), tiny.cameras_of(bundle, 5)
    plain, mirrored = (model.embed(x, cameras) for x in (images, images[:, :, ::-1]))
    flipped = model.embed(images, cameras, flip=True)
    np.testing.assert_allclose(flipped, unit((plain + mirrored) / 2), atol=1e-6)
    assert np.abs(flipped - plain).max() > 1e-3
    again = model.embed(np.ascontiguousarray(images[:, :, ::-1]), cameras, flip=True)
    np.testing.assert_allclose(again, flipped, atol=1e-6)


def test_flipping_works_with_any_function_of_images():
    """As exported ones are, which give NumPy arrays."""

    def step(pixels, cameras):
        left = pixels[:, :, : tiny.WIDTH // 2].reshape(len(pixels), -1).astype(np.float32)
        return unit(left + 1)

    images = tiny.pixels(3)
    model = ImageEmbedder(
        step,
        preprocess=tiny.bundle("resnet").preprocess,
        features=tiny.HEIGHT * tiny.WIDTH // 2 * 3,
        cameras=0,
        batch=2,
    )
    expected = unit(step(images, None) + step(images[:, :, ::-1], None))
    np.testing.assert_allclose(model.embed(images, flip=True), expected, atol=1e-6)


# Image sets.


def test_queries_then_gallery(collection):
    market = collection("market_like")
    found = extract(tiny.bundle("resnet"), market)
    parts = [market.parts[name] for name in ("query", "gallery")]
    np.testing.assert_allclose(
        found.features, np.concatenate([embed(part) for part in parts]), atol=1e-5
    )
    assert found.dataset == "market_like" and found.camera_codes == market.camera_codes
    np.testing.assert_array_equal(found.pid, np.concatenate([part.pid for part in parts]))
    assert list(found.names) == [name for part in parts for name in part.path]
    expected = {
        "flip": False,
        "pooling": None,
        "unit": "image",
        "model": "a test",
        "trained_on": "a test",
        "compute_dtype": "float32",
        "fingerprint": fingerprints.model_fingerprint(tiny.bundle("resnet")),
    }
    assert {key: found.meta[key] for key in expected} == expected


def test_what_a_model_was_trained_with_is_told(collection):
    recipe = {"config": {"data": {"name": "msmt17_v1"}, "evaluation": {"no_match": "zero"}}}
    bundle = dataclasses.replace(tiny.bundle("resnet"), recipe=recipe)
    meta = extract(bundle, collection("market_like")).meta
    assert meta["trained_on"] == "msmt17_v1" and meta["no_match"] == "zero"


def test_parts_beside_queries_and_gallery(market):
    bundle = tiny.bundle("resnet")
    market = open_collection("market_like", market)
    plain = extract(bundle, market)
    more = extract(bundle, market, multi_query=True)
    extra = more.rows(feature_set.MULTI_QUERY)
    assert len(extra) == len(market.parts["multi_query"]) == len(more) - len(plain)
    np.testing.assert_allclose(more.features[extra], embed(market.parts["multi_query"]), atol=1e-5)
    with pytest.raises(ValueError, match="has no part distractors; leave it out"):
        extract(bundle, market, distractors=True)


def test_half_precision_and_flips_change_features(collection):
    market, bundle = collection("market_like"), tiny.bundle("resnet")
    plain = extract(bundle, market)
    half = extract(bundle, market, compute_dtype="bfloat16")
    flipped = extract(bundle, market, flip=True)
    assert 1e-5 < np.abs(half.features - plain.features).max() < 0.1
    assert np.abs(flipped.features - plain.features).max() > 1e-3
    assert flipped.meta["flip"] is True
    # Scores of flipped features are others; those of half precision are rounded.
    assert flipped.meta["fingerprint"] != plain.meta["fingerprint"] == half.meta["fingerprint"]
    assert len({plain.meta["key"], half.meta["key"], flipped.meta["key"]}) == 3


def test_features_at_hand_are_taken_over_by_the_names_of_their_images(collection, tmp_path):
    market, bundle = collection("market_like"), tiny.bundle("resnet")
    made = extract(bundle, market)
    order = np.random.default_rng(0).permutation(len(made))
    at_hand = Extracted(3 * made.features[order], [made.names[row] for row in order])
    found = extract(bundle, market, at_hand=at_hand, cache=tmp_path)
    np.testing.assert_allclose(found.features, made.features, atol=1e-6)
    (kept,) = tmp_path.iterdir()
    np.testing.assert_array_equal(feature_set.load(kept).features, found.features)
    lacking = Extracted(at_hand.features[1:], at_hand.names[1:])
    with pytest.raises(ValueError, match=f"'{at_hand.names[0]}' was not in the test set"):
        extract(bundle, market, at_hand=lacking)


def test_features_of_frames_at_hand_are_none_of_tracklets(collection):
    mars, bundle = collection("mars"), tiny.bundle("resnet")
    made = extract(bundle, mars, frames=2)
    frames = [name for part in ("query", "gallery") for name in mars.parts[part].path]
    of_frames = Extracted(np.ones((len(frames), made.features.shape[1])), frames)
    found = extract(bundle, mars, frames=2, at_hand=of_frames)
    np.testing.assert_array_equal(found.features, made.features)


# Cameras.


def test_cameras_are_those_of_the_images(collection):
    market = collection("market_like")
    bundle = dataclasses.replace(tiny.bundle("vit"), camera_codes=(3, 1, 2))
    found = extract(bundle, market)
    rows = camera_rows(bundle, market)
    np.testing.assert_array_equal(rows, [1, 2, 0])
    query = market.parts["query"]
    np.testing.assert_allclose(
        found.features[: len(query)], embed(query, "vit", rows[query.camid]), atol=1e-5
    )


def test_foreign_and_unknown_cameras(collection):
    bundle, market = tiny.bundle("vit"), collection("market_like")  # it knows 1, 2 and 5
    with pytest.raises(ValueError, match=r"cameras \[3\], which the model's camera embedding"):
        extract(bundle, market)
    with pytest.raises(ValueError, match=r"the cameras \[3, 4, 6\].* does not know"):
        extract(bundle, collection("sysumm01"))
    query = market.parts["query"]
    unknown = dataclasses.replace(query, camid=np.where(np.arange(len(query)) < 2, -1, query.camid))
    parts = {**market.parts, "query": unknown}
    with pytest.raises(ValueError, match=r"2 images of .* have no camera"):
        extract(bundle, dataclasses.replace(market, parts=parts))


# Video.


def mean_of_frames(records, frames, **options):
    """The plain way: a tracklet at a time."""
    table, features = tracklets(records), embed(records, **options)
    found = []
    for start, count in zip(table.start, table.count, strict=True):
        number = min(count, frames) if frames else count
        rows = [start + int((place + 0.5) * count / number) for place in range(number)]
        assert rows == sorted(set(rows)) and rows[-1] < start + count
        found.append(features[rows].mean(axis=0))
    return unit(np.array(found))


@pytest.mark.parametrize("frames", [None, 0, 1, 3])
def test_tracklets_are_means_of_frames(collection, frames, monkeypatch):
    monkeypatch.setattr(features_module, "_BATCHES_AT_ONCE", 1)  # several blocks of tracklets
    mars = collection("mars")
    found = extract(tiny.bundle("resnet"), mars, frames=frames)
    parts = [mars.parts[name] for name in ("query", "gallery")]
    expected = np.concatenate([mean_of_frames(p, 8 if frames is None else frames) for p in parts])
    np.testing.assert_allclose(found.features, expected, atol=1e-5)
    first = [tracklets(part).start for part in parts]
    pid = [part.pid[start] for part, start in zip(parts, first, strict=True)]
    np.testing.assert_array_equal(found.pid, np.concatenate(pid))
    assert found.meta["unit"] == "tracklet"
    words = {None: "8 frames", 0: "all frames"}.get(frames, f"{frames} frames")
    assert found.meta["pooling"] == f"mean of {words}"


def test_numbers_of_frames_and_flips_change_tracklets(collection):
    bundle, mars = tiny.bundle("resnet"), collection("mars")
    one, two = (extract(bundle, mars, frames=frames) for frames in (1, 2))
    flipped = extract(bundle, mars, frames=2, flip=True)
    assert np.abs(one.features - two.features).max() > 1e-3
    query = mars.parts["query"]
    np.testing.assert_allclose(
        flipped.features[: len(tracklets(query))], mean_of_frames(query, 2, flip=True), atol=1e-5
    )
    assert np.abs(flipped.features - two.features).max() > 1e-3


def test_tracklets_and_cameras(collection):
    bundle = dataclasses.replace(tiny.bundle("vit"), camera_codes=(1, 2))
    two_cameras = collection("ilidsvid")
    found = extract(bundle, two_cameras, split=2)
    assert found.meta["split"] == 2 and found.meta["orientation"] == "standard"
    other = extract(bundle, two_cameras, split=2, orientation="tfclip")
    assert not np.isin(other.pid, found.pid).any()
    assert set(extract(bundle, two_cameras).pid) != set(found.pid)
    records = open_collection("ilidsvid", two_cameras.root).parts["all"]
    chosen = records.take(records.pid == found.pid[0])
    expected = mean_of_frames(
        chosen.take(chosen.camid == 0), 8, kind="vit", cameras=bundle.camera_codes.index(1)
    )
    np.testing.assert_allclose(found.features[:1], expected, atol=1e-5)


# Visible and infrared.


def test_all_test_images_of_both_modalities(collection):
    sysu = collection("sysumm01")
    found = extract(tiny.bundle("resnet"), sysu)
    test = sysu.parts["test"]
    assert len(found) == len(test) and set(found.part) == {feature_set.TEST}
    np.testing.assert_array_equal(found.modality, test.modality)
    np.testing.assert_allclose(found.features, embed(test), atol=1e-5)
    regdb = collection("regdb")
    splits = [extract(tiny.bundle("resnet"), regdb, split=split) for split in (1, 2)]
    assert [found.meta["split"] for found in splits] == [1, 2]
    assert set(splits[0].pid) != set(splits[1].pid)
    assert extract(tiny.bundle("resnet"), regdb).meta["key"] == splits[0].meta["key"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("market_like", {"frames": 4}, "market_like holds single images, which take no frames"),
        ("market_like", {"split": 1}, "market_like takes no split; leave the option out"),
        ("sysumm01", {"split": 1}, "sysumm01 takes no split"),
        ("regdb", {"orientation": "standard"}, "regdb takes no orientation"),
        ("regdb", {"split": 11}, "no split 11; there are 1, 2"),
        ("ilidsvid", {"orientation": "up"}, "orientation is 'up', must be one of standard, tfclip"),
        ("mars", {"frames": -1}, r"frames is -1; choose 0 \(all\) or more"),
        ("mars", {"compute_dtype": "float16"}, "compute dtype is 'float16'"),
        ("mars", {"batch": 0}, "batch is 0"),
    ],
)
def test_options_that_a_set_does_not_take(collection, name, options, message):
    with pytest.raises(ValueError, match=message) as error:
        extract(tiny.bundle("resnet"), collection(name), **options)
    assert "\n" not in str(error.value)


# What is kept.


@pytest.fixture
def work(market, tmp_path, caplog):
    """Extracts with a cache and says whether a model had work to do."""
    caplog.set_level(logging.INFO, "ccafl_jax")

    def run(bundle=None, **options):
        caplog.clear()
        collection = open_collection("market_like", market)
        bundle = bundle or tiny.bundle("resnet")
        found = extract(bundle, collection, **({"cache": tmp_path / "kept"} | options))
        return found, caplog.messages[-1].startswith("features: extracted")

    return run


def files(tmp_path):
    return sorted(path.name for path in (tmp_path / "kept").iterdir())


def test_features_are_kept_and_found_again(work, tmp_path, caplog):
    first, worked = work()
    assert worked and files(tmp_path) == [f"market_like-{first.meta['key'][:16]}.npz"]
    assert "images in " in caplog.text and f"s, kept in {tmp_path / 'kept'}" in caplog.text
    second, worked = work(batch=8)  # batches change nothing but rounding
    assert not worked and f"features: read from {tmp_path / 'kept'}" in caplog.text
    np.testing.assert_array_equal(second.features, first.features)
    assert second.meta == first.meta and list(second.names) == list(first.names)
    renamed = dataclasses.replace(tiny.bundle("resnet"), source="another name")
    third, worked = work(bundle=renamed)  # of the same weights
    assert not worked and third.meta == {**first.meta, "model": "another name"} | {
        "trained_on": "another name"
    }
    assert work(cache=tmp_path / "other")[1] and not work(cache=tmp_path / "other")[1]
    assert work(cache=None)[1] and "kept nowhere" in caplog.text


@pytest.mark.parametrize(
    "options",
    [{"flip": True}, {"compute_dtype": "bfloat16"}, {"multi_query": True}],
    ids=lambda options: next(iter(options)),
)
def test_other_options_are_other_features(work, tmp_path, options):
    work()
    assert work(**options)[1] and not work(**options)[1] and not work()[1]
    assert len(files(tmp_path)) == 2


def changed_weight(bundle):
    params = {path: x.copy() for path, x in bundle.params.items()}
    next(iter(params.values())).reshape(-1)[-1] += 1e-6
    return dataclasses.replace(bundle, params=params)


def changed_statistics(bundle):
    statistics = {path: x.copy() for path, x in bundle.batch_stats.items()}
    next(iter(statistics.values())).reshape(-1)[0] += 1e-6
    return dataclasses.replace(bundle, batch_stats=statistics)


def changed_preprocess(**fields):
    return lambda bundle: dataclasses.replace(
        bundle, preprocess=dataclasses.replace(bundle.preprocess, **fields)
    )


@pytest.mark.parametrize(
    "change",
    [
        changed_weight,
        changed_statistics,
        changed_preprocess(mean=(0.5, 0.4, 0.31)),
        changed_preprocess(std=(0.2, 0.25, 0.31)),
        changed_preprocess(filter="lanczos"),
    ],
    ids=["weight", "statistics", "mean", "std", "filter"],
)
def test_another_model_misses(work, tmp_path, change):
    work()
    assert work(bundle=change(tiny.bundle("resnet")))[1]
    assert len(files(tmp_path)) == 2


def test_another_version_misses(work, monkeypatch):
    work()
    monkeypatch.setattr(fingerprints, "VERSION", fingerprints.VERSION + 1)
    assert work()[1]


@pytest.mark.parametrize("change", ["pixels", "new", "gone", "camera"])
def test_changed_images_miss(work, market, change):
    before, _ = work()
    path = sorted((market / "bounding_box_test").iterdir())[-1]
    if change == "pixels":
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    elif change == "new":
        shutil.copy(path, path.with_stem(path.stem[:-2] + "77"))
    elif change == "gone":
        path.unlink()
    else:
        path.rename(path.with_name(path.name.replace("_c3", "_c2")))
    after, worked = work()
    assert worked
    same = len(after) == len(before) and np.array_equal(after.camid, before.camid)
    assert not (same and np.array_equal(after.features, before.features))


@pytest.mark.parametrize("damage", ["cut", "bit", "text", "foreign"])
def test_a_damaged_file_is_made_again(work, tmp_path, damage, caplog):
    before, _ = work()
    path = tmp_path / "kept" / files(tmp_path)[0]
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-3000])
    elif damage == "bit":
        place = content.index(before.features[3].tobytes())
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    elif damage == "text":
        path.write_text("not features")
    else:
        feature_set.save(path, dataclasses.replace(before, meta={}))
    after, worked = work()
    assert worked and "features: made again, as" in caplog.text
    assert [r.levelname for r in caplog.records] == ["WARNING", "INFO", "INFO"]
    np.testing.assert_array_equal(after.features, before.features)
    assert not work()[1]


def test_a_folder_that_cannot_be_written_is_a_warning(work, tmp_path, caplog):
    (tmp_path / "kept").write_text("a file in its place")
    found, worked = work()
    assert worked and len(found)
    assert "features: cannot be kept in" in caplog.text and "kept nowhere" in caplog.text


def test_a_manifest_with_tracklets_is_one_of_tracklets(sets, tmp_path):
    source = open_collection("mars", sets / "mars")
    lines = ["path,pid,camid,split,tracklet"]
    for part in ("query", "gallery"):
        records = source.parts[part]
        for row in range(len(records)):
            labels = records.pid[row], records.camid[row], part, f"{part}{records.tracklet[row]}"
            lines.append(",".join(map(str, (records.locate(row), *labels))))
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    collection = open_collection("manifest", tmp_path)
    found = extract(tiny.bundle("resnet"), collection, frames=2)
    count = [len(tracklets(source.parts[part])) for part in ("query", "gallery")]
    assert [int(np.sum(found.part == part)) for part in (0, 1)] == count
    assert found.meta["pooling"] == "mean of 2 frames"
    # Without the column every row is an image.
    plain = "\n".join(line.rpartition(",")[0] for line in lines)
    (tmp_path / "manifest.csv").write_text(plain + "\n")
    images = extract(tiny.bundle("resnet"), open_collection("manifest", tmp_path))
    assert len(images) == len(lines) - 1 and images.meta["pooling"] is None
    with pytest.raises(ValueError, match="holds single images, which take no frames"):
        extract(tiny.bundle("resnet"), open_collection("manifest", tmp_path), frames=2)
