"""The graph of nearest neighbours and its modules: reference values, formulas and edges."""

import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccafl_jax.neighbors.top_k import Neighbors, self_top_k
from ccafl_jax.pseudo_labels.infomap import (
    Graph,
    graph_of_lists,
    knn_graph,
    knn_infomap,
    module_labels,
    modules,
)
from ccafl_jax.pseudo_labels.labels import in_order_of_members
from tests.golden_data import golden
from tests.pseudo_labels.test_jaccard import ENGINES, people

SCENES = ("s0", "s1", "s2")


@pytest.fixture(scope="module")
def package():
    return pytest.importorskip("infomap", reason="the package infomap is an extra")


def partition(labels):
    return in_order_of_members(labels, np.asarray(labels) >= 0)


def blobs(rng, sizes, noise=0.05):
    """Features around orthogonal centres, in random order, and their centres."""
    centre = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    f = np.eye(len(sizes) + 4)[centre] + noise * rng.standard_normal((len(centre), len(sizes) + 4))
    return f.astype(np.float32), centre


def codelength(graph, module):
    """Bits a step of the walker on a graph in modules, by the map equation."""
    weight = 1.0 - graph.distance.astype(np.float64)
    strength = np.bincount(graph.source, weight, graph.size)
    teleport = strength / strength.sum()
    share = weight / strength[graph.source]
    p = teleport
    for _ in range(400):
        p = 0.15 * teleport + 0.85 * np.bincount(graph.target, p[graph.source] * share, graph.size)
        p /= p.sum()
    flow = p[graph.source] * share
    flow /= flow.sum()
    node = np.bincount(graph.target, flow, graph.size)
    a, b = module[graph.source], module[graph.target]
    count = module.max() + 1
    out = np.bincount(a[a != b], flow[a != b], count)
    into = np.bincount(b[a != b], flow[a != b], count)
    inside = np.bincount(module[module >= 0], node[module >= 0], count)

    def h(x):
        return float(np.sum(np.where(x > 0, x * np.log2(np.where(x > 0, x, 1)), 0)))

    return h(into.sum()) - h(into) - h(out) + h(out + inside) - h(node)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("scene", SCENES)
def test_calr_graph(scene, engine):
    case = {key[3:]: value for key, value in golden("refine", "calr").items() if key[:2] == scene}
    lists = self_top_k(case["feat"], 15, engine=engine)
    np.testing.assert_array_equal(lists.indices, case["nbr"])
    np.testing.assert_allclose(1 - lists.scores, case["dist"], atol=1e-5)
    searched = knn_graph(case["feat"], engine=engine)
    given_lists = graph_of_lists(Neighbors(case["nbr"], 1 - case["dist"]))
    for graph in (searched, given_lists):
        assert graph.size == len(case["feat"]) and graph.source.dtype == np.int32
        np.testing.assert_array_equal(np.stack([graph.source, graph.target], 1), case["links"])
        np.testing.assert_allclose(1 - graph.distance, case["link_w"], atol=1e-5)
        np.testing.assert_array_equal(graph.singles, case["single"])
        assert graph.mean_distance == pytest.approx(float(case["dist_mean"]), abs=1e-5)


@pytest.mark.parametrize("scene", SCENES)
def test_calr_labels(scene, package):
    case = golden("refine", "calr")
    labels, singles = case[f"{scene}_labels"], case[f"{scene}_single"]
    found = knn_infomap(case[f"{scene}_feat"])
    np.testing.assert_array_equal(found.labels, partition(labels))
    assert found.labels.dtype == np.int32
    assert found.num_clusters == labels.max() + 1
    length = float(case[f"{scene}_codelength_new_f64"])
    assert found.diagnostics == {
        "edges": len(case[f"{scene}_links"]),
        "singles": len(singles),
        "modules": found.num_clusters,
        "clusters": found.num_clusters,
        "outliers": int(np.sum(labels < 0)),
        "codelength": pytest.approx(length, abs=1e-5),
    }
    assert found.diagnostics["outliers"] == len(singles)


