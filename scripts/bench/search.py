"""Compressed galleries against the float32 engine: mAP, recall, bytes and queries a second.

Synthetic features around one centre for each person, whose directions fall in strength as those of
trained encoders do. Every form answers the same queries, with and without re-scored candidates. All
works run in one process, one after the other in each repeat, so that ratios are of one machine at
one time. The floor is the product of the queries and the float32 gallery alone, which exact search
cannot do without. mAP is of the `--depth` best images: matches behind them count as never found.
"""

import argparse
import functools
import pathlib
import sys
import tempfile
import time
from typing import Any

import numpy as np
from measuring import machine, peak_bytes, spread, write

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

EXAMPLES = """\
examples:
  python scripts/bench/search.py                                        # 100,000 x 512
  python scripts/bench/search.py --json results/search.json --docs docs/search.md
  python scripts/bench/search.py --gallery 1000000 --queries 256 --repeats 3 \\
      --forms float32 float16 int8 pca-128 --json results/search_million.json \\
      --docs docs/search.md --table million
"""
FORMS = ("float32", "float16", "int8", "int8_dim", "pca-256", "pca-128", "pca-64")


def main() -> int:
    """Measures, prints a table and returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gallery", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--queries", type=int, default=512)
    parser.add_argument("--depth", type=int, default=100, help="of the lists that are scored")
    parser.add_argument("--rescore", type=int, default=200, help="candidates that are re-scored")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--forms", nargs="+", default=FORMS)
    parser.add_argument("--json", type=pathlib.Path, help="file for all figures")
    parser.add_argument("--docs", type=pathlib.Path, help="page whose table is rewritten")
    parser.add_argument("--table", default="search", help="name of the table in the page")
    options = parser.parse_args()
    results = measure(options)
    markdown = table(results)
    print(markdown)
    write(results, options.json, options.docs, options.table, markdown)
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    from ccafl_jax.search import build, open_index

    query, features, query_pid = people(options)
    forms = [form for form in options.forms if form in FORMS and _fits(form, options.dim)]
    works = [(form, rescore) for form in forms for rescore in (0, options.rescore)]
    works = [(form, rescore) for form, rescore in works if form != "float32" or not rescore]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        opened = {}
        for form in forms:
            build(features, form=form).save(pathlib.Path(folder) / form)
            start = time.perf_counter()
            opened[form] = open_index(pathlib.Path(folder) / form)
            found[form] = {
                "bytes": opened[form].gallery.nbytes,
                "open_seconds": time.perf_counter() - start,
                "searches": {},
            }
        seconds: dict[tuple[str, int], list[float]] = {work: [] for work in works}
        best, floor, multiply = {}, [], multiplier()
        for repeat in range(options.repeats + 1):  # the first compiles and is not counted
            start = time.perf_counter()
            multiply(query, features.features)
            floor += [time.perf_counter() - start] if repeat else []
            for form, rescore in works:
                start = time.perf_counter()
                nearest = opened[form].search(query, options.depth, rescore=rescore)
                if repeat:
                    seconds[form, rescore].append(time.perf_counter() - start)
                best[form, rescore] = nearest.indices
        exact = best["float32", 0]
        for form, rescore in works:
            precision = average_precision(best[form, rescore], query_pid, features.pid)
            ratios = [
                base / mine
                for mine, base in zip(seconds[form, rescore], seconds["float32", 0], strict=True)
            ]
            found[form]["searches"][str(rescore)] = {
                "mAP": float(precision.mean()),
                "recall10": recall(best[form, rescore], exact, 10),
                "same_order": float(np.mean(best[form, rescore] == exact)),
                "seconds": spread(seconds[form, rescore]),
                "queries_a_second": options.queries
                / float(np.median(np.array(seconds[form, rescore]))),
                "speed_ratio": spread(ratios),
            }
    sizes = {name: getattr(options, name) for name in ("gallery", "dim", "queries", "depth")}
    return {
        "device": machine(),
        "sizes": {**sizes, "rescore": options.rescore, "repeats": options.repeats},
        "floor": {
            "seconds": spread(floor),
            "speed_ratio": spread(
                [base / mine for mine, base in zip(floor, seconds["float32", 0], strict=True)]
            ),
        },
        "forms": found,
        "peak_bytes": peak_bytes(),
    }


def multiplier():
    """What multiplies queries with a gallery and does nothing with the products."""
    import jax

    from ccafl_jax import numerics

    product = jax.jit(functools.partial(numerics.einsum, "qd,gd->qg"))

    def multiply(query: np.ndarray, gallery: np.ndarray) -> None:
        for start in range(0, len(gallery), 2**16):
            product(query, gallery[start : start + 2**16]).block_until_ready()

    return multiply


def people(options: argparse.Namespace):
    """Queries, a gallery as a set of features, and the identities of the queries."""
    from ccafl_jax.scoring.feature_set import FeatureSet

    rng = np.random.default_rng(0)
    count = max(options.gallery // 20, 2)
    spectrum = (1.0 / np.sqrt(1.0 + np.arange(options.dim))).astype(np.float32)
    rotation = np.linalg.qr(rng.standard_normal((options.dim, options.dim)))[0].astype(np.float32)
    centres = rng.standard_normal((count, options.dim), np.float32)
    shared = rng.standard_normal(options.dim, np.float32)  # what all features have in common

    def seen(pid: np.ndarray) -> np.ndarray:
        values = np.empty((len(pid), options.dim), np.float32)
        for start in range(0, len(pid), 8192):
            part = pid[start : start + 8192]
            noise = rng.standard_normal((len(part), options.dim), np.float32)
            values[start : start + 8192] = (
                (centres[part] + 1.0 * noise + 0.5 * shared) * spectrum
            ) @ rotation
        return values / np.linalg.norm(values, axis=1, keepdims=True)

    pid = rng.integers(0, count, options.gallery)
    query_pid = rng.integers(0, count, options.queries)
    features = FeatureSet(
        dataset="",
        features=seen(pid),
        pid=pid,
        camid=np.zeros(len(pid), np.int32),
        part=np.ones(len(pid), np.int8),
        names=np.full(len(pid), ""),
        camera_codes=(1,),
        meta={"fingerprint": "a" * 64},
    )
    return seen(query_pid), features, query_pid


def average_precision(
    indices: np.ndarray, query_pid: np.ndarray, gallery_pid: np.ndarray
) -> np.ndarray:
    """Of the lists, float64[Q]: matches that a list does not hold count as never found."""
    hits = gallery_pid[indices] == query_pid[:, None]
    total = np.bincount(gallery_pid, minlength=query_pid.max() + 1)[query_pid]
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    return np.where(hits, precision, 0).sum(axis=1) / np.maximum(total, 1)


def recall(indices: np.ndarray, exact: np.ndarray, k: int) -> float:
    """Share of the k best by float32 that are among the k best."""
    same = indices[:, :k, None] == exact[:, None, :k]
    return float(same.any(axis=1).mean())


def _fits(form: str, dim: int) -> bool:
    return not form.startswith("pca-") or int(form.removeprefix("pca-")) < dim


def _speed(timed: dict[str, Any], queries: int) -> tuple[str, str]:
    """Queries a second, and the speed beside float32, with their extent."""
    seconds, ratio = timed["seconds"], timed["speed_ratio"]
    low, middle, high = (queries / seconds[name] for name in ("max", "median", "min"))
    return (
        f"{middle:,.0f} ({low:,.0f} to {high:,.0f})",
        f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})",
    )


def table(results: dict[str, Any]) -> str:
    """The figures in Markdown."""
    lines = [
        "| gallery | bytes an image | re-scored | mAP | change | best 10 kept | "
        "queries a second | speed, x float32 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    count = results["sizes"]["gallery"]
    base = results["forms"]["float32"]["searches"]["0"]["mAP"]
    queries = results["sizes"]["queries"]
    for form, found in results["forms"].items():
        for rescore, search in found["searches"].items():
            cells = [
                f"`{form}`",
                f"{found['bytes'] / count:,.0f}",
                rescore if rescore != "0" else "",
                f"{100 * search['mAP']:.2f}",
                f"{100 * (search['mAP'] - base):+.2f}" if form != "float32" else "",
                f"{100 * search['recall10']:.1f} %",
                *_speed(search, queries),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    cells = ["products alone", "", "", "", "", "", *_speed(results["floor"], queries)]
    lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
