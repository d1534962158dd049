"""Looks for people: the nearest images of an embedded gallery for each query image.

The gallery is a file of scripts/embed.py, or an index that --save-index made of one, which opens at
once whatever its size. Results are a table, and on demand JSON, a sheet of pictures, and a page
that needs no other file.
"""

import argparse
import pathlib

from command import Parser, check_writable, flag, one_line_errors, start_logging, user_path
from embed import add_feeding, embed_with, load_model

EXAMPLES = """\
examples:
  the ten nearest images of each picture in a folder; the gallery names its model
    python scripts/search.py --gallery gallery.npz --query wanted/
  keep an index; search it with a page of pictures, where scores below a threshold find nobody
    python scripts/search.py --gallery gallery.npz --save-index door.index
    python scripts/search.py --index door.index --query a.jpg b.jpg --html found.html \\
        --threshold threshold.json
  a quarter of the bytes; the 100 best by the compressed features are scored again exactly
    python scripts/search.py --gallery gallery.npz --compress int8 --rescore 100 \\
        --save-index door.index
    python scripts/search.py --index door.index --query wanted/ --rescore 100 --sheet found.jpg
  queries that are embedded already
    python scripts/search.py --index door.index --query-features wanted.npz --json found.json
"""
SHOWN = 50


def main() -> None:
    """Parses the arguments and searches."""
    arguments = parser().parse_args()
    start_logging()
    with one_line_errors():
        search(arguments)


def parser() -> Parser:
    """The options of the command."""
    options = Parser(description=__doc__, epilog=EXAMPLES)
    where = options.add_argument_group("where to look, one of")
    where.add_argument(
        "--gallery", type=user_path, metavar="F.npz|.parquet", help="features of scripts/embed.py"
    )
    where.add_argument("--index", type=user_path, metavar="DIR", help="of --save-index")
    what = options.add_argument_group("what to look for, one of (none with --save-index)")
    what.add_argument(
        "--query",
        nargs="+",
        type=user_path,
        metavar="PATH",
        help="images, as scripts/embed.py takes them",
    )
    what.add_argument(
        "--query-features", type=user_path, metavar="F.npz|.parquet", help="embedded queries"
    )
    model = options.add_argument_group("the model that embeds --query")
    model.add_argument(
        "--model",
        type=user_path,
        metavar="DIR",
        help="run folder or export (default: the one that the gallery names)",
    )
    add_feeding(model)
    model.add_argument(
        "--skip-unreadable", action="store_true", help="leave out queries that cannot be read"
    )
    _add_index(options.add_argument_group("the index"))
    _add_results(options.add_argument_group("results"))
    return options


def _add_index(group) -> None:
    group.add_argument(
        "--compress",
        metavar="FORM",
        help="with --gallery: float16, int8, int8_dim or pca-N, such as pca-128 (default: none)",
    )
    group.add_argument(
        "--rescore",
        type=int,
        metavar="N",
        help="score the N best of a compressed gallery again by its float32 features",
    )
    group.add_argument(
        "--metric",
        choices=("cosine", "euclidean", "dot"),
        help="with --gallery (default: cosine, or that of the threshold)",
    )
    group.add_argument("--save-index", type=user_path, metavar="DIR", help="folder to make")
    group.add_argument(
        "--lean",
        action="store_true",
        help="with --compress and --save-index: without float32 features, which --rescore needs",
    )
    group.add_argument("--overwrite", action="store_true", help="replace the index in --save-index")


def _add_results(group) -> None:
    group.add_argument("--top", type=int, default=10, metavar="K", help="images (default: 10)")
    group.add_argument(
        "--threshold",
        type=user_path,
        metavar="T.json",
        help="of scripts/calibrate.py: 'none' where no image reaches it",
    )
    group.add_argument(
        "--limit",
        type=int,
        default=SHOWN,
        metavar="N",
        help=f"queries in table, sheet and page (default: {SHOWN})",
    )
    group.add_argument("--sheet", type=user_path, metavar="F.png|.jpg", help="pictures in rows")
    group.add_argument("--html", type=user_path, metavar="F.html", help="a page with the pictures")
    group.add_argument("--json", type=user_path, metavar="F.json", help="all results")