def test_calr_size_filter(package):
    case = golden("refine", "calr")
    group, size = case["small_gid"], case["small_sizes"]
    np.testing.assert_array_equal(np.bincount(group), size)
    found = knn_infomap(case["small_feat"])
    np.testing.assert_array_equal(found.labels, partition(case["small_labels"]))
    assert found.num_clusters == 5 and found.diagnostics["outliers"] == 10
    for least in (1, 2, 4, 6, 15, 21):
        labels = knn_infomap(case["small_feat"], min_size=least).labels
        # The group of one image has no edge, and is none whatever the size.
        kept = (size[group] >= least) & (size[group] > 1)
        np.testing.assert_array_equal(labels, in_order_of_members(group, kept))


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([12, 40, 90]),
    st.integers(2, 12),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_codelength_is_the_map_equation(package, n, k, copies, seed):
    graph = knn_graph(people(np.random.default_rng(seed), n, copies=copies), k=k)
    module, length = modules(graph)
    assert module.dtype == np.int32
    if not len(graph.source):
        assert length == 0 and (module == -1).all()
        return
    assert length == pytest.approx(codelength(graph, module), abs=1e-9)
    # No worse than what the walker pays without modules, or with one for each item.
    assert length <= codelength(graph, np.zeros(n, np.int32)) + 1e-9
    assert length <= codelength(graph, np.arange(n, dtype=np.int32)) + 1e-9
    touched = np.union1d(graph.source, graph.target)
    np.testing.assert_array_equal(np.flatnonzero(module >= 0), touched)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([1, 2, 9, 40]),
    st.sampled_from([1, 3, 8]),
    st.floats(0.05, 1),
    st.integers(0, 2**31),
)
def test_graph_of_lists_is_that_of_plain_loops(n, k, least, seed):
    rng = np.random.default_rng(seed)
    k = min(k, n)
    lists = np.stack([rng.permutation(n)[:k] for _ in range(n)])  # own items anywhere or nowhere
    cosine = -np.sort(-rng.uniform(-1, 1, (n, k)).astype(np.float32), axis=1)
    ends = rng.integers(1, k + 1, n)
    early = np.arange(k) >= ends[:, None]
    lists[early], cosine[early] = -1, -np.inf
    graph = graph_of_lists(Neighbors(lists, cosine), min_similarity=least)
    edges, distances = [], []
    for i in range(n):
        for j, c in zip(lists[i], cosine[i], strict=True):
            if j >= 0:
                distances.append(np.float32(1) - c)
                if j != i and np.float32(1) - c <= np.float32(1 - least):
                    edges.append((i, j, np.float32(1) - c))
    found = list(zip(graph.source, graph.target, graph.distance, strict=True))
    assert found == edges
    assert graph.mean_distance == pytest.approx(np.mean(distances), abs=1e-6)
    sources = {i for i, _, _ in edges}
    assert graph.singles.tolist() == [i for i in range(n) if i not in sources]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("n", "k"), [(1, 15), (2, 2), (9, 15), (60, 6)])
def test_edges_go_to_the_nearest_similar_items(n, k, engine):
    f = people(np.random.default_rng(n), n, copies=n == 60)
    unit = f.astype(np.float64) / np.linalg.norm(f.astype(np.float64), axis=1, keepdims=True)
    cosine = unit @ unit.T
    graph = knn_graph(5 * f, k=k, min_similarity=0.3, engine=engine)
    np.testing.assert_allclose(1 - graph.distance, cosine[graph.source, graph.target], atol=1e-6)
    linked = np.zeros((n, n), bool)
    linked[graph.source, graph.target] = True
    assert linked.sum() == len(graph.source) and not linked.diagonal().any()
    for i in range(n):
        near = np.sort(np.delete(cosine[i], i))[::-1][: min(k, n) - 1]
        wanted = int(np.sum(near >= 0.3))
        count = int(linked[i].sum())
        # Behind k copies an item is not in its own list, and has k edges.
        assert count == wanted or (count == k and np.sum(cosine[i] > 1 - 1e-6) > k)
        np.testing.assert_allclose(
            -np.sort(-cosine[i, linked[i]])[:wanted], near[:wanted], atol=1e-6
        )


def test_own_items_are_left_out_wherever_they_stand():
    lists = np.array([[1, 0, 2], [0, 2, 1], [0, 1, -1], [0, 1, 2]])
    graph = graph_of_lists(Neighbors(lists, np.ones((4, 3), np.float32)))
    edges = list(zip(graph.source.tolist(), graph.target.tolist(), strict=True))
    assert edges == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]


def test_the_least_similarity_itself_counts():
    lists = np.array([[0, 1], [1, 0]])
    cosine = np.array([[1, 0.5], [1, 0.49999]], np.float32)
    graph = graph_of_lists(Neighbors(lists, cosine), min_similarity=0.5)
    assert (graph.source.tolist(), graph.target.tolist()) == ([0], [1])
    assert graph.singles.tolist() == [1]
    assert graph.mean_distance == pytest.approx((0.5 + 0.50001) / 4)


def test_an_item_without_edges_of_its_own_is_an_outlier(package):
    lists = np.array([[0, 1, 2], [1, 0, 2], [2, -1, -1]])
    graph = graph_of_lists(Neighbors(lists, np.array([[1, 0.9, 0.8]] * 3, np.float32)))
    module, _ = modules(graph)
    assert (module >= 0).all()  # a walker comes there
    found = module_labels(graph, min_size=2)
    assert found.labels.tolist() == [0, 0, -1]
    # It does not count as a member either.
    assert module_labels(graph, min_size=3).labels.tolist() == [-1, -1, -1]


