"""Scores a trained run, or features kept in files, on the test set of any data set.

Each data set has its protocol; the options that a protocol does not take are errors. What a run
is asked for twice is extracted once: features are kept in the folder `features` of the run.
"""

import argparse
import json
import math
import pathlib
import sys
from typing import Any

from command import (
    Parser,
    check_writable,
    flag,
    one_line_errors,
    start_logging,
    user_path,
)

EXAMPLES = """\
examples:
  the last checkpoint of a run, on the data it was trained on
    python scripts/evaluate.py --workdir runs/demo
  the same model on another data set, figures to a file
    python scripts/evaluate.py --checkpoint runs/market1501 --data MSMT17_DIR --dataset msmt17_v1 \\
        --json on_msmt17.json
  features of images and mirror images, re-ranked, with intervals; then scored again from the file
    python scripts/evaluate.py --workdir runs/market1501 --flip --rerank --bootstrap \\
        --save-features market.npz
    python scripts/evaluate.py --features market.npz --ap trapezoid --camera-pairs
  SYSU-MM01, indoor search, ten images a person and camera
    python scripts/evaluate.py --checkpoint RUN --data SYSU_DIR --dataset sysumm01 \\
        --mode indoor --shots 10
  RegDB: one file for each of the ten models, whose figures are averaged
    python scripts/evaluate.py --checkpoint RUN_3 --data REGDB_DIR --dataset regdb --split 3 \\
        --save-features regdb_3.npz
    python scripts/evaluate.py --features regdb_*.npz --direction thermal_to_visible
  results side by side: trained here, tested there
    python scripts/evaluate.py --cross-domain on_market.json on_msmt17.json
"""
SOURCES = ("workdir", "features", "cross_domain")
EXTRACTION = (
    *("root", "dataset", "epoch", "batch", "flip", "frames", "clips", "split", "orientation"),
    *("cache", "no_cache", "save_features"),
)
"""Options of a model's features, which files of features no longer take."""
PROTOCOL = ("ap", "no_match", "same_camera", "mode", "shots", "draw", "direction", "trials")
RERANK = (20, 6, 0.3)
SAVED = 50


def main() -> None:
    """Parses the arguments and evaluates."""
    arguments = parser().parse_args()
    start_logging()
    with one_line_errors():
        check(arguments)
        if arguments.cross_domain is not None:
            compare(arguments)
        else:
            evaluate(arguments)


def parser() -> Parser:
    """The options of the command; all are None or False where they are not given."""
    options = Parser(description=__doc__, epilog=EXAMPLES)
    source = options.add_argument_group("what is scored, one of")
    source.add_argument(
        "--workdir",
        "--checkpoint",
        type=user_path,
        help="folder of the run, or of an orbax or safetensors export",
    )
    source.add_argument(
        "--features",
        nargs="+",
        type=user_path,
        metavar="F.npz",
        help="files of features; several are of one data set's splits, and are averaged",
    )
    source.add_argument(
        "--cross-domain",
        nargs="+",
        type=user_path,
        metavar="RESULT.json",
        help="files of --json: a table of training sets and test sets",
    )
    _add_extraction(options.add_argument_group("features of a run"))
    _add_rules(options.add_argument_group("rules (default: those of the data set)"))
    _add_methods(options.add_argument_group("scores"))
    _add_results(options.add_argument_group("results"))
    return options


def _add_extraction(group) -> None:
    group.add_argument(
        "--root", "--data", help="folder of another data set, raw or prepared, or its manifest"
    )
    group.add_argument("--dataset", help="name of the data set in --root (default: as trained)")
    group.add_argument("--epoch", type=int, help="number of the checkpoint (default: the last)")
    group.add_argument("--batch", type=int, help="images a call of the encoder (default: 128)")
    group.add_argument(
        "--flip",
        action="store_true",
        help="average the feature of each image with that of its mirror image",
    )
    group.add_argument(
        "--frames",
        type=int,
        help="of each tracklet, whose features are averaged; 0 for all (default: 8); of a clip, "
        "with a model of clips (default: those it was trained with)",
    )
    group.add_argument(
        "--clips",
        choices=("dense", "spread"),
        help="of each tracklet, with a model of clips: those of all frames, or one of frames that "
        "are spread over it (default: dense)",
    )
    group.add_argument("--split", type=int, help="of RegDB and iLIDS-VID, 1 to 10 (default: 1)")
    group.add_argument(
        "--orientation", choices=("standard", "tfclip"), help="of iLIDS-VID (default: standard)"
    )
    group.add_argument(
        "--cache",
        type=user_path,
        metavar="DIR",
        help="where features are kept and found again (default: the folder features of the run)",
    )
    group.add_argument("--no-cache", action="store_true", help="extract anew and keep nothing")
    group.add_argument(
        "--save-features", type=user_path, metavar="F.npz", help="write the features to this file"
    )