def search(arguments: argparse.Namespace) -> None:
    """Opens or builds the index, embeds the queries, searches and shows."""
    from ccafl_jax.evaluation.open_set import read_threshold
    from ccafl_jax.files import replacing, write_json
    from ccafl_jax.search import results

    check(arguments)
    threshold = read_threshold(arguments.threshold) if arguments.threshold else None
    index = open_gallery(arguments, threshold)
    if arguments.rescore and index.exact:
        raise ValueError("--rescore is of compressed galleries, and this one holds float32")
    asked = arguments.query or arguments.query_features
    if threshold is not None:
        threshold.check(str(index.meta.get("fingerprint")), metric=index.metric)
        if not (index.exact or arguments.rescore):
            raise ValueError(
                f"the gallery is {index.gallery.form}, whose scores are not those that the "
                "threshold was made for: add --rescore 100"
            )
    if asked:
        query = embedded_queries(arguments, index)
    if arguments.save_index:
        index.save(arguments.save_index, overwrite=arguments.overwrite)
        size = sum(path.stat().st_size for path in arguments.save_index.iterdir())
        print(
            f"{arguments.save_index}: {len(index)} images, {index.gallery.form}, "
            f"{size / 1e6:.1f} MB ({index.gallery.nbytes / 1e6:.1f} MB are searched)"
        )
    if not asked:
        return
    top = min(arguments.top, len(index))
    rescore = max(arguments.rescore, top) if arguments.rescore else 0
    nearest = index.search(query.features, top, rescore=rescore)
    root = str(query.meta.get("root", ""))
    found = results.results(query.names, nearest, index, threshold=threshold, query_root=root)
    print(results.table(found, limit=arguments.limit))
    if threshold is not None:
        print(f"{found.none} of {len(found)} queries: none at or above {threshold.value:.4f}")
    if arguments.json:
        write_json(arguments.json, results.as_json(found))
    if arguments.sheet:
        arguments.sheet.parent.mkdir(parents=True, exist_ok=True)
        missing = results.contact_sheet(found, arguments.sheet, limit=arguments.limit)
        print(f"{arguments.sheet}{_without(missing)}")
    if arguments.html:
        text, missing = results.page(found, limit=arguments.limit)
        arguments.html.parent.mkdir(parents=True, exist_ok=True)
        with replacing(arguments.html) as partial:
            partial.write_text(text, encoding="utf-8")
        print(f"{arguments.html}{_without(missing)}")


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for options that do not go together, before any work is done."""
    from ccafl_jax.search.results import check_sheet

    if (arguments.gallery is None) == (arguments.index is None):
        raise ValueError("expected one of --gallery and --index")
    if arguments.query and arguments.query_features:
        raise ValueError("expected one of --query and --query-features, found both")
    if not (arguments.query or arguments.query_features or arguments.save_index):
        raise ValueError("nothing to look for: name --query images or --query-features")
    if arguments.index:
        for name in ("compress", "metric", "save_index", "lean", "overwrite"):
            if getattr(arguments, name):
                raise ValueError(f"{flag(name)} makes an index of --gallery, and --index is made")
    if arguments.lean and not (arguments.compress and arguments.save_index):
        raise ValueError("--lean is of a compressed index that is saved (--compress, --save-index)")
    if arguments.lean and arguments.rescore:
        raise ValueError("--rescore needs the float32 features that --lean leaves out")
    for name in ("top", "limit", "rescore"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"{flag(name)} is {value}; choose 1 or more")
    for name in ("sheet", "html", "json"):
        path = getattr(arguments, name)
        if path is not None:
            check_writable(path, flag(name))
    if arguments.sheet:
        check_sheet(arguments.sheet)


def open_gallery(arguments: argparse.Namespace, threshold):
    """The index of --index, or one that is made of --gallery."""
    from ccafl_jax.scoring import feature_set
    from ccafl_jax.search import build, open_index

    if arguments.index:
        return open_index(arguments.index)
    metric = arguments.metric or (threshold.metric if threshold else "cosine")
    return build(
        feature_set.load(arguments.gallery),
        form=arguments.compress or "float32",
        metric=metric,
        full=not arguments.lean,
    )


def embedded_queries(arguments: argparse.Namespace, index):
    """The queries as a set of features, by the model of the gallery."""
    import numpy as np

    from ccafl_jax.deploy.pictures import open_pictures
    from ccafl_jax.scoring import feature_set

    if arguments.query_features:
        found = feature_set.load(arguments.query_features)
        index.check_model(str(found.meta.get("fingerprint", "unknown")))
        rows = np.flatnonzero(found.part == feature_set.QUERY)
        return found.take(rows) if len(rows) else found
    pictures = open_pictures(arguments.query)
    if arguments.model is None:
        named = str(index.meta.get("model", ""))
        if not named or not pathlib.Path(named).is_dir():
            raise ValueError(
                f"the gallery names the model {named!r}, which is not there; name it with --model"
            )
        arguments.model = pathlib.Path(named)
    arguments.flip = bool(index.meta.get("flip"))
    model = load_model(arguments)
    index.check_model(model.fingerprint(flip=arguments.flip))
    found = embed_with(arguments, model, pictures, parts=None, skip=arguments.skip_unreadable)
    return found.features


def _without(missing: int) -> str:
    return f" ({missing} pictures are not there or cannot be read)" if missing else ""


if __name__ == "__main__":
    main()