def test_modules_are_separate_groups(package):
    f, centre = blobs(np.random.default_rng(0), [6, 30, 8, 3, 20])
    found = knn_infomap(f)
    np.testing.assert_array_equal(found.labels, in_order_of_members(centre, centre != 3))
    assert found.num_clusters == 4
    assert found.diagnostics["modules"] == 5 and found.diagnostics["outliers"] == 3
    again = knn_infomap(f)
    np.testing.assert_array_equal(again.labels, found.labels)
    assert again.diagnostics == found.diagnostics


def test_a_permutation_only_renumbers(package):
    rng = np.random.default_rng(1)
    f, _ = blobs(rng, [6, 30, 8, 3, 20], noise=0.15)
    order = rng.permutation(len(f))
    plain, moved = knn_infomap(f), knn_infomap(f[order])
    np.testing.assert_array_equal(moved.labels, partition(plain.labels[order]))
    assert moved.diagnostics["codelength"] == pytest.approx(plain.diagnostics["codelength"])


def test_the_order_of_edges_means_nothing(package):
    graph = knn_graph(people(np.random.default_rng(2), 90))
    order = np.random.default_rng(3).permutation(len(graph.source))
    edges = (x[order] for x in (graph.source, graph.target, graph.distance))
    other = Graph(graph.size, *edges, graph.mean_distance)
    np.testing.assert_array_equal(module_labels(other).labels, module_labels(graph).labels)


@pytest.mark.parametrize("n", [150, 300])
def test_options_are_the_published_ones(n, package):
    """Features without groups, on which another seed ends in another partition."""
    graph = knn_graph(np.random.default_rng(0).standard_normal((n, 5)), k=6, min_similarity=0.3)

    def published(seed):
        network = package.Infomap(f"--two-level --directed --silent --seed {seed}")
        for i, j, d in zip(graph.source, graph.target, graph.distance, strict=True):
            network.add_link(int(i), int(j), float(np.float32(1) - d))
        result = network.run()
        found = result.modules()
        return partition([found.get(i, -1) for i in range(n)]), result.codelength

    module, length = modules(graph)
    np.testing.assert_array_equal(module, published(123)[0])
    assert length == pytest.approx(published(123)[1], abs=1e-12)
    assert not np.array_equal(module, published(124)[0])


def test_weights_and_directions_of_edges_count(package):
    """A chain of six items whose strong links, or whose directions, make the modules."""
    source, target = (
        np.array([0, 1, 1, 2, 2, 3, 3, 4, 4, 5]),
        np.array([1, 0, 2, 1, 3, 2, 4, 3, 5, 4]),
    )

    def label(similarity):
        graph = Graph(6, source, target, np.float32(1) - np.array(similarity, np.float32), 0.5)
        return module_labels(graph, min_size=1).labels.tolist()

    weak = 0.02
    assert label([1, 1, 1, 1, weak, weak, 1, 1, 1, 1]) == [0, 0, 0, 1, 1, 1]
    assert label([1, 1, weak, weak, 1, 1, weak, weak, 1, 1]) == [0, 0, 1, 1, 2, 2]
    graph = Graph(6, source, target, np.zeros(10, np.float32), 0.5)
    turned = Graph(6, target, source, graph.distance, 0.5)
    np.testing.assert_array_equal(modules(turned)[0], modules(graph)[0])
    one_way = np.flatnonzero(source < target)
    forward = Graph(6, source[one_way], target[one_way], np.zeros(5, np.float32), 0.5)
    assert modules(forward)[1] != pytest.approx(modules(graph)[1])


@pytest.mark.parametrize(
    ("name", "value"),
    [("k", 3), ("min_similarity", 0.9), ("min_size", 12)],
)
def test_every_option_changes_labels(name, value, package):
    f = people(np.random.default_rng(4), 120)
    plain = knn_infomap(f)
    defaults = {"k": 15, "min_similarity": 0.5, "min_size": 5}
    np.testing.assert_array_equal(knn_infomap(f, **defaults).labels, plain.labels)
    assert not np.array_equal(knn_infomap(f, **{**defaults, name: value}).labels, plain.labels)


def test_engines_agree(package):
    f = people(np.random.default_rng(5), 120)
    host, device = (knn_infomap(f, engine=engine) for engine in ENGINES)
    np.testing.assert_array_equal(host.labels, device.labels)