def _add_rules(group) -> None:
    group.add_argument("--protocol", metavar="NAME", help="that of another data set, or a variant")
    group.add_argument(
        "--ap", choices=("step", "trapezoid", "tied"), help="average precision (default: step)"
    )
    group.add_argument(
        "--no-match",
        choices=("skip", "zero"),
        help="queries without a match are skipped, or count as 0 as in the released code "
        "(default: as trained)",
    )
    group.add_argument(
        "--same-camera",
        choices=("identity", "location", "none"),
        help="what a query does not meet: images of its identity and camera, all of its camera's "
        "location, or only itself",
    )
    group.add_argument("--mode", choices=("all", "indoor"), help="of SYSU-MM01 (default: all)")
    group.add_argument("--shots", type=int, help="of SYSU-MM01: 1 (default) or 10")
    group.add_argument(
        "--draw",
        choices=("seeded", "official"),
        help="of SYSU-MM01: as most published code draws, or by the data set's own permutations "
        "(default: seeded)",
    )
    group.add_argument(
        "--trials", type=int, help="of SYSU-MM01: draws of the gallery (default: 10)"
    )
    group.add_argument(
        "--direction",
        choices=("visible_to_thermal", "thermal_to_visible"),
        help="of RegDB (default: visible_to_thermal)",
    )
    group.add_argument(
        "--with-distractors",
        action="store_true",
        help="join the distractors that come as a part of a data set to its gallery",
    )
    group.add_argument(
        "--multi-query",
        nargs="?",
        const="mean",
        choices=("mean", "max"),
        help="pool all images of a query's identity and camera (default: mean)",
    )
    group.add_argument(
        "--tracks", action="store_true", help="of VeRi-776: rank tracks in place of images"
    )
    group.add_argument(
        "--published-lists",
        nargs="?",
        const="use",
        choices=("use", "check"),
        help="go by the data set's good and junk lists, or compare them with identities "
        "(default: use)",
    )


def _add_methods(group) -> None:
    group.add_argument("--metric", choices=("cosine", "euclidean", "dot"), help="(default: cosine)")
    group.add_argument(
        "--rerank",
        nargs="*",
        type=float,
        metavar="K1 K2 LAMBDA",
        help="re-rank by k-reciprocal neighbours (default: 20 6 0.3)",
    )
    group.add_argument(
        "--expand",
        nargs="+",
        type=float,
        metavar=("K", "ALPHA"),
        help="average each query with its K nearest items, weighted by the power ALPHA of their "
        "similarity (default: 0, alike)",
    )

    group.add_argument(
        "--expand-gallery",
        action="store_true",
        help="with --expand: average the items of the gallery with their nearest, too",
    )


