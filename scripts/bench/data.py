"""Speed of preparing, opening, reading and loading data sets.

Synthetic people of Market-1501's number and size (12,936 JPEGs of 64x128) are prepared from a
folder, read at random, loaded decoded and resized to 256x128, and streamed; ten million fabricated
records are opened and planned over in a process of their own, which reports its memory. Floors in
the same run: reading the files' bytes, and PIL alone on one thread. Files are warm in the page
cache.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from ccafl_jax.command_line import Parser, one_line_errors

EXAMPLES = """\
examples:
  python scripts/bench/data.py --json results/data.json --docs docs/data.md
  python scripts/bench/data.py --images 2000 --records 1000000 --repeats 1
"""
BOUNDS = {
    "prepare": 3000,
    "random_records": 15000,
    "load_folder": 1000,
    "load_prepared": 1000,
}
"""Images per second at least."""
MOST = {"open_seconds": 2.0, "peak_bytes": 1e9, "plan_seconds": 10.0}
"""Of the many records."""
LABELS = {
    "read_files": "floor: reading the files' bytes",
    "pil_one_thread": "floor: PIL, one thread, decode and resize",
    "prepare": "preparing from a folder",
    "random_records": "raw records at random",
    "load_folder": "decoded and resized from a folder",
    "load_prepared": "decoded and resized from records",
    "stream_prepared": "streamed in batches of 128 from records",
}
MANY_LABELS = {
    "open_seconds": ("opening, s", 1),
    "peak_bytes": ("peak memory after opening, GB", 1e9),
    "label_seconds": ("labels of intra-camera supervision, s", 1),
    "plan_seconds": ("plan of an epoch, s", 1),
    "peak_bytes_after_plan": ("peak memory after the plan, GB", 1e9),
}


def main() -> int:
    """Measures, prints a table and returns the exit status."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--images", type=int, default=12936)
    parser.add_argument("--records", type=int, default=10_000_000, help="of the fabricated set")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path, help="file for all figures")
    parser.add_argument("--docs", type=pathlib.Path, help="page whose table is rewritten")
    parser.add_argument("--many", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.many:
        print(json.dumps(open_and_plan(options.many)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        results = {"images": options.images, "rates": images_per_second(folder, options)}
        results["records"] = options.records
        results["many"] = many_records(pathlib.Path(folder) / "many", options)
    missed = [name for name, least in BOUNDS.items() if results["rates"][name]["median"] < least]
    missed += [name for name, most in MOST.items() if results["many"][name]["median"] > most]
    print(f"bounds missed: {', '.join(missed) or 'none'}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.docs:
        from ccafl_jax.report.pages import with_table

        options.docs.write_text(with_table(options.docs.read_text(), "data", table(results)))
    return 1 if missed else 0


def table(results: dict) -> str:
    """The figures in Markdown."""
    rates, many = results["rates"], results["many"]
    lines = ["| images per second | median | extent | goal |", "|---|---|---|---|"]
    for name, label in LABELS.items():
        found = rates[name]
        goal = f"{BOUNDS[name]:,}" if name in BOUNDS else ""
        extent = f"{found['min']:,.0f} to {found['max']:,.0f}"
        lines.append(f"| {label} | {found['median']:,.0f} | {extent} | {goal} |")
    lines += ["", f"| {results['records']:,} records | median | goal |", "|---|---|---|"]
    for name, (label, scale) in MANY_LABELS.items():
        goal = f"{MOST[name] / scale:g}" if name in MOST else ""
        lines.append(f"| {label} | {many[name]['median'] / scale:.2f} | {goal} |")
    return "\n".join(lines)


def images_per_second(folder: str, options: argparse.Namespace) -> dict:
    """Rates of everything that handles images; each is printed as it comes."""
    from ccafl_jax.data.decoded import load_images
    from ccafl_jax.data.opening import open_dataset, read_folder
    from ccafl_jax.data.sources import PixelFormat, decode_image
    from ccafl_jax.data.streaming import stream_batches
    from data_prep.prepare import prepare

    raw, out = pathlib.Path(folder) / "raw", pathlib.Path(folder) / "prepared"
    draw(raw, options.images)
    collection = read_folder("market_like", raw)
    records = collection.parts["train"]
    pixels = PixelFormat(256, 128)
    print(f"{'images per second':24}{'median':>10}{'(min-max)':>20}")
    rates = {}

    def measure(name: str, work: Callable[[], object], images: int = options.images) -> None:
        rates[name] = rate(name, work, images, options.repeats)

    rows = np.arange(options.images)
    measure("read_files", lambda: records.read(rows))
    encoded = records.read(rows[:2000])
    measure("pil_one_thread", lambda: [decode_image(e, pixels) for e in encoded], len(encoded))
    measure("prepare", lambda: prepare(collection, out, overwrite=True, progress=False))
    prepared = open_dataset("market_like", out, source="prepared").train
    plan = np.random.default_rng(0).integers(0, options.images, (options.images // 128, 128))
    measure("random_records", lambda: [prepared.read(batch) for batch in plan], plan.size)
    measure("load_folder", lambda: load_images(records, pixels, progress=False))
    measure("load_prepared", lambda: load_images(prepared, pixels, progress=False))
    measure("stream_prepared", lambda: list(map(len, stream_batches(prepared, plan, pixels))))
    return rates


def draw(raw: pathlib.Path, images: int) -> None:
    """Synthetic people in Market-1501 layout: all in the training set, one query and gallery."""
    from data_prep.synthetic import SyntheticConfig, write_names

    names = [f"{i % 751 + 1:04d}_c{i // 751 % 6 + 1}s1_{i:06d}_00.jpg" for i in range(images)]
    lines = [f"bounding_box_train/{name}" for name in names]
    write_names(
        raw, [*lines, f"query/{names[0]}", f"bounding_box_test/{names[0]}"], SyntheticConfig()
    )


def many_records(folder: pathlib.Path, options: argparse.Namespace) -> dict:
    """Seconds and memory of opening a very large set and of planning an epoch over it."""
    fabricate(folder, options.records)
    found = []
    for _ in range(options.repeats):
        command = [sys.executable, __file__, "--many", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    results = {name: spread([one[name] for one in found]) for name in found[0]}
    print(f"{options.records:,} records:")
    for name, values in results.items():
        print(f"  {name:22}{values['median']:.3g} ({values['min']:.3g}-{values['max']:.3g})")
    return results


def fabricate(folder: pathlib.Path, count: int) -> None:
    """The columns of a prepared set of `count` images, without the images."""
    from ccafl_jax.data.columns import save_columns
    from ccafl_jax.data.names import Names
    from ccafl_jax.data.records import Collection, Records
    from ccafl_jax.data.sources import FolderSource

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    width = 40
    letters = rng.integers(97, 123, count * width, dtype=np.uint8)
    start = np.arange(count) * width
    source = FolderSource(folder, Names(letters, start, start + width))
    parts = {}
    for part, rows in (
        ("train", np.arange(count - 2)),
        ("query", np.array([count - 2])),
        ("gallery", np.array([count - 1])),
    ):
        pid, camid = rng.integers(0, count // 20 + 1, len(rows)), rng.integers(0, 50, len(rows))
        parts[part] = Records(source, rows, pid.astype(np.int32), camid.astype(np.int32))
    collection = Collection("market_like", "", parts, {}, tuple(range(50)), {"warnings": []})
    digests = {part: "" for part in parts}
    extra = {"skipped": [], "differences": []}
    fingerprint = save_columns(folder, collection, digests=digests, extra=extra)
    splits = [{"name": p, "shardLengths": [str(len(r))]} for p, r in parts.items()]
    info = {"name": "market_like", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "metadata.json").write_text(json.dumps({"fingerprint": fingerprint}))
    (folder / "features.json").write_text("{}")


def open_and_plan(folder: str) -> dict[str, float]:
    """Opens a set, labels it and plans an epoch of 128-image batches; the work of one process."""
    from ccafl_jax.data.labels import intra_camera_labels
    from ccafl_jax.data.opening import open_dataset
    from ccafl_jax.data.samplers import plan

    before = time.perf_counter()
    train = open_dataset("market_like", folder, source="prepared").train
    assert train.pid[-1] >= 0 and len(train.path[len(train) // 2]) == 40
    opened, peak = time.perf_counter(), peak_bytes()
    labels = intra_camera_labels(train.pid, train.camid)
    labelled = time.perf_counter()
    steps = plan(
        labels.label,
        seed=0,
        first_step=0,
        steps=len(train) // 128,
        classes_per_batch=16,
        images_per_class=8,
    )
    assert steps.shape == (len(train) // 128, 128)
    return {
        "open_seconds": opened - before,
        "peak_bytes": peak,
        "label_seconds": labelled - opened,
        "plan_seconds": time.perf_counter() - labelled,
        "peak_bytes_after_plan": peak_bytes(),
    }


def peak_bytes() -> float:
    """Largest resident size of this process so far."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # ru_maxrss would count what the parent held when it forked
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return float(line.split()[1]) * 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def rate(name: str, work: Callable[[], object], images: int, repeats: int) -> dict:
    """Images per second, printed as one row."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        found.append(images / (time.perf_counter() - start))
    values = spread(found)
    extent = f"({values['min']:,.0f}-{values['max']:,.0f})"
    print(f"{name:24}{values['median']:10,.0f}{extent:>20}", flush=True)
    return values


def spread(values: list[float]) -> dict[str, float]:
    """Median and extent."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
