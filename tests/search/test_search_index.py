import ast
import json
import pathlib

import numpy as np
import pytest

from ccafl_jax.neighbors.top_k import Neighbors, join_columns, top_k
from ccafl_jax.scoring.feature_set import FeatureSet
from ccafl_jax.search import build, index, open_index
from ccafl_jax.search.compression import compress

FORMS = ("float16", "int8", "int8_dim", "pca-12")


def features(count=300, dim=24, seed=0, grid=False, **changes):
    """Rows around a few centres in a low-dimensional space, far from zero as ReID features are."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(count, 8)) @ rng.normal(size=(8, dim)) + 0.05 * rng.normal(
        size=(count, dim)
    )
    if grid:  # products are exact, and many scores are equal
        values = rng.integers(-1, 2, (count, dim)) + np.eye(1, dim) * 4
    columns = {
        "dataset": "",
        "features": values.astype(np.float32),
        "pid": np.arange(count) % 7,
        "camid": np.arange(count) % 2,
        "part": np.ones(count, np.int8),
        "names": np.array([f"in/ü{row}.jpg" for row in range(count)]),
        "camera_codes": (3, 8),
        "meta": {"fingerprint": "a" * 64, "flip": False, "root": "there"},
    }
    return FeatureSet(**columns | changes)


def queries(count=20, dim=24, **options):
    return features(count, dim, seed=9, **options).features


def brute_force(query, gallery, k, metric):
    query, gallery = query.astype(np.float64), gallery.astype(np.float64)
    if metric == "cosine":
        query = query / np.linalg.norm(query, axis=1, keepdims=True)
        gallery = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    scores = query @ gallery.T
    if metric == "euclidean":
        scores = -np.sqrt(np.square(query[:, None] - gallery).sum(axis=2))
    order = np.argsort(-scores.astype(np.float32), axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, axis=1)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(index, "_ROWS", 64)
    monkeypatch.setattr(index, "_GATHERED", 7 * 40 * 24)


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
def test_float32_is_the_engine_and_brute_force(metric):
    made, asked = features(), queries()
    found = build(made, metric=metric).search(asked, 10)
    engine = top_k(asked, made.features, 10, metric=metric)
    np.testing.assert_array_equal(found.indices, engine.indices)
    np.testing.assert_array_equal(found.scores, engine.scores)
    order, scores = brute_force(asked, made.features, 10, metric)
    np.testing.assert_array_equal(found.indices, order)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
@pytest.mark.parametrize("form", FORMS)
def test_rescored_candidates_are_exact(form, metric, small_blocks):
    made, asked = features(), queries()
    compressed = build(made, form=form, metric=metric)
    order, scores = brute_force(asked, made.features, 5, metric)
    rough = compressed.search(asked, 5)
    recall = np.mean(
        [len(np.intersect1d(a, b)) / 5 for a, b in zip(rough.indices, order, strict=True)]
    )
    assert recall > 0.75 and np.abs(rough.scores - scores).max() > 0  # near, and not the same
    found = compressed.search(asked, 5, rescore=40)
    np.testing.assert_array_equal(found.indices, order)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-6, atol=1e-6)


def test_blocks_change_nothing(monkeypatch):
    made, asked = features(), queries()
    for form in FORMS:
        whole = build(made, form=form).search(asked, 10)
        monkeypatch.setattr(index, "_ROWS", 64)
        parts = build(made, form=form).search(asked, 10)
        monkeypatch.undo()
        np.testing.assert_array_equal(whole.indices, parts.indices)
        np.testing.assert_allclose(whole.scores, parts.scores, atol=1e-6)
    every = build(made, form="int8").search(asked, len(made))  # more than a block holds
    assert (np.sort(every.indices, axis=1) == np.arange(len(made))).all()


@pytest.mark.parametrize("form", ["float32", "float16", "int8"])
def test_equal_scores_come_in_the_order_of_the_gallery(form, small_blocks):
    made = features(grid=True)
    asked = queries(grid=True)
    order, scores = brute_force(asked, made.features, 30, "dot")
    assert (np.diff(scores) == 0).mean() > 0.5
    compressed = build(made, form=form, metric="dot")
    options = {} if form == "float32" else {"rescore": 300}
    found = compressed.search(asked, 30, **options)
    np.testing.assert_array_equal(found.indices, order)
    if form == "float16":  # holds the grid, so that blocks alone must not disturb the order
        np.testing.assert_array_equal(compressed.search(asked, 30).indices, order)


@pytest.mark.parametrize("form", ["float32", "int8", "pca-12"])
def test_engines_agree(form, small_blocks):
    made, asked = build(features(), form=form), queries()
    host, device = (made.search(asked, 10, engine=engine) for engine in ("host", "device"))
    np.testing.assert_array_equal(host.indices, device.indices)
    np.testing.assert_allclose(host.scores, device.scores, atol=1e-6)


def test_joined_columns():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (6, 20)).astype(np.float32)

    def best(part, k):
        order = np.argsort(-part, axis=1, kind="stable")[:, :k]
        return Neighbors(order.astype(np.int32), np.take_along_axis(part, order, axis=1))

    found = join_columns(best(scores[:, :12], 5), best(scores[:, 12:], 5), 12, 5)
    np.testing.assert_array_equal(found.indices, best(scores, 5).indices)
    np.testing.assert_array_equal(found.scores, best(scores, 5).scores)
    few = Neighbors(np.array([[-1]], np.int32), np.array([[-np.inf]], np.float32))
    assert join_columns(best(scores[:1, :2], 2), few, 12, 3).indices.tolist()[0][2] == -1


def test_bytes_and_errors_of_forms():
    values = features().features
    sizes = {form: compress(values, form).nbytes for form in ("float32", *FORMS)}
    assert sizes["float32"] == 300 * 24 * 4 and sizes["float16"] == 300 * 24 * 2
    assert sizes["int8"] == 300 * (24 + 4) + 24 * 4 and sizes["int8_dim"] == 300 * 24 + 2 * 24 * 4
    assert sizes["pca-12"] == 300 * 12 * 4 + 24 * 12 * 4
    for form, step in (("float16", 2e-3), ("int8", 0.5), ("int8_dim", 0.5)):
        coded = compress(values, form)
        error = np.abs(coded.rows(0, 300) - values)
        bound = (
            step * np.abs(values)
            if form == "float16"
            else 0.501
            * np.broadcast_to(coded.scale[:, None] if form == "int8" else coded.scale, values.shape)
        )
        assert (error <= bound + 1e-6).all()
    still = compress(np.ones((4, 3), np.float32), "int8")  # nothing is left without the mean
    np.testing.assert_array_equal(still.rows(0, 4), np.ones((4, 3)))
    for form, message in (("int4", "form 'int4'.*pca-128"), ("pca-25", "choose pca-24 or less")):
        with pytest.raises(ValueError, match=message):
            compress(values, form)


@pytest.mark.parametrize("form", ["float32", *FORMS])
def test_a_saved_index_comes_back(form, tmp_path):
    made, asked = features(), queries()
    before = build(made, form=form, metric="euclidean")
    before.save(tmp_path / "i")
    after = open_index(tmp_path / "i")
    assert isinstance(after.gallery.codes, np.memmap)
    assert list(after.names) == list(made.names) and after.camera_codes == (3, 8)
    assert after.meta == made.meta and after.metric == "euclidean"
    for rescore in (0,) if form == "float32" else (0, 40):
        mine, theirs = (found.search(asked, 5, rescore=rescore) for found in (before, after))
        np.testing.assert_array_equal(mine.indices, theirs.indices)
        np.testing.assert_array_equal(mine.scores, theirs.scores)
    with pytest.raises(FileExistsError, match="--overwrite"):
        before.save(tmp_path / "i")
    build(features(10), form=form).save(tmp_path / "i", overwrite=True)
    assert len(open_index(tmp_path / "i")) == 10
    assert [path.name for path in tmp_path.iterdir()] == ["i"]


def test_queries_in_a_set_are_no_gallery():
    part = np.array([0] * 100 + [1] * 150 + [3] * 50, np.int8)
    made = build(features(part=part))
    assert len(made) == 200 and made.names[0] == "in/ü100.jpg"
    assert len(build(features(part=np.zeros(300, np.int8)))) == 300


def test_another_model_is_refused():
    made = build(features())
    made.check_model("a" * 64)
    with pytest.raises(ValueError, match=r"by model aaaa.*by model bbbb.*with one model") as error:
        made.check_model("b" * 64)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="does not say which model"):
        build(features(meta={})).check_model("a" * 64)


def test_errors_of_searches():
    plain, lean = build(features()), build(features(), form="int8", full=False)
    for made, asked, options, message in (
        (plain, queries(), {"k": 301}, r"k is 301; expected 1\.\.300"),
        (plain, queries(dim=23), {"k": 3}, r"expected \[n, 24\]"),
        (plain, queries(), {"k": 3, "rescore": 9}, "is not compressed"),
        (lean, queries(), {"k": 3, "rescore": 9}, "without its float32 features"),
        (build(features(), form="int8"), queries(), {"k": 3, "rescore": 2}, r"choose k \(3\)"),
        (lean, np.zeros((1, 24), np.float32), {"k": 3}, "zero vectors"),
    ):
        with pytest.raises(ValueError, match=message):
            made.search(asked, **options)
    with pytest.raises(ValueError, match="metric"):
        build(features(), metric="hamming")


def test_the_room_knows_no_model_and_no_method():
    """Of the rooms it imports those of arrays and of images, so that indices open anywhere."""
    rooms = set()
    for path in pathlib.Path(index.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("ccafl_jax."):
                rooms.add(node.module.split(".")[1])
    known = {"data", "evaluation", "files", "neighbors", "options", "progress", "scoring"}
    assert rooms == known | {"search"}


def test_damaged_indices(tmp_path):
    made = build(features(), form="int8")
    with pytest.raises(FileNotFoundError, match="holds no index"):
        open_index(tmp_path)
    made.save(tmp_path / "i")
    (tmp_path / "i" / "scale.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"scale\.npy is missing"):
        open_index(tmp_path / "i")
    np.save(tmp_path / "i" / "scale.npy", np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"damaged or no index.*scale"):
        open_index(tmp_path / "i")
    about = json.loads((tmp_path / "i" / "index.json").read_text())
    (tmp_path / "i" / "index.json").write_text(json.dumps(about | {"format": 7}))
    with pytest.raises(ValueError, match="ccafl_jax index 7"):
        open_index(tmp_path / "i")
    (tmp_path / "other").mkdir()
    with pytest.raises(FileExistsError, match="it is no index"):
        made.save(tmp_path / "other", overwrite=True)
