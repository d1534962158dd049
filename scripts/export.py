"""Exports a trained model: archives (orbax, safetensors) and functions (stablehlo, onnx).

Every format is loaded again and must give the model's own features on the images it is shown, or
nothing is written. See docs/export.md for how to load each.
"""

import argparse
import pathlib

from command import Parser, one_line_errors, start_logging, user_path

EXAMPLES = """\
examples:
  the last checkpoint of a run, as archives and as a StableHLO function
    python scripts/export.py --from runs/demo --out runs/demo/export \\
        --images runs/demo/data/*/query
  a bfloat16 function from an archive, replacing an older one
    python scripts/export.py --from EXPORT_DIR/orbax --out DIR --images DIR_OR_FILES \\
        --formats stablehlo --dtype bfloat16 --overwrite
  ONNX too (pip install 'ccafl_jax[onnx]')
    python scripts/export.py --from runs/demo --out DIR --images DIR_OR_FILES \\
        --formats orbax stablehlo onnx
"""
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def main() -> None:
    """Parses the arguments and exports."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument(
        "--from",
        "--run",
        dest="source",
        required=True,
        type=user_path,
        help="a run folder, or an orbax or safetensors export",
    )
    parser.add_argument("--out", required=True, type=user_path, help="folder to make")
    parser.add_argument(
        "--images",
        required=True,
        nargs="+",
        type=user_path,
        help="files or folders of images for the parity gate",
    )
    parser.add_argument("--count", type=int, default=16, help="how many of them (default: 16)")
    parser.add_argument(
        "--formats",
        nargs="+",
        default=("orbax", "safetensors", "stablehlo"),
        help="of orbax, safetensors, stablehlo and onnx (default: the first three)",
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        help="arithmetic of the StableHLO function: float32 or bfloat16",
    )
    parser.add_argument("--epoch", type=int, help="number of the checkpoint (default: the last)")
    parser.add_argument("--overwrite", action="store_true", help="replace an older export in --out")
    arguments = parser.parse_args()
    start_logging()
    with one_line_errors():
        export(arguments)


def export(arguments: argparse.Namespace) -> None:
    """Reads the model, exports and prints a table."""
    from ccafl_jax.deploy import manifest
    from ccafl_jax.deploy.exporting import export_model
    from ccafl_jax.deploy.loading import load_bundle

    images = find_images(arguments.images, arguments.count)
    bundle = load_bundle(arguments.source, number=arguments.epoch)
    exported = export_model(
        bundle,
        arguments.out,
        images=images,
        formats=arguments.formats,
        dtype=arguments.dtype,
        overwrite=arguments.overwrite,
    )
    print(f"{bundle.source} -> {arguments.out}; parity on {len(images)} images")
    print(f"{'format':<12} {'dtype':<9} {'size':>9}  smallest cosine")
    for row in exported:
        print(f"{row.kind:<12} {row.dtype:<9} {row.bytes / 1e6:>6.1f} MB  {row.cosine:.7f}")
    if any(row.kind == "stablehlo" for row in exported):
        window = manifest.read(arguments.out / "stablehlo")["compatibility"]
        print(f"stablehlo: for releases of JAX up to {window['usable_until']}")


def find_images(paths: list[pathlib.Path], count: int) -> list[pathlib.Path]:
    """At most `count` image files, spread evenly over all that are there.

    Raises:
      FileNotFoundError: a path to nothing.
      ValueError: no images there, or a count below 1.
    """
    if count < 1:
        raise ValueError(f"--count {count}: the parity gate needs 1 or more")
    found = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"--images {path}: no such file or folder")
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        found += [p for p in inside if p.suffix.lower() in SUFFIXES]
    if not found:
        raise ValueError(f"--images: no image files ({', '.join(SUFFIXES)}) in {paths[0]}")
    step = max(1, len(found) / count)
    return [found[int(i * step)] for i in range(min(count, len(found)))]


if __name__ == "__main__":
    main()