def _add_results(group) -> None:
    group.add_argument(
        "--bootstrap",
        nargs="?",
        type=int,
        const=1000,
        metavar="N",
        help="95 %% intervals over the identities of the queries, from N samples (default: 1000)",
    )
    group.add_argument(
        "--camera-pairs", action="store_true", help="mAP for each pair of cameras, too"
    )
    group.add_argument(
        "--top",
        type=int,
        metavar="K",
        help=f"items a query in --save-results (default: {SAVED})",
    )
    group.add_argument(
        "--save-results",
        type=user_path,
        metavar="R.npz|.parquet",
        help="write ranked lists to this file; of several trials, to R-0.npz, R-1.npz, ...",
    )
    group.add_argument(
        "--figures",
        nargs="+",
        metavar="NAME",
        help="figures to report: mAP, mINP, rank1, rank20, ... (default: those of the protocol)",
    )
    group.add_argument("--json", type=user_path, help="write the figures to this file")
    group.add_argument(
        "--no-report",
        action="store_true",
        help="leave out the report: report.html in the run folder, or F.html beside --json F.json",
    )


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for options that do not go together, before any work is done."""
    from ccafl_jax.evaluation.results import SUFFIXES

    sources = given(arguments, SOURCES)
    if len(sources) != 1:
        found = " and ".join(map(flag, sources)) or "none of them"
        raise ValueError(f"expected one of {', '.join(map(flag, SOURCES))}, found {found}")
    if arguments.features:
        for name in given(arguments, EXTRACTION):
            raise ValueError(f"{flag(name)} is for features of a run; leave it out with --features")
        resolved = [path.resolve() for path in arguments.features]
        for path in arguments.features:
            if resolved.count(path.resolve()) > 1:
                raise ValueError(f"--features: {path} is named twice; name each file once")
    if arguments.cross_domain:
        for name in given(arguments, [n for n in vars(arguments) if n not in ("json", *sources)]):
            raise ValueError(f"{flag(name)} has no place beside --cross-domain; leave it out")
    if arguments.cache and arguments.no_cache:
        raise ValueError("--cache and --no-cache exclude each other")
    if arguments.top is not None and not arguments.save_results:
        raise ValueError("--top is the length of the lists in --save-results; name that file")
    for name, suffixes in (("json", ()), ("save_features", (".npz",)), ("save_results", SUFFIXES)):
        path = getattr(arguments, name)
        if path is None:
            continue
        if path.is_dir():
            raise ValueError(f"{flag(name)} {path} is a folder; name a file")
        if suffixes and path.suffix.lower() not in suffixes:
            raise ValueError(f"{flag(name)} {path} must end in {' or '.join(suffixes)}")
        check_writable(path, flag(name))


def evaluate(arguments: argparse.Namespace) -> None:
    """Extracts or reads features, ranks, writes and prints."""
    from ccafl_jax.deploy.evaluate import score
    from ccafl_jax.files import write_json
    from ccafl_jax.report import examine, make
    from ccafl_jax.report.figures import figures_text
    from ccafl_jax.scoring import feature_set

    options = scoring_options(arguments)
    model = {}
    if arguments.features:
        sets = [feature_set.load(path) for path in arguments.features]
        name = ", ".join(path.name for path in arguments.features)
    else:
        features, model["bundle"], model["collection"] = features_of_run(arguments, options)
        sets, name = [features], features.meta["model"]
    if arguments.save_features:
        arguments.save_features.parent.mkdir(parents=True, exist_ok=True)
        feature_set.save(arguments.save_features, sets[0])
    if "no_match" not in options and sets[0].meta.get("no_match"):
        options["no_match"] = sets[0].meta["no_match"]
    page = report_path(arguments)
    if page:
        options.setdefault("top", examine.LENGTH)
    evaluation = score(sets, progress=sys.stderr.isatty(), **options)
    figures = evaluation.figures
    if len(evaluation.per_trial) > 1:
        figures = figures | {"per_trial": evaluation.per_trial}
    print(figures_text(figures, name=name))
    if arguments.save_results:
        save_results(evaluation, arguments.save_results)
    if arguments.json:
        write_json(arguments.json, figures)
    if page:
        make.after_evaluation(
            page, evaluation, sets, options, name=name, workdir=arguments.workdir, **model
        )
    print_for_programs(figures)


def print_for_programs(figures: dict) -> None:
    """Prints figures as a line of JSON, unless somebody reads along."""
    if not sys.stdout.isatty():
        print(json.dumps(figures))


def report_path(arguments: argparse.Namespace) -> pathlib.Path | None:
    """Where the report goes; None where there is no place for one, or none is wanted."""
    from ccafl_jax.report.make import NAME

    if arguments.no_report:
        return None
    if arguments.json:
        return arguments.json.with_suffix(".html")
    run = arguments.workdir is not None and (arguments.workdir / "checkpoints").is_dir()
    return arguments.workdir / NAME if run else None


def features_of_run(arguments: argparse.Namespace, options: dict[str, Any]):
    """Loads the checkpoint, opens the data set and extracts, or finds what was kept.

    Returns:
      The features, the model and the data set.
    """
    from ccafl_jax.deploy.evaluate import open_test_set
    from ccafl_jax.deploy.features import as_trained, extract
    from ccafl_jax.deploy.loading import find, load_bundle
    from ccafl_jax.scoring.settings import check_options

    bundle = load_bundle(arguments.workdir, number=arguments.epoch)
    collection = open_test_set(bundle, name=arguments.dataset or "", root=arguments.root or "")
    check_options(collection, **options)  # before the work
    cache, folder = arguments.cache, find(arguments.workdir)
    if (folder / "metrics.jsonl").exists() and not (folder / "summary.json").exists():
        print("note: the run is not finished; its last checkpoint is scored")
    if not cache and not arguments.no_cache and (folder / "checkpoints").is_dir():
        cache = folder / "features"  # an export stays as it is
    asked = {name: getattr(arguments, name) for name in ("split", "orientation")}
    features = extract(
        bundle,
        collection,
        distractors=arguments.with_distractors,
        multi_query=arguments.multi_query is not None,
        flip=arguments.flip,
        frames=arguments.frames,
        clips=arguments.clips,
        batch=128 if arguments.batch is None else arguments.batch,
        compute_dtype=as_trained(bundle, "model", "compute_dtype") or "float32",
        cache=cache,
        **{name: value for name, value in asked.items() if value is not None},
    )
    return features, bundle, collection


def scoring_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `ccafl_jax.scoring.evaluate.evaluate` is told, without what was not given."""
    from ccafl_jax.scoring.scores import Expand, Rerank

    names = ("protocol", "metric", "multi_query", "tracks", "published_lists", "bootstrap")
    options = {name: getattr(arguments, name) for name in given(arguments, (*names, *PROTOCOL))}
    options |= {"distractors": arguments.with_distractors, "camera_pairs": arguments.camera_pairs}
    if arguments.save_results:
        options["top"] = SAVED if arguments.top is None else arguments.top
    if arguments.rerank is not None:
        values = arguments.rerank or RERANK
        if len(values) != 3:
            raise ValueError(f"--rerank takes K1 K2 LAMBDA or nothing, found {len(values)} values")
        k1, k2 = (whole("--rerank", value) for value in values[:2])
        options["rerank"] = Rerank(k1, k2, values[2])
    if arguments.expand is not None:
        if len(arguments.expand) > 2:
            raise ValueError(f"--expand takes K and ALPHA, found {len(arguments.expand)} values")
        k = whole("--expand", arguments.expand[0])
        options["expand"] = Expand(k, *arguments.expand[1:], gallery=arguments.expand_gallery)
    elif arguments.expand_gallery:
        raise ValueError("--expand-gallery goes with --expand K; give both")
    if arguments.figures:
        options["figures"] = tuple(dict.fromkeys(arguments.figures))
        places = [name.removeprefix("rank") for name in arguments.figures]
        options["max_rank"] = max(50, *(int(place) for place in places if place.isdecimal()), 1)
    return options


