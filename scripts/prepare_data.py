"""Checks a raw data set and prepares it: TFDS records in ArrayRecord files, columns beside them.

Of SYSU-MM01 it can also write the arrays that CCLNet's release trains on (--arrays).
"""

import argparse
import pathlib
import sys
from typing import TYPE_CHECKING

from command import Parser, one_line_errors, start_logging

if TYPE_CHECKING:
    from ccafl_jax.data.records import Collection

EXAMPLES = """\
examples:
  what does this download hold, and is it what the papers used? (writes nothing)
    python scripts/prepare_data.py --dataset market1501 --raw DIR --check
  prepare it, to DIR/market1501/1.0.0; recipes take it as data.root=DIR
    python scripts/prepare_data.py --dataset market1501 --raw RAW --out DIR
  with the 500k distractors; a part of a data set; some broken images tolerated and listed
    python scripts/prepare_data.py --dataset market1501 --raw RAW --out DIR --distractors DIR500K
    python scripts/prepare_data.py --dataset msmt17_v1 --raw RAW --out DIR --allow-partial
    python scripts/prepare_data.py --dataset veri776 --raw RAW --out DIR --skip-broken 3
  your own images, listed in a manifest (see docs/own_data.md)
    python scripts/prepare_data.py --dataset manifest --raw crops/manifest.csv --out DIR
  SYSU-MM01 as the arrays that CCLNet's release trains on: train_{rgb,ir}_resized_*.npy
    python scripts/prepare_data.py --dataset sysumm01 --raw SYSU-MM01 --arrays SYSU-MM01
  read every record of a prepared set again and compare it with its hash
    python scripts/prepare_data.py --dataset market1501 --out DIR --check

exit status: 0; 1 where counts differ from the published ones; 2 on an error
"""


def main() -> None:
    """Parses the arguments and runs."""
    from ccafl_jax.data.layouts import LAYOUTS

    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--dataset", required=True, help=f"one of {', '.join(LAYOUTS)}")
    parser.add_argument("--raw", help="folder of the download, or one above it; or a manifest")
    parser.add_argument("--out", help="folder for prepared data sets")
    parser.add_argument(
        "--arrays",
        metavar="DIR",
        help="folder for the training images of SYSU-MM01, resized, as CCLNet's release keeps them",
    )
    parser.add_argument(
        "--check", action="store_true", help="print counts beside the published ones, write nothing"
    )
    parser.add_argument(
        "--allow-partial",
        action="store_true",
        help="accept counts that differ; the differences are kept in the metadata",
    )
    parser.add_argument(
        "--skip-broken",
        type=int,
        default=0,
        metavar="N",
        help="leave out up to N unreadable images and list them in the metadata",
    )
    parser.add_argument("--distractors", help="folder of further gallery images of nobody")
    parser.add_argument("--overwrite", action="store_true", help="replace what is already there")
    parser.add_argument("--workers", type=int, help="threads (default: one per processor)")
    arguments = parser.parse_args()
    start_logging()
    with one_line_errors():
        status = run(arguments)
    raise SystemExit(status)


def run(arguments: argparse.Namespace) -> int:
    """Checks or prepares; returns the exit status."""
    from ccafl_jax.data.layouts import layout_of

    layout_of(arguments.dataset)  # a wrong name is the first thing to hear of
    if arguments.workers is not None and arguments.workers < 1:
        raise ValueError(f"--workers is {arguments.workers}; expected 1 or more")
    if arguments.skip_broken < 0:
        raise ValueError(f"--skip-broken is {arguments.skip_broken}; expected 0 or more")
    if arguments.arrays:
        check_arrays(arguments)
    if not arguments.raw and not (arguments.check and arguments.out):
        raise ValueError("--raw DIR is missing: the folder of the download")
    if not arguments.raw:
        return check_prepared(arguments)
    if not arguments.check and not arguments.out and not arguments.arrays:
        raise ValueError("--out DIR is missing: the folder for prepared data sets; or --check")
    collection = read_raw(arguments)
    found = report(collection)
    if found and not arguments.allow_partial:
        print("error: " + _difference_line(collection, found), file=sys.stderr)
        return 1
    if arguments.check:
        return 0
    return write_arrays(arguments, collection) if arguments.arrays else write(arguments, collection)


