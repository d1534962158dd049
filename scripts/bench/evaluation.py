"""Time and memory of rankings on synthetic clustered features, at the sizes of real test sets.

Each work runs in a process of its own, whose peak memory is the operating system's count
(features included). Printed beside the whole: the time of scores (matrix products, with what it
takes to make and store tiles), of ranking and of the rest; the bare matrix product of the same
size in the same run; and what sorting whole rows with NumPy would take, measured on a sample of the
queries whose average precisions must agree.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from measuring import in_own_process, machine, peak_bytes, spread, write

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from ccafl_jax.command_line import Parser, one_line_errors

EXAMPLES = """\
examples:
  python scripts/bench/evaluation.py                                   # all works, as on a CPU
  python scripts/bench/evaluation.py --works market1501 msmt17 --repeats 3
  python scripts/bench/evaluation.py --json results/evaluation.json --docs docs/evaluation.md
  python scripts/bench/evaluation.py --scale 0.1                       # a tenth of every size
"""


class Work(NamedTuple):
    """Sizes of a test set, what is done with it, and the goals: seconds and bytes."""

    queries: int
    gallery: int
    dim: int
    identities: int
    cameras: int
    images: int  # of the identities; the rest of the gallery are distractors
    rerank: tuple[int, int, float] | None
    cpu_seconds: float
    cpu_bytes: float | None
    gpu_seconds: float


MSMT17 = Work(11659, 82161, 2048, 3060, 15, 82161, None, 20, 2e9, 0.5)
WORKS = {
    "market1501": Work(3368, 15913, 2048, 750, 6, 13115, None, 1.5, None, 0.1),
    "msmt17": MSMT17,
    "msmt17_reranked": MSMT17._replace(
        rerank=(20, 6, 0.3), cpu_seconds=150, cpu_bytes=3e9, gpu_seconds=5
    ),
    "million": Work(1000, 1_000_000, 512, 1000, 20, 20_000, None, 20, 4e9, 0.5),
}


def main() -> int:
    """Measures, prints a table and returns the exit status."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of queries, gallery, identities")
    parser.add_argument("--sample", type=int, default=64, help="queries ranked by NumPy as well")
    parser.add_argument("--json", type=pathlib.Path, help="file for all figures")
    parser.add_argument("--docs", type=pathlib.Path, help="page whose table is rewritten")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(measure(scaled(WORKS[options.alone], options.scale), options)))
        return 0
    results: dict[str, Any] = {"scale": options.scale, "works": {}}
    for name in options.works:
        found = results["works"][name] = alone(name, options)
        results["device"] = found.pop("device")
        print(line(name, found), flush=True)
    missed = [name for name, found in results["works"].items() if found["missed"]]
    print(f"goals missed: {', '.join(missed) or 'none'}")
    write(results, options.json, options.docs, "evaluation", table(results))
    return 1 if missed else 0