def save_results(evaluation, path: pathlib.Path) -> None:
    """Writes the ranked lists, a file for each ranking."""
    from ccafl_jax.evaluation import results

    path.parent.mkdir(parents=True, exist_ok=True)
    count = len(evaluation.scored)
    for number in range(count):
        file = path if count == 1 else path.with_stem(f"{path.stem}-{number}")
        results.save(file, evaluation.retrieval(number))
    print(f"ranked lists: {file}" if count == 1 else f"ranked lists: {count} files up to {file}")


def compare(arguments: argparse.Namespace) -> None:
    """Prints results of several data sets as one matrix."""
    from ccafl_jax.files import write_json
    from ccafl_jax.scoring.cross_domain import cross_domain

    found = cross_domain(arguments.cross_domain)
    print(found.table())
    if arguments.json:
        write_json(arguments.json, found.as_dict())
    print_for_programs(found.as_dict())


def given(arguments: argparse.Namespace, names) -> list[str]:
    """Those of the options that were given."""
    values = {name: getattr(arguments, name) for name in names}
    return [name for name, value in values.items() if value is not None and value is not False]


def whole(name: str, value: float) -> int:
    """A whole number.

    Raises:
      ValueError: it is none.
    """
    if not math.isfinite(value) or value != int(value):
        raise ValueError(f"{name}: {value:g} is no whole number")
    return int(value)


if __name__ == "__main__":
    main()
