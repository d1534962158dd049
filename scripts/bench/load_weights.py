"""Seconds and memory of loading CLIP weights at real size, each load in a fresh process.

A randomly initialised checkpoint is written to a temporary folder in each naming and form, then
`load_clip` reads it for 256x128 images. The import of the package is timed apart. Files are warm in
the page cache. Exits with 1 when a median is over the bounds: 20 s, 4 GB resident.
"""

import argparse
import json
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from ccafl_jax.command_line import Parser, one_line_errors

HERE = pathlib.Path(__file__).resolve().parent

EXAMPLES = """\
examples:
  python scripts/bench/load_weights.py
  python scripts/bench/load_weights.py --families ViT-B/16 --namings transformers --forms sharded
"""
FORMS = ("float32", "float16", "sharded")
NAMINGS = ("openai", "transformers")
SECONDS, BYTES = 20.0, 4e9
UNIT = 1 if platform.system() == "Darwin" else 1024  # of ru_maxrss


def main(arguments: list[str] | None = None) -> int:
    """Writes, loads and prints a table; returns the exit status."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--families", nargs="+", default=["RN50", "ViT-B/16"], metavar="NAME")
    parser.add_argument("--namings", nargs="+", choices=NAMINGS, default=NAMINGS)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path, help="file for all figures")
    parser.add_argument("--tiny", action="store_true", help="tiny models: a test of this script")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.size = tuple(options.size or ((64, 32) if options.tiny else (256, 128)))
    if options.child:
        kind, directory = options.child
        print(json.dumps(CHILDREN[kind](pathlib.Path(directory), options)))
        return 0
    results = list(measure(options))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0 if all(result.get("within_bounds", True) for result in results) else 1


def measure(options: argparse.Namespace):
    """One dictionary a family, naming and form; each is printed as it comes."""
    print(f"{'file':40}{'MB':>6}{'import s':>10}{'load s':>8}{'(min-max)':>14}{'peak MB':>9}")
    for family in options.families:
        for naming in options.namings:
            for form in options.forms:
                name = f"{family}, {naming}, {form}"
                with tempfile.TemporaryDirectory() as directory:
                    written = child("write", directory, family, naming, form, options)
                    if "error" in written:
                        print(f"{name:40}left out: {written['error']}")
                        yield {"file": name} | written
                        continue
                    loads = [
                        child("load", directory, family, naming, form, options)
                        for _ in range(options.repeats)
                    ]
                yield summary(name, written, loads)


def summary(name: str, written: dict, loads: list[dict]) -> dict:
    """Medians, printed as one row."""
    taken = [load["load_seconds"] for load in loads]
    result = {
        "file": name,
        "file_bytes": written["bytes"],
        "import_seconds": statistics.median(load["import_seconds"] for load in loads),
        "load_seconds": {
            "median": statistics.median(taken),
            "min": min(taken),
            "max": max(taken),
        },
        "peak_bytes": statistics.median(load["peak_bytes"] for load in loads),
        "peak_bytes_before": statistics.median(load["peak_bytes_before"] for load in loads),
        "jax": loads[0]["jax"],
    }
    median, peak = result["load_seconds"]["median"], result["peak_bytes"]
    result["within_bounds"] = result["import_seconds"] + median < SECONDS and peak < BYTES
    spread = f"({min(taken):.2f}-{max(taken):.2f})"
    print(
        f"{name:40}{written['bytes'] / 1e6:6.0f}{result['import_seconds']:10.2f}{median:8.2f}"
        f"{spread:>14}{peak / 1e6:9.0f}{'' if result['within_bounds'] else '  OVER THE BOUND'}",
        flush=True,
    )
    return result


def child(kind: str, directory: str, family: str, naming: str, form: str, options) -> dict:
    """Runs one step in a process of its own and returns what it reports."""
    command = [sys.executable, __file__, "--child", kind, directory, "--families", family]
    command += ["--namings", naming, "--forms", form, "--size", *map(str, options.size)]
    command += ["--tiny"] if options.tiny else []
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        last = (finished.stderr.strip().splitlines() or ["no output"])[-1]
        raise SystemExit(f"error: {kind} of {family}, {naming}, {form} failed: {last}")
    return json.loads(finished.stdout.splitlines()[-1])


def write(directory: pathlib.Path, options: argparse.Namespace) -> dict:
    """Writes the checkpoint; a naming that does not know the tower is reported, not an error."""
    sys.path.insert(0, str(HERE))
    import encoders
    from flax import nnx

    from ccafl_jax.models.clip import CLIP, CLIPConfig, TextConfig, save_clip

    (name,), (naming,), (form,) = options.families, options.namings, options.forms
    family = encoders.FAMILIES[name].tiny() if options.tiny else encoders.FAMILIES[name]
    width = 32 if options.tiny else {640: 640, 768: 768}.get(family.embed_dim, 512)
    text = TextConfig(
        vocab=100 if options.tiny else 49408,
        context=77,
        width=width,
        heads=width // 64 or 1,
        layers=2 if options.tiny else 12,
    )
    config = CLIPConfig(
        embed_dim=family.embed_dim,
        vision=family.vision((64, 64) if options.tiny else (224, 224)),
        text=text,
        activation="quick_gelu",
    )
    config = config.for_images(last_stride=2)
    model = encoders.random_module(lambda: CLIP(config, rngs=nnx.Rngs(0)))
    try:
        path = save_clip(model, directory, naming=naming, half=form == "float16")
    except ValueError as error:
        return {"error": str(error)}
    if form == "sharded":
        divide(path, parts=3)
    return {"bytes": sum(file.stat().st_size for file in directory.glob("*.safetensors"))}


def divide(path: pathlib.Path, *, parts: int) -> None:
    """Replaces a file of tensors by shards with an index, as large checkpoints are published."""
    from ccafl_jax.models.tensor_files import TensorFiles, write_shards

    with TensorFiles(path.parent) as tensors:
        held = {name: tensors[name] for name in tensors}
    path.unlink()
    write_shards(path.parent, held, count=parts)


def load(directory: pathlib.Path, options: argparse.Namespace) -> dict:
    """Imports, then loads, and reports time and the most memory that was resident."""
    start = time.perf_counter()
    import jax
    from flax import nnx

    from ccafl_jax.models.clip import load_clip

    jax.devices()
    imported = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT
    stride = {"last_stride": 1} if options.families[0].startswith("RN") else {}
    model = load_clip(directory, image_size=options.size, **stride)
    jax.block_until_ready(jax.tree.leaves(nnx.state(model)))
    return {
        "import_seconds": imported - start,
        "load_seconds": time.perf_counter() - imported,
        "peak_bytes_before": before,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT,
        "jax": jax.__version__,
    }


CHILDREN = {"write": write, "load": load}

if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