def alone(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of a work from a process of its own."""
    flags = {flag: getattr(options, flag) for flag in ("repeats", "scale", "sample")}
    found = in_own_process(__file__, name, flags)
    work = WORKS[name]
    cpu = found["device"]["platform"] == "cpu"
    found["goal_seconds"] = work.cpu_seconds if cpu else work.gpu_seconds
    found["goal_bytes"] = work.cpu_bytes if cpu else None
    found["missed"] = found["seconds"]["median"] > found["goal_seconds"] or (
        found["goal_bytes"] is not None and found["peak_bytes"] > found["goal_bytes"]
    )
    return found


def scaled(work: Work, scale: float) -> Work:
    """The same with a share of its sizes."""
    fields = ("queries", "gallery", "identities", "images")
    return work._replace(**{f: max(8, round(getattr(work, f) * scale)) for f in fields})


def measure(work: Work, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of a work."""
    import jax

    from ccafl_jax.evaluation.ranking import rank_by
    from ccafl_jax.evaluation.relevance import relevance
    from ccafl_jax.evaluation.rerank import rerank
    from ccafl_jax.neighbors.similarity import FeatureScores

    query, gallery, *labels = synthetic(work)
    cpu = jax.default_backend() == "cpu"
    if not cpu:
        query, gallery = jax.device_put((query, gallery))
    features_bytes = query.nbytes + gallery.nbytes
    whole, scored, ranked = [], [], []

    def once() -> Any:
        start = time.perf_counter()
        counts = relevance(*labels)
        if work.rerank:
            k1, k2, weight = work.rerank
            scores = rerank(query, gallery, k1=k1, k2=k2, lambda_=weight)
        else:
            scores = FeatureScores(query, gallery)
        prepared = time.perf_counter() - start
        timed = Timed(scores) if cpu else scores
        result = rank_by(timed, counts)
        total = time.perf_counter() - start
        whole.append(total)
        if cpu:
            scored.append(prepared + timed.inside)
            ranked.append(timed.outside)
        return result

    result = once()
    first = whole.pop()
    scored.clear(), ranked.clear()
    for _ in range(options.repeats):
        once()
    peak = peak_bytes()
    product = bare_product(work, options.repeats) if cpu else None
    found = {
        "device": machine(),
        "sizes": work._asdict(),
        "first_call_seconds": first,
        "seconds": spread(whole),
        "peak_bytes": peak,
        "features_bytes": features_bytes,
        "summary": result.summary(),
    }
    if cpu:
        rest = [w - s - r for w, s, r in zip(whole, scored, ranked, strict=True)]
        found |= {
            "scores_seconds": spread(scored),
            "ranking_seconds": spread(ranked),
            "other_seconds": spread(rest),
            "bare_product_seconds": spread(product),
            "ratio_to_product": statistics.median(whole) / statistics.median(product),
        }
    else:
        statistics_of = jax.devices()[0].memory_stats() or {}
        found["device_peak_bytes"] = statistics_of.get("peak_bytes_in_use")
    if not work.rerank:
        seconds, ap = numpy_average_precision(query, gallery, labels, options.sample)
        found["numpy_sort_seconds"] = seconds * work.queries / len(ap)
        found["largest_ap_difference"] = float(np.max(np.abs(ap - result.ap[: len(ap)])))
    return found


class Timed:
    """A score provider that notes the time inside and outside of its blocks."""

    def __init__(self, inner: Any):
        self.inner, self.inside, self.outside = inner, 0.0, 0.0
        self.shape, self.reported = inner.shape, inner.reported

    def blocks(self, *args: Any, **options: Any) -> Iterator:
        """The blocks of the inner one."""
        blocks = iter(self.inner.blocks(*args, **options))
        left = None
        while True:
            start = time.perf_counter()
            self.outside += 0.0 if left is None else start - left
            block = next(blocks, None)
            left = time.perf_counter()
            self.inside += left - start
            if block is None:
                return
            yield block


def synthetic(work: Work) -> tuple[np.ndarray, ...]:
    """Features around one centre per identity, with the label counts of a real test set."""
    rng = np.random.default_rng(0)
    # Number of images per identity is long-tailed; distractors have an identity of their own each.
    weight = rng.gamma(2.0, size=work.identities)
    images = min(work.images, work.gallery)
    gallery_pid = np.concatenate(
        [
            rng.choice(work.identities, images, p=weight / weight.sum()),
            work.identities + np.arange(work.gallery - images),
        ]
    )
    rng.shuffle(gallery_pid)
    query_pid = rng.integers(0, work.identities, work.queries)
    camids = [rng.integers(0, work.cameras, len(pid)) for pid in (query_pid, gallery_pid)]
    centre = rng.standard_normal((work.identities + 1, work.dim), np.float32)

    def features(pid: np.ndarray) -> np.ndarray:
        noise = np.empty((len(pid), work.dim), np.float32)
        for start in range(0, len(pid), 4096):
            part = noise[start : start + 4096]
            rng.standard_normal(out=part, dtype=np.float32)
            part *= 3.0
            part += centre[np.minimum(pid[start : start + 4096], work.identities)]
        return noise

    return (features(query_pid), features(gallery_pid), query_pid, gallery_pid, *camids)


def bare_product(work: Work, repeats: int) -> list[float]:
    """Seconds of the similarities alone: tiles of the engine's shape that are at hand.

    Re-ranking multiplies all images with all, too.
    """
    import jax

    from ccafl_jax import numerics

    product = jax.jit(lambda q, g: numerics.einsum("qd,gd->qg", q, g))
    rng = np.random.default_rng(1)
    tops = [jax.device_put(rng.standard_normal((512, work.dim), np.float32)) for _ in range(4)]
    tiles = [jax.device_put(rng.standard_normal((2048, work.dim), np.float32)) for _ in range(4)]
    pairs = work.queries * work.gallery
    if work.rerank:
        # By symmetry, all against all is half of the square.
        pairs += (work.queries + work.gallery) ** 2 // 2
    count = max(1, round(pairs / (512 * 2048)))
    product(tops[0], tiles[0]).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for number in range(count):
            product(tops[number % 4], tiles[number // 4 % 4]).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return seconds


def numpy_average_precision(
    query: np.ndarray, gallery: np.ndarray, labels: list[np.ndarray], sample: int
) -> tuple[float, np.ndarray]:
    """Seconds and average precisions of sorting whole rows, as evaluators commonly do."""
    query_pid, gallery_pid, query_camid, gallery_camid = labels
    query, gallery = np.asarray(query[:sample], np.float64), np.asarray(gallery)
    query /= np.linalg.norm(query, axis=1, keepdims=True)
    scores = np.empty((len(query), len(gallery)))
    for start in range(0, len(gallery), 8192):
        part = gallery[start : start + 8192].astype(np.float64)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
        scores[:, start : start + 8192] = query @ part.T
    scores = scores.astype(np.float32)
    start = time.perf_counter()
    result = np.zeros(len(query))
    for row in range(len(query)):
        order = np.argsort(-scores[row], kind="stable")
        same_id = gallery_pid[order] == query_pid[row]
        hits = same_id[~(same_id & (gallery_camid[order] == query_camid[row]))]
        places = np.flatnonzero(hits) + 1
        if places.size:
            result[row] = np.mean(np.arange(1, places.size + 1) / places)
    return time.perf_counter() - start, result


def line(name: str, found: dict[str, Any]) -> str:
    """The figures of a work in a line."""
    seconds = found["seconds"]
    text = (
        f"{name:16} {seconds['median']:8.3f} s ({seconds['min']:.3f}-{seconds['max']:.3f}), goal "
        f"{found['goal_seconds']:g} s; peak {found['peak_bytes'] / 1e9:.2f} GB"
    )
    if "ratio_to_product" in found:
        parts = {
            part: found[f"{part}_seconds"]["median"]
            for part in ("scores", "ranking", "other", "bare_product")
        }
        text += "; " + ", ".join(f"{part} {value:.2f} s" for part, value in parts.items())
        text += f"; {found['ratio_to_product']:.2f} x the bare product"
    return text


LABELS: dict[str, Callable[[Work], str]] = {
    "market1501": lambda w: f"Market-1501 size, {sizes(w)}: metrics",
    "msmt17": lambda w: f"MSMT17 size, {sizes(w)}: metrics",
    "msmt17_reranked": lambda w: "MSMT17 size, re-ranked ({}, {}, {:g}): metrics".format(*w.rerank),
    "million": lambda w: f"{sizes(w)}: metrics",
}


def sizes(work: Work) -> str:
    """Queries x gallery x dimensions."""
    return f"{work.queries:,} x {work.gallery:,} x {work.dim:,}"


def table(results: dict[str, Any]) -> str:
    """The figures in Markdown."""
    lines = [
        "| work | median | extent | goal | peak memory | scores | ranking | x bare product |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in results["works"].items():
        seconds = found["seconds"]
        cells = [
            LABELS[name](Work(**found["sizes"])),
            f"{seconds['median']:.2f} s",
            f"{seconds['min']:.2f} to {seconds['max']:.2f} s",
            f"{found['goal_seconds']:g} s"
            + (f", {found['goal_bytes'] / 1e9:g} GB" if found["goal_bytes"] else ""),
            f"{found['peak_bytes'] / 1e9:.2f} GB",
        ]
        if "ratio_to_product" in found:
            cells += [
                f"{found[f'{part}_seconds']['median']:.2f} s" for part in ("scores", "ranking")
            ]
            cells.append(f"{found['ratio_to_product']:.2f}")
        else:
            cells += ["", "", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
