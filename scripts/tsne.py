"""Draws the t-SNE of a run's test features, the same identities before and after training.

Colours are identities, markers are cameras; of tracklets one point each. The features are those
that a run keeps in its folder `snapshots`.
"""

from command import Parser, check_writable, one_line_errors, start_logging, user_path

EXAMPLES = """\
examples:
  before and after training, as a picture and for print
    python scripts/tsne.py --workdir runs/demo --out tsne.png
    python scripts/tsne.py --workdir runs/demo --out tsne.svg
  other stages, another perplexity
    python scripts/tsne.py --workdir runs/demo --stages intra inter --perplexity 15 --out tsne.svg
"""
FORMS = (".png", ".svg")


def main() -> None:
    """Parses the arguments and draws."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--workdir", required=True, type=user_path, help="folder of the run")
    parser.add_argument(
        "--out", required=True, type=user_path, metavar="F.png|.svg", help="the picture"
    )
    parser.add_argument(
        "--stages",
        nargs="+",
        metavar="STAGE",
        help="one or two of zero_shot and the stages of the run (default: the first and the last)",
    )
    parser.add_argument(
        "--perplexity", type=float, default=30.0, help="of the t-SNE (default: %(default)g)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of its random state (default: %(default)s)"
    )
    arguments = parser.parse_args()
    start_logging()
    with one_line_errors():
        draw(arguments)


def draw(arguments) -> None:
    """Embeds and writes."""
    from ccafl_jax.files import replacing
    from ccafl_jax.options import require
    from ccafl_jax.report import drawings, embedding
    from ccafl_jax.report.collect import camera_labels, stage_titles, stages_of
    from ccafl_jax.training import snapshots

    out = arguments.out
    require(out.suffix.lower() in FORMS, f"--out {out} must end in {' or '.join(FORMS)}")
    require(arguments.perplexity > 0, f"--perplexity is {arguments.perplexity}; choose above 0")
    check_writable(out, "--out")
    stages = arguments.stages or stages_of(arguments.workdir)
    require(len(stages) <= 2 or not arguments.stages, "--stages takes one or two stages")
    kept = snapshots.load(arguments.workdir, stages)
    missing = [name for name in arguments.stages or () if name not in {s.stage for s in kept}]
    folder = arguments.workdir / snapshots.FOLDER
    there = sorted(path.stem for path in folder.glob("*.npz"))
    require(
        not missing and len(kept) > 0,
        f"{folder} holds no snapshot of {missing[0] if missing else 'any stage'}; it has "
        f"{', '.join(there) or 'none'}: name those by --stages, or train again",
    )
    drawn = embedding.embed(
        kept,
        stage_titles(arguments.workdir, kept),
        camera_labels(arguments.workdir),
        perplexity=arguments.perplexity,
        seed=arguments.seed,
    )
    used = embedding.perplexity_of(len(drawn[0].points), arguments.perplexity)
    out.parent.mkdir(parents=True, exist_ok=True)
    content = drawings.saved(
        drawings.embedding_figure(drawn, perplexity=used), out.suffix.lower()[1:]
    )
    with replacing(out) as partial:
        partial.write_bytes(content)
    print(f"t-SNE: {out}, {len(drawn[0].points)} points a stage, perplexity {used:g}")


if __name__ == "__main__":
    main()