@pytest.mark.parametrize("n", [1, 2, 20])
def test_no_edges(n, package):
    found = knn_infomap(np.eye(n, dtype=np.float32))
    assert found.labels.tolist() == [-1] * n and found.labels.dtype == np.int32
    assert found.num_clusters == 0
    assert found.diagnostics == {
        "edges": 0,
        "singles": n,
        "modules": 0,
        "clusters": 0,
        "outliers": n,
        "codelength": 0.0,
    }


def test_one_giant_module(package):
    f, _ = blobs(np.random.default_rng(6), [40])
    found = knn_infomap(f)
    assert found.labels.tolist() == [0] * 40 and found.num_clusters == 1
    assert found.diagnostics["modules"] == 1 and found.diagnostics["edges"] == 40 * 14


def test_fewer_items_than_neighbours(package):
    f, centre = blobs(np.random.default_rng(7), [5, 4])
    found = knn_infomap(f)
    np.testing.assert_array_equal(found.labels, in_order_of_members(centre, centre == 0))
    assert found.diagnostics["edges"] == 5 * 4 + 4 * 3


def test_copies_share_a_cluster(package):
    f, centre = blobs(np.random.default_rng(8), [30, 20, 6])
    f[centre == 0] = f[np.argmax(centre == 0)]  # twice as many as the lists have columns
    graph = knn_graph(f)
    assert not len(graph.singles)
    np.testing.assert_array_equal(module_labels(graph).labels, in_order_of_members(centre))


def test_it_is_silent(package, capfd):
    f, _ = blobs(np.random.default_rng(9), [8, 9])
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        knn_infomap(f)
    assert capfd.readouterr() == ("", "")


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "infomap", None)
    message = r"clustering by Infomap needs infomap: pip install 'ccafl_jax\[infomap\]'$"
    with pytest.raises(ImportError, match=message):
        modules(knn_graph(np.eye(3)))
    # Before the search, which may take long: these features would be refused by it.
    with pytest.raises(ImportError, match=message):
        knn_infomap(np.full((3, 3), np.nan))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 1}, "k is 1; expected a whole number of neighbours, 2 or more"),
        ({"k": 2.5}, "k is 2.5; expected a whole number of neighbours"),
        ({"min_similarity": 0}, "min_similarity is 0; expected a cosine above 0"),
        ({"min_similarity": 1.5}, "min_similarity is 1.5; expected a cosine above 0"),
        ({"min_similarity": np.nan}, "min_similarity is nan; expected a cosine above 0"),
        ({"min_size": 0}, "min_size is 0; expected a whole number of items, 1 or more"),
        ({"min_size": 1.5}, "min_size is 1.5; expected a whole number of items"),
        ({"engine": "gpu"}, "engine is 'gpu', must be one of auto, host, device"),
    ],
)
def test_options_out_of_range(options, message, package):
    with pytest.raises(ValueError, match=message):
        knn_infomap(np.eye(4), **options)


def test_features_that_cannot_be_searched():
    f = people(np.random.default_rng(10), 8)
    f[5, 1] = np.nan
    with pytest.raises(ValueError, match=r"1 of 8 .* NaN or infinite \(first: row 5\)"):
        knn_graph(f)
    with pytest.raises(ValueError, match=r"2 of 3 .* zero vectors \(first: row 0\)"):
        knn_graph(np.diag([0.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="features must be"):
        knn_graph(np.ones(4))
    with pytest.raises(ValueError, match="features must be"):
        knn_graph(np.ones((0, 4)))


@pytest.mark.parametrize(
    ("indices", "scores", "message"),
    [
        ([[0.0], [1.0]], [[1], [1]], r"neighbours are float64 of shape \(2, 1\)"),
        ([0, 1], [1, 1], r"neighbours are int64 of shape \(2,\) with scores \(2,\)"),
        ([[0], [1]], [[1, 1], [1, 1]], r"with scores \(2, 2\); expected indices and cosines"),
        ([[0], [2]], [[1], [1]], r"neighbours are 0..2; expected rows of the same set, 0..1"),
        ([[-2], [1]], [[1], [1]], r"neighbours are -2..1; expected"),
        (np.zeros((0, 3), int), np.zeros((0, 3)), "neighbours are empty; expected"),
        ([[0, 1], [0, 0]], [[1, 1], [1, 1]], r"1 neighbour lists \(first: row 1\) hold an item"),
        ([[0, 1], [1, 0]], [[1, 1], [1, np.nan]], r"cosines of 1 .* \(first: row 1\) are NaN"),
        ([[0, 1], [1, 0]], [[1, -np.inf], [1, 1]], r"cosines of 1 .* \(first: row 0\) are NaN"),
    ],
)
def test_lists_that_do_not_fit(indices, scores, message):
    with pytest.raises(ValueError, match=message):
        graph_of_lists(Neighbors(np.array(indices), np.array(scores, np.float32)))
