"""Time and memory of pseudo labels on synthetic features, at the sizes of real training sets.

Each work runs in a process of its own, whose peak memory is the operating system's count (features
included). Printed beside the whole: the time of its parts, and of the bare matrix products of the
same size in the same run. Every result is compared there with a plain reference: neighbours with a
float64 product of sampled items, distances with sets and dictionaries in float64, clusters with
scikit-learn's DBSCAN of the same pairs, pivots and what they remove with plain loops, and at the
smallest size the whole with a dense matrix.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from measuring import in_own_process, machine, peak_bytes, spread, write

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from ccafl_jax.command_line import Parser, one_line_errors

EXAMPLES = """\
examples:
  python scripts/bench/pseudo_labels.py                                # all works but the largest
  python scripts/bench/pseudo_labels.py --works half_million --repeats 0
  python scripts/bench/pseudo_labels.py --json results/pseudo_labels_cpu.json \\
      --docs docs/pseudo_labels.md --table cpu
  python scripts/bench/pseudo_labels.py --scale 0.1                    # a tenth of every size
"""

K1, K2, EPS, MIN_SAMPLES = 30, 6, 0.6, 4
IMAGES = 17  # of an identity


class Work(NamedTuple):
    """A set, and the goals: seconds and bytes."""

    items: int
    dim: int
    cameras: int
    noise: float  # clusters: so much that many images are outliers, whose rows are the most work
    kind: str  # of labels, a key of `MEASURED`
    cpu_seconds: float | None
    cpu_bytes: float | None
    gpu_seconds: float
    title: str


WORKS = {
    "market1501": Work(12_936, 2048, 6, 3.5, "clusters", 5, 2e9, 0.5, "Market-1501 size"),
    "msmt17": Work(32_621, 2048, 15, 3.4, "clusters", 30, 3e9, 2, "MSMT17 size"),
    "half_million": Work(500_000, 512, 20, 3.0, "clusters", None, 12e9, 60, "half a million"),
    "association": Work(
        4_821, 2048, 15, 3.0, "association", 1, None, 0.2, "association of MSMT17's classes"
    ),
    "refinement": Work(
        32_621, 2048, 15, 0.8, "refinement", 30, 3e9, 30, "CALR's labels of MSMT17, an epoch"
    ),
}


def main() -> int:
    """Measures, prints a table and returns the exit status."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    small = [name for name in WORKS if name != "half_million"]
    parser.add_argument("--works", nargs="+", choices=WORKS, default=small)
    parser.add_argument(
        "--repeats", type=int, default=5, help="0: the parts are timed once, and make the whole"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of items")
    parser.add_argument("--sample", type=int, default=64, help="items whose neighbours are checked")
    parser.add_argument("--dense", type=int, default=13_000, help="largest set of the dense check")
    parser.add_argument("--json", type=pathlib.Path, help="file for all figures; others are kept")
    parser.add_argument("--docs", type=pathlib.Path, help="page whose table is rewritten")
    parser.add_argument("--table", default="cpu", help="name of the table in the page")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        work = WORKS[options.alone]
        work = work._replace(items=max(64, round(work.items * options.scale)))
        print(json.dumps(MEASURED[work.kind](work, options)))
        return 0
    results: dict[str, Any] = {"scale": options.scale, "works": {}}
    if options.json and options.json.exists():
        results = json.loads(options.json.read_text())
    for name in options.works:
        flags = {flag: getattr(options, flag) for flag in ("repeats", "scale", "sample", "dense")}
        found = results["works"][name] = in_own_process(__file__, name, flags)
        judge(found, WORKS[name])
        print(line(name, found), flush=True)
    wrong = [name for name, found in results["works"].items() if found["missed"]]
    print(f"goals missed or results that differ: {', '.join(wrong) or 'none'}")
    name = f"pseudo_labels_{options.table}"
    write(results, options.json, options.docs, name, table(results))
    return 1 if wrong else 0


def judge(found: dict[str, Any], work: Work) -> None:
    """Notes the goals, and whether one was missed or a comparison failed."""
    cpu = found["device"]["platform"] == "cpu"
    found["goal_seconds"] = work.cpu_seconds if cpu else work.gpu_seconds
    found["goal_bytes"] = work.cpu_bytes if cpu else None
    slow = found["goal_seconds"] and found["seconds"]["median"] > found["goal_seconds"]
    large = found["goal_bytes"] and found["peak_bytes"] > found["goal_bytes"]
    found["missed"] = bool(slow or large or not found["same_as_reference"])


def synthetic(work: Work) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features around a centre for each identity and camera, identities and cameras."""
    rng = np.random.default_rng(0)
    identities = max(1, work.items // IMAGES)
    weight = rng.gamma(2.0, size=identities)  # numbers of images are long-tailed
    pid = rng.choice(identities, work.items, p=weight / weight.sum())
    camid = rng.integers(0, work.cameras, work.items)
    centre = rng.standard_normal((identities, work.dim), np.float32)
    camera = 0.5 * rng.standard_normal((work.cameras, work.dim), np.float32)
    # Similarities of strangers shrink with the root of the dimension.
    noise = work.noise * (work.dim / 2048) ** 0.25
    features = np.empty((work.items, work.dim), np.float32)
    for start in range(0, work.items, 4096):
        part = features[start : start + 4096]
        rng.standard_normal(out=part, dtype=np.float32)
        part *= noise
        part += centre[pid[start : start + 4096]] + camera[camid[start : start + 4096]]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return features, pid, camid


def clusters(work: Work, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of Jaccard and DBSCAN."""
    import jax

    from ccafl_jax.neighbors.top_k import self_top_k
    from ccafl_jax.pseudo_labels.dbscan import dbscan, jaccard_dbscan
    from ccafl_jax.pseudo_labels.jaccard import jaccard

    features, pid, _ = synthetic(work)
    accelerated = jax.default_backend() != "cpu"
    given = jax.block_until_ready(jax.device_put(features)) if accelerated else features
    settings = {"k1": K1, "k2": K2, "eps": EPS, "min_samples": MIN_SAMPLES}
    seconds, labels = repeated(lambda: jaccard_dbscan(given, **settings).labels, options.repeats)
    parts: dict[str, float] = {}

    def timed(name: str, function: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = function()
        jax.block_until_ready(getattr(result, "weights", None))
        parts[name] = time.perf_counter() - start
        return result

    lists = timed("neighbours", lambda: self_top_k(given, K1).indices)
    rows = timed("encoding", lambda: jaccard(given, k1=K1, k2=K2, neighbors=lists))
    pairs = timed("pairs", lambda: rows.within(EPS, copies=False))
    count = np.bincount(rows.originals, minlength=len(rows))
    found = timed("dbscan", lambda: dbscan(pairs, len(rows), min_samples=MIN_SAMPLES, count=count))
    peak = peak_bytes()
    if labels is None:
        seconds, labels = [sum(parts.values())], found[rows.originals]
    found = {
        "device": machine(),
        "sizes": work._asdict(),
        "seconds": spread(seconds),
        "parts_seconds": parts,
        "bare_product_seconds": bare_product(work, accelerated),
        "peak_bytes": peak,
        "features_bytes": features.nbytes,
        "clusters": int(labels.max()) + 1,
        "identities": len(np.unique(pid)),
        "pairs": len(pairs.first),
        "outliers": int(np.sum(labels < 0)),
    }
    found["ratio_to_product"] = found["seconds"]["median"] / found["bare_product_seconds"]
    if accelerated:
        found["device_peak_bytes"] = (jax.devices()[0].memory_stats() or {}).get(
            "peak_bytes_in_use"
        )
    found |= compared(features, lists, rows, labels, options)
    return found


def association(work: Work, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of an association of classes."""
    from ccafl_jax.pseudo_labels import associate

    features, _, camid = synthetic(work)
    seconds, found = repeated(lambda: associate(features, camid, rate=1.3), options.repeats or 1)
    start = time.perf_counter()
    expected = plain_edges(features, camid, int(1.3 * work.items))
    plain = time.perf_counter() - start
    return {
        "device": machine(),
        "sizes": work._asdict(),
        "seconds": spread(seconds),
        "peak_bytes": peak_bytes(),
        "features_bytes": features.nbytes,
        "accepted": len(found.edges),
        "clusters": found.num_clusters,
        "reference_seconds": plain,
        "same_as_reference": bool(np.array_equal(found.edges, expected)),
    }


def refinement(work: Work, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of CALR's labels: modules of a graph, refined, and weights of clusters."""
    import jax

    from ccafl_jax.methods.calr.config import CALRConfig
    from ccafl_jax.methods.calr.labels import global_labels, refine_by_pivots
    from ccafl_jax.neighbors.top_k import self_top_k
    from ccafl_jax.pseudo_labels.infomap import knn_graph

    features, pid, camid = synthetic(work)
    rng = np.random.default_rng(3)
    # Clusters of a camera alone: its people, a tenth of whose images went astray.
    local = np.where(rng.random(work.items) < 0.1, rng.permutation(pid), pid)
    config = CALRConfig()
    accelerated = jax.default_backend() != "cpu"
    given = jax.block_until_ready(jax.device_put(features)) if accelerated else features
    seen: dict[str, Any] = {}

    def refiner(labels, *arguments, **named):
        seen.update(labels=labels, refined=refine_by_pivots(labels, *arguments, **named))
        return seen["refined"]

    def whole():
        return global_labels(given, camid, local, pid, config, epoch=10, refiner=refiner)

    seconds, found = repeated(whole, options.repeats or 1)
    start = time.perf_counter()
    graph = knn_graph(given, k=config.clustering.k, min_similarity=config.clustering.min_similarity)
    neighbours = time.perf_counter() - start
    peak, product = peak_bytes(), bare_product(work, accelerated)
    sample = rng.choice(work.items, min(options.sample, work.items), replace=False)
    difference = score_difference(features, self_top_k(given, config.clustering.k).indices, sample)
    expected = plain_refinement(graph, seen["labels"], camid, local)
    same = np.array_equal(found["labels"], expected) and difference < 1e-5
    return {
        "device": machine(),
        "sizes": work._asdict(),
        "seconds": spread(seconds),
        "parts_seconds": {
            "neighbours": neighbours,
            "modules": statistics.median(seconds) - neighbours,
        },
        "bare_product_seconds": product,
        "ratio_to_product": statistics.median(seconds) / product,
        "peak_bytes": peak,
        "features_bytes": features.nbytes,
        "edges": len(graph.source),
        "clusters": int(found["report"]["clusters"]),
        "identities": len(np.unique(pid)),
        "pivots": int(found["report"]["pivots"]),
        "removed": int(found["report"]["removed"]),
        "outliers": int(np.sum(found["labels"] < 0)),
        "largest_score_difference": difference,
        "same_as_reference": bool(same),
    }


MEASURED = {"clusters": clusters, "association": association, "refinement": refinement}


def repeated(function: Callable[[], Any], repeats: int) -> tuple[list[float], Any]:
    """Seconds of calls after a first one, which compiles, and the last result."""
    seconds, result = [], None
    for _ in range(repeats + 1 if repeats else 0):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return seconds[1:], result


def bare_product(work: Work, accelerated: bool) -> float:
    """Median seconds of the similarities alone: blocks of the engine's shape that are at hand.

    On CPUs each product serves both of its sides, which is half of the square.
    """
    import jax

    from ccafl_jax import numerics

    rows, columns = (8192, 32_768) if accelerated else (2048, 4096)
    pairs = work.items**2 / (1 if accelerated else 2)
    product = jax.jit(lambda q, g: numerics.einsum("qd,gd->qg", q, g))
    rng = np.random.default_rng(1)
    left, right = (
        jax.device_put(rng.standard_normal((size, work.dim), np.float32))
        for size in (rows, columns)
    )
    product(left, right).block_until_ready()
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        product(left, right).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) * pairs / (rows * columns)


def compared(features, lists, rows, labels, options) -> dict[str, Any]:
    """How far the results lie from plain references."""
    rng = np.random.default_rng(2)
    sample = rng.choice(len(features), min(options.sample, len(features)), replace=False)
    found: dict[str, Any] = {"largest_score_difference": score_difference(features, lists, sample)}
    few = np.sort(sample[:8])
    expected, near = plain_distances(features, lists, rows, few)
    found["largest_distance_difference"] = float(np.abs(expected - near).max())
    same = [
        found["largest_score_difference"] < 1e-5,
        found["largest_distance_difference"] < 1e-5,
        np.array_equal(labels, sklearn_labels(rows)),
    ]
    if len(features) <= options.dense:
        start = time.perf_counter()
        distances = dense_distances(features, lists)
        middle = time.perf_counter()
        from sklearn.cluster import DBSCAN

        model = DBSCAN(eps=EPS, min_samples=MIN_SAMPLES, metric="precomputed")
        reference = model.fit(distances).labels_
        found["dense_seconds"] = middle - start
        found["dense_dbscan_seconds"] = time.perf_counter() - middle
        found["dense_peak_bytes"] = peak_bytes()
        found["labels_that_differ"] = int(np.sum(reference != labels))
        same.append(found["labels_that_differ"] == 0)
    found["same_as_reference"] = bool(all(same))
    return found


def score_difference(features, lists, sample) -> float:
    """Largest difference of the sorted scores of neighbours from those of a float64 product."""
    unit = features[sample].astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    scores = np.empty((len(sample), len(features)))
    for start in range(0, len(features), 8192):
        part = features[start : start + 8192].astype(np.float64)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
        scores[:, start : start + 8192] = unit @ part.T
    best = -np.sort(-scores, axis=1)[:, : lists.shape[1]]
    own = np.take_along_axis(scores, lists[sample], axis=1)
    return float(np.abs(own - best).max())


def plain_distances(features, lists, rows, few) -> tuple[np.ndarray, np.ndarray]:
    """Distances of a few items to what lies near them, by sets and dictionaries and by the rows."""
    half = min(round(K1 / 2) + 1, lists.shape[1])
    members: dict[int, dict[int, float]] = {}

    def reciprocal(i: int, count: int) -> set[int]:
        return {j for j in lists[i, :count].tolist() if i in lists[j, :count]}

    def weights(i: int) -> dict[int, float]:
        if i not in members:
            own = reciprocal(i, K1)
            chosen = set(own)
            for candidate in own:
                theirs = reciprocal(candidate, half)
                if 3 * len(theirs & own) > 2 * len(theirs):
                    chosen |= theirs
            order = sorted(chosen)
            pair = features[[i, *order]].astype(np.float64)
            pair /= np.linalg.norm(pair, axis=1, keepdims=True)
            weight = np.exp(-np.square(pair[1:] - pair[0]).sum(axis=1))
            members[i] = dict(zip(order, weight / weight.sum(), strict=True))
        return members[i]

    def expanded(i: int) -> dict[int, float]:
        total: dict[int, float] = {}
        for neighbour in lists[i, :K2].tolist():
            for member, weight in weights(neighbour).items():
                total[member] = total.get(member, 0.0) + weight / K2
        return total

    expected, found = [], []
    for i, block in zip(few.tolist(), rows.block(few), strict=True):
        own = expanded(i)
        near = np.flatnonzero(block < 0.8)
        for j in near[np.argsort(block[near])][:64].tolist():
            other = expanded(j)
            shared = sum(min(weight, other.get(member, 0.0)) for member, weight in own.items())
            expected.append(0.0 if i == j else 1 - shared / (2 - shared))
            found.append(block[j])
    return np.array(expected), np.array(found)


def sklearn_labels(rows) -> np.ndarray:
    """The labels of scikit-learn's DBSCAN of the same pairs."""
    from scipy import sparse
    from sklearn.cluster import DBSCAN

    first, second, distance = rows.within(EPS)
    every = np.arange(len(rows))
    # A stored zero would do; scikit-learn warns about none.
    value = np.concatenate([np.maximum(distance, 1e-12)] * 2 + [np.full(len(rows), 1e-12)])
    place = np.concatenate([first, second, every]), np.concatenate([second, first, every])
    graph = sparse.csr_matrix((value, place), shape=(len(rows), len(rows)))
    model = DBSCAN(eps=EPS, min_samples=MIN_SAMPLES, metric="precomputed")
    return model.fit(graph).labels_


def dense_distances(features, lists) -> np.ndarray:
    """The Jaccard distance with dense matrices and a loop over items, as commonly written."""
    n, half = len(features), round(K1 / 2) + 1

    def mutual(count: int) -> list[np.ndarray]:
        forward = lists[:, :count]
        return [row[(lists[row, :count] == i).any(axis=1)] for i, row in enumerate(forward)]

    full, within = mutual(K1), mutual(half)
    weights = np.zeros((n, n), np.float32)
    for i in range(n):
        chosen = [full[i]]
        for candidate in full[i]:
            if 3 * np.isin(within[candidate], full[i]).sum() > 2 * len(within[candidate]):
                chosen.append(within[candidate])
        order = np.unique(np.concatenate(chosen))
        weight = np.exp(-(2 - 2 * (features[order] @ features[i])))
        weights[i, order] = weight / weight.sum()
    weights = np.stack([weights[row].mean(axis=0) for row in lists[:, :K2]])
    columns = [np.flatnonzero(weights[:, i]) for i in range(n)]
    distances = np.empty((n, n), np.float32)
    for i in range(n):
        shared = np.zeros(n, np.float32)
        for member in np.flatnonzero(weights[i]):
            other = columns[member]
            shared[other] += np.minimum(weights[i, member], weights[other, member])
        distances[i] = np.maximum(1 - shared / (2 - shared), 0)
    return distances


def plain_edges(features: np.ndarray, camid: np.ndarray, budget: int) -> np.ndarray:
    """Accepted pairs from the whole float64 matrix and a full sort."""
    unit = features.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    a, b = np.triu_indices(len(unit), 1)
    other = camid[a] != camid[b]
    a, b = a[other], b[other]
    distance = np.round(2 - 2 * (unit @ unit.T)[a, b], 12)
    order = np.lexsort((b, a, distance))[:budget]
    taken: set[tuple[int, int]] = set()
    edges = []
    for first, second in zip(a[order].tolist(), b[order].tolist(), strict=True):
        mine, theirs = (first, int(camid[second])), (second, int(camid[first]))
        if mine not in taken and theirs not in taken:
            taken |= {mine, theirs}
            edges.append((first, second))
    return np.array(edges, np.int32).reshape(-1, 2)


def plain_refinement(graph, labels, camid, local) -> np.ndarray:
    """The labels without the images that disagree with their cluster's pivot, in plain loops."""
    score = [0.0] * graph.size
    edges = zip(graph.source.tolist(), graph.distance.tolist(), strict=True)
    for source, distance in edges:
        score[source] += 1 / (distance + graph.mean_distance)
    mean = sum(score) / len(score)
    best: dict[int, int] = {}
    for item, label in enumerate(labels.tolist()):
        if label >= 0 and score[item] > mean:
            before = best.get(label)
            if before is None or score[item] > score[before]:
                best[label] = item
    refined = labels.copy()
    for item, label in enumerate(labels.tolist()):
        pivot = best.get(label)
        if pivot is not None and camid[item] == camid[pivot] and local[item] != local[pivot]:
            refined[item] = -1
    return refined


def line(name: str, found: dict[str, Any]) -> str:
    """The figures of a work in a line."""
    seconds, goal = found["seconds"], found["goal_seconds"]
    text = (
        f"{name:13} {seconds['median']:8.3f} s ({seconds['min']:.3f}-{seconds['max']:.3f}), goal "
        f"{'none' if goal is None else f'{goal:g} s'}; peak {found['peak_bytes'] / 1e9:.2f} GB"
    )
    if "parts_seconds" in found:
        text += "; " + ", ".join(f"{k} {v:.2f} s" for k, v in found["parts_seconds"].items())
        text += f"; bare product {found['bare_product_seconds']:.2f} s"
        text += f"; {found['clusters']} clusters, {found['outliers']} outliers"
    if found.get("device_peak_bytes"):
        text += f"; on the device {found['device_peak_bytes'] / 1e9:.2f} GB"
    return text + ("" if found["same_as_reference"] else "; DIFFERS FROM THE REFERENCE")


def table(results: dict[str, Any]) -> str:
    """The figures in Markdown."""
    lines = [
        "| work | median | extent | goal | peak memory | neighbours | encoding | pairs | DBSCAN "
        "| modules | x bare product |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for found in results["works"].values():
        sizes, seconds = found["sizes"], found["seconds"]
        goals = [f"{found['goal_seconds']:g} s"] if found["goal_seconds"] else []
        goals += [f"{found['goal_bytes'] / 1e9:g} GB"] if found["goal_bytes"] else []
        cells = [
            f"{sizes['title']}, {sizes['items']:,} x {sizes['dim']:,}",
            f"{seconds['median']:.2f} s",
            f"{seconds['min']:.2f} to {seconds['max']:.2f} s",
            ", ".join(goals),
            f"{found['peak_bytes'] / 1e9:.2f} GB",
        ]
        parts = found.get("parts_seconds", {})
        cells += [
            f"{parts[name]:.2f} s" if name in parts else ""
            for name in ("neighbours", "encoding", "pairs", "dbscan", "modules")
        ]
        ratio = found.get("ratio_to_product")
        cells.append(f"{ratio:.2f}" if ratio else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
