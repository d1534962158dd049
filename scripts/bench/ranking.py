"""Time and memory of the ranking metrics on synthetic clustered features.

    python scripts/bench/ranking.py                      # size of Market-1501
    python scripts/bench/ranking.py --queries 11659 --gallery 82161 --ids 3060 --junk 0

Prints one JSON object: medians and spread over the repeats, split into matrix product and the
rest, the peak resident memory, and the time that sorting every row with NumPy would take
(measured on a sample of the queries, whose average precisions must agree).
"""

import argparse
import json
import pathlib
import resource
import statistics
import sys
import time

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from ccafl_jax.evaluation import ranking


def main() -> None:
    """Parses the flags, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=3368)
    parser.add_argument("--gallery", type=int, default=19732)
    parser.add_argument("--junk", type=int, default=3819)
    parser.add_argument("--ids", type=int, default=750)
    parser.add_argument("--cameras", type=int, default=6)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sample", type=int, default=64, help="queries ranked by NumPy as well")
    args = parser.parse_args()

    data = synthetic(args)
    start = time.perf_counter()
    result = ranking.rank(*data)
    first = time.perf_counter() - start
    whole = timed(lambda: ranking.rank(*data), args.repeats)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    product = timed(lambda: bare_product(*data[:2], data[3]), args.repeats)
    sample_seconds, sample_ap = numpy_average_precision(data, args.sample)
    difference = np.max(np.abs(sample_ap - result.ap[: args.sample]))
    print(
        json.dumps(
            {
                "setting": vars(args),
                "device": jax.devices()[0].device_kind,
                "first_call_s": round(first, 3),
                "rank_s": spread(whole),
                "bare_product_s": spread(product),
                "ratio_to_product": round(statistics.median(whole) / statistics.median(product), 2),
                "peak_rss_mb": round(peak / 1024),
                "numpy_argsort_s_extrapolated": round(
                    sample_seconds * args.queries / args.sample, 1
                ),
                "largest_ap_difference_on_sample": float(difference),
                "summary": result.summary(),
            },
            indent=1,
        )
    )


def synthetic(args: argparse.Namespace) -> tuple[np.ndarray, ...]:
    """Features around one centre per identity, with the label counts of a real test set."""
    rng = np.random.default_rng(0)
    # Number of images per identity is long-tailed; junk and distractors come as in Market-1501.
    weight = rng.gamma(2.0, size=args.ids)
    gallery_pid = rng.choice(args.ids, args.gallery - args.junk, p=weight / weight.sum()) + 1
    gallery_pid = np.concatenate([gallery_pid, np.full(args.junk, ranking.JUNK)])
    query_pid = rng.integers(1, args.ids + 1, args.queries)
    camids = [rng.integers(0, args.cameras, len(pid)) for pid in (query_pid, gallery_pid)]
    centre = rng.standard_normal((args.ids + 2, args.dim), np.float32)

    def features(pid):
        noise = rng.standard_normal((len(pid), args.dim), np.float32)
        noise *= 3.0
        noise += centre[pid]
        return noise

    return (features(query_pid), features(gallery_pid), query_pid, gallery_pid, *camids)


def bare_product(query: np.ndarray, gallery: np.ndarray, gallery_pid: np.ndarray) -> None:
    """The similarities alone, in blocks of the same size."""
    gallery = jax.numpy.asarray(gallery)[np.flatnonzero(gallery_pid != ranking.JUNK)]
    product = jax.jit(lambda q, g: jax.numpy.einsum("qd,gd->qg", q, g, precision="highest"))
    block = ranking.default_block(len(gallery))
    for start in range(0, len(query), block):
        product(query[start : start + block], gallery).block_until_ready()


def numpy_average_precision(data: tuple[np.ndarray, ...], sample: int) -> tuple[float, np.ndarray]:
    """Seconds and average precisions of sorting whole rows, as evaluators commonly do."""
    query, gallery, query_pid, gallery_pid, query_camid, gallery_camid = data
    query = query[:sample] / np.linalg.norm(query[:sample], axis=1, keepdims=True)
    gallery = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    scores = query @ gallery.T
    start = time.perf_counter()
    result = np.zeros(sample)
    for row in range(sample):
        order = np.argsort(-scores[row], kind="stable")
        pid, camid = gallery_pid[order], gallery_camid[order]
        same_id = pid == query_pid[row]
        keep = (pid != ranking.JUNK) & ~(same_id & (camid == query_camid[row]))
        hits = same_id[keep]
        places = np.flatnonzero(hits) + 1
        if places.size:
            result[row] = np.mean(np.arange(1, places.size + 1) / places)
    return time.perf_counter() - start, result


def timed(work, repeats: int) -> list[float]:
    """Seconds of each of `repeats` runs."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return seconds


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {
        "median": round(statistics.median(seconds), 3),
        "min": round(min(seconds), 3),
        "max": round(max(seconds), 3),
    }


if __name__ == "__main__":
    main()