def check_arrays(arguments: argparse.Namespace) -> None:
    """Raises ValueError where --arrays does not fit the other options."""
    from ccafl_jax.data.layouts import LAYOUTS
    from ccafl_jax.data.layouts.sysumm01 import read_sysumm01

    taken = [name for name, layout in LAYOUTS.items() if layout.read is read_sysumm01]
    if arguments.dataset not in taken:
        raise ValueError(
            f"--arrays is a form of SYSU-MM01 alone ({', '.join(taken)}), not of "
            f"{arguments.dataset}; leave it out"
        )
    if arguments.out:
        raise ValueError("--out and --arrays are two forms of a data set; give one at a time")
    if arguments.skip_broken:
        raise ValueError("--arrays takes whole images only; mend the broken ones, or use --out")


def read_raw(arguments: argparse.Namespace) -> "Collection":
    """Reads the raw folder; the problems of a manifest are all printed."""
    from ccafl_jax.data.layouts import read_folder
    from ccafl_jax.data.layouts.manifest import ManifestError

    options = {"distractors": arguments.distractors} if arguments.distractors else {}
    try:
        return read_folder(arguments.dataset, arguments.raw, **options)
    except ManifestError as error:
        for problem in error.problems:
            print(problem)
        raise


def report(collection: "Collection") -> tuple[str, ...]:
    """Prints what a collection holds; returns where it differs from the published counts."""
    from ccafl_jax.data.known import PUBLISHED, count_collection, counts_table, differences

    counts = count_collection(collection)
    print(counts_table(collection, counts))
    for part in collection.parts:
        left = {k: n for k, n in collection.report.get(part, {}).items() if k != "read" and n}
        if left:
            print(f"{part}: " + ", ".join(f"{n:,} {reason}" for reason, n in left.items()))
    for text in collection.report["warnings"]:
        print(f"warning: {text}")
    found = differences(collection.name, counts)
    for text in found:
        print(f"differs: {text}")
    if collection.name in PUBLISHED and not found:
        print("all counts are the published ones (in brackets)")
    return found


def write(arguments: argparse.Namespace, collection: "Collection") -> int:
    """Prepares the set and says where it lies."""
    from data_prep.prepare import prepare

    result = prepare(
        collection,
        arguments.out,
        skip_broken=arguments.skip_broken,
        overwrite=arguments.overwrite,
        workers=arguments.workers,
        progress=sys.stderr.isatty(),
    )
    for image in result.skipped:
        print(f"left out: {image.part}/{image.path}: {image.reason}")
    print(f"prepared: {result.images:,} images in {result.folder}")
    return 0


def write_arrays(arguments: argparse.Namespace, collection: "Collection") -> int:
    """Writes the arrays of CCLNet's release and says where they lie."""
    from ccafl_jax.data.layouts import sysumm01

    try:
        files = sysumm01.write_arrays(
            collection,
            arguments.arrays,
            overwrite=arguments.overwrite,
            workers=arguments.workers,
            progress=sys.stderr.isatty(),
        )
    except FileExistsError as error:
        raise FileExistsError(f"{error}, or --overwrite to make all six again") from None
    size = sum(file.stat().st_size for file in files)
    images = len(collection.parts["train"])
    print(f"written: {images:,} images, {size / 1e9:.2f} GB, in {len(files)} files: ", end="")
    print(f"{files[0].parent}/train_{{rgb,ir}}_resized_{{img,label,path}}.npy")
    return 0


def check_prepared(arguments: argparse.Namespace) -> int:
    """Verifies a prepared set."""
    from ccafl_jax.data.columns import read_meta
    from data_prep.prepare import verify

    collection = verify(arguments.out, name=arguments.dataset, progress=sys.stderr.isatty())
    found = report(collection)
    meta = read_meta(pathlib.Path(collection.root))
    for image in meta["skipped"]:
        print(f"left out when it was prepared: {image['part']}/{image['path']}: {image['reason']}")
    print(f"everything is as it was prepared (fingerprint {meta['fingerprint'][:16]})")
    if list(found) == meta["differences"]:  # accepted then
        return 0
    if found and not arguments.allow_partial:
        print("error: " + _difference_line(collection, found), file=sys.stderr)
        return 1
    return 0


def _difference_line(collection: "Collection", found: tuple[str, ...]) -> str:
    return (
        f"{collection.root} is not the published {collection.name}: {len(found)} counts differ; "
        "get the missing files, or accept it as it is with --allow-partial"
    )


if __name__ == "__main__":
    main()
