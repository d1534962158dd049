"""Embeds images: folders, lists, manifests or the frames of a film become a file of features.

The file (.npz or .parquet) says which model made it; scripts/search.py looks for people in it, and
scripts/evaluate.py --features scores it where identities are known. A run that was stopped goes on
with the same command.
"""

import argparse
import pathlib
import sys

from command import Parser, check_writable, flag, one_line_errors, start_logging, user_path

EXAMPLES = """\
examples:
  all images in a folder and below it
    python scripts/embed.py --model runs/market1501 --images crops --out gallery.npz
  gallery and queries with identities in their names (0002_c1...), for scripts/evaluate.py
    python scripts/embed.py --model runs/market1501 --images MARKET/bounding_box_test \\
        --queries MARKET/query --out market.npz
  what a manifest lists (docs/own_data.md), mirror images averaged, as a table
    python scripts/embed.py --model exported --images crops/manifest.csv --flip \\
        --out crops.parquet
  every fifth frame of a film (pip install 'ccafl_jax[video]'); broken files are left out
    python scripts/embed.py --model runs/market1501 --images door.mp4 --every 5 --out door.npz
    python scripts/embed.py --model runs/market1501 --images crops --skip-unreadable --out c.npz
"""
SUFFIXES = (".npz", ".parquet")


def main() -> None:
    """Parses the arguments and embeds."""
    arguments = parser().parse_args()
    start_logging()
    with one_line_errors():
        embed(arguments)


def parser() -> Parser:
    """The options of the command."""
    options = Parser(description=__doc__, epilog=EXAMPLES)
    options.add_argument(
        "--model",
        required=True,
        type=user_path,
        metavar="DIR",
        help="run folder, or a folder that scripts/export.py wrote",
    )
    add_feeding(options)
    options.add_argument(
        "--flip",
        action="store_true",
        help="average the feature of each image with that of its mirror image",
    )
    options.add_argument(
        "--images",
        required=True,
        nargs="+",
        type=user_path,
        help="folders and image files; or one manifest (.csv, .parquet), list of paths (.txt) or "
        "film (.mp4, ...)",
    )
    options.add_argument(
        "--queries",
        nargs="+",
        type=user_path,
        metavar="PATH",
        help="further images, which become queries for scripts/evaluate.py",
    )
    options.add_argument("--out", required=True, type=user_path, metavar="F.npz|.parquet")
    options.add_argument("--overwrite", action="store_true", help="replace the file in --out")
    options.add_argument(
        "--split",
        nargs="+",
        default=(),
        metavar="NAME",
        help="of a manifest (default: all but train; train where there is nothing else)",
    )
    options.add_argument(
        "--every", type=int, default=1, metavar="N", help="frames of a film that one stands for"
    )
    options.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="leave out images that cannot be read, and list them",
    )
    return options


def add_feeding(options) -> None:
    """Adds the options of how a model is fed."""
    options.add_argument("--batch", type=int, default=64, help="images a call (default: 64)")
    options.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="inside the encoder (default: float32)"
    )
    options.add_argument(
        "--devices", type=int, default=1, help="to spread a batch over; 0 for all (default: 1)"
    )
    options.add_argument(
        "--camera",
        type=int,
        help="number of the camera of all images, for a model with a camera embedding",
    )
    options.add_argument(
        "--modality",
        choices=("visible", "infrared"),
        help="of all images, for a model of two streams (default: as the manifest says)",
    )


def embed(arguments: argparse.Namespace) -> None:
    """Embeds, writes the features and says what was left out."""
    from ccafl_jax.deploy.embedding import forget
    from ccafl_jax.deploy.pictures import open_pictures
    from ccafl_jax.scoring.feature_set import QUERY, save

    out = arguments.out
    if out.suffix not in SUFFIXES:
        raise ValueError(f"--out {out}: the name must end in {' or '.join(SUFFIXES)}")
    check_writable(out, flag("out"))
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file")
    if out.exists() and not arguments.overwrite:
        raise FileExistsError(f"--out {out} exists; name another file, or pass --overwrite")
    pictures = open_pictures(arguments.images, splits=arguments.split, every=arguments.every)
    if arguments.queries:
        pictures = open_pictures(arguments.queries).as_part(QUERY).join(pictures)
    parts = out.with_name(f".{out.name}.parts")
    found = embed_with(
        arguments, load_model(arguments), pictures, parts=parts, skip=arguments.skip_unreadable
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    save(out, found.features)
    forget(parts)
    print(f"{out}: {summary(found.features)}")


def load_model(arguments: argparse.Namespace):
    """The model of --model, with the options of `add_feeding`."""
    import ccafl_jax

    return ccafl_jax.load(
        arguments.model,
        batch=arguments.batch,
        compute_dtype=arguments.dtype,
        devices=arguments.devices,
    )


def embed_with(
    arguments: argparse.Namespace, model, pictures, *, parts: pathlib.Path | None, skip: bool
):
    """Features of pictures by a model; names what could not be read."""
    from ccafl_jax.data.records import INFRARED, VISIBLE
    from ccafl_jax.deploy.embedding import embed_pictures
    from ccafl_jax.deploy.pictures import camera_inputs

    light = {None: None, "visible": VISIBLE, "infrared": INFRARED}[arguments.modality]
    found = embed_pictures(
        model,
        pictures,
        model=str(arguments.model.absolute()),
        cameras=camera_inputs(model, pictures, camera=arguments.camera, modality=light),
        flip=arguments.flip,
        skip_unreadable=skip,
        parts=parts,
        progress=sys.stderr.isatty(),
    )
    for _, reason in found.unreadable:
        print(f"left out: {reason}")
    if found.unreadable:
        print(f"{len(found.unreadable)} of {len(pictures)} images cannot be read, left out")
    return found


def summary(features) -> str:
    """Numbers of images, identities and cameras in a line."""
    import numpy as np

    from ccafl_jax.scoring.feature_set import PARTS

    counts = np.bincount(features.part, minlength=len(PARTS))
    parts = ", ".join(f"{n} {name}" for name, n in zip(PARTS, counts.tolist(), strict=True) if n)
    people = len(np.unique(features.pid[features.pid >= 0]))
    known = f"{people} identities, {len(features.camera_codes)} cameras"
    known = known if people or features.camera_codes else "identities and cameras not known"
    return f"{len(features)} x {features.features.shape[1]} features ({parts}; {known})"


if __name__ == "__main__":
    main()
