"""From a folder of crops to a search, step by step: read it from the top, or run it.

The crops lie in CROPS/CAMERA/PERSON/*.jpg, an image of one person each. Without --crops synthetic
people are drawn. All that is made lands in --out; a stopped tutorial goes on with the same command:

  crops/         the synthetic people, where no others are given
  manifest.csv   which image shows whom, in which camera, and what it is for
  run/           the training run, with summary.json
  figures.json   the evaluation, and figures.html to look at it
  export/        the model, to be used without this repository
"""

import argparse
import csv
import pathlib
import subprocess
import sys
import tempfile

from command import Parser, one_line_errors, user_path

EXAMPLES = """\
examples:
  synthetic people, minutes on a CPU
    python scripts/tutorial.py --out runs/tutorial
  the same in a few steps of training: does it run, not does it learn
    python scripts/tutorial.py --out runs/tutorial --smoke
  your own crops
    python scripts/tutorial.py --out runs/mine --crops CROPS
"""
ROOT = pathlib.Path(__file__).resolve().parents[1]
ENDINGS = (".jpg", ".jpeg", ".png")
MADE = ("crops", "manifest.csv", "run", "figures.json", "figures.html", "export")


def main() -> None:
    """Parses the arguments and takes the steps."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--out", required=True, type=user_path, help="folder to make")
    parser.add_argument("--crops", type=user_path, help="folder of crops, CAMERA/PERSON/*.jpg")
    parser.add_argument("--smoke", action="store_true", help="few people, few steps of training")
    arguments = parser.parse_args()
    with one_line_errors():
        arguments.out.mkdir(parents=True, exist_ok=True)
        names = sorted(path.name for path in arguments.out.iterdir())
        if other := [name for name in names if name not in MADE and name[0] != "."]:
            raise ValueError(
                f"--out {arguments.out} holds other files ({other[0]}); choose another folder"
            )
        tutorial(arguments)


def tutorial(arguments: argparse.Namespace) -> None:
    """The whole way."""
    out = arguments.out.resolve()

    # 1. Crops. A detector or a data set gives them; here, people are drawn.
    if arguments.crops and not arguments.crops.is_dir():
        raise ValueError(f"--crops {arguments.crops}: no such folder")
    crops = arguments.crops.resolve() if arguments.crops else out / "crops"
    if not crops.exists() and not arguments.crops:
        draw_crops(crops, people=24 if arguments.smoke else 80)

    # 2. A manifest says who is to be seen where, and what an image is for: half of the people are
    # trained on, the others are searched for (docs/own_data.md).
    manifest = out / "manifest.csv"
    rows = manifest_rows(crops)
    with manifest.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "pid", "camid", "split"), *rows])

    # 3. Training. Any recipe takes a manifest; this one is small enough for a CPU. Options of a
    # recipe are changed on the command line: half of its steps are enough for so few people. A run
    # that was stopped goes on with --resume.
    recipe = ["configs/ccafl_demo.py", "--config.schedule.iterations=40"]
    if arguments.smoke:
        recipe = ["configs/ccafl_demo.py:smoke"]
    command("train", "--config", *recipe, "--config.data.name=manifest",
            f"--config.data.root={manifest}", "--workdir", out / "run", "--resume")  # fmt: skip

    # 4. Evaluation: every query is looked for in the gallery, without images of its own camera.
    # The features stay in the run folder, so that further figures cost no second pass.
    command("evaluate", "--workdir", out / "run", "--json", out / "figures.json")

    # 5. Export: each form is loaded again and has to give the features of the model.
    command("export", "--from", out / "run", "--out", out / "export", "--images", crops,
            "--formats", "safetensors", "stablehlo", "--overwrite")  # fmt: skip

    # 6. A search with what was exported.
    search(out / "export", rows)


def draw_crops(folder: pathlib.Path, *, people: int) -> None:
    """Draws synthetic people in the layout CAMERA/PERSON/*.jpg.

    Args:
      folder: to make.
      people: how many.
    """
    from data_prep.synthetic import SyntheticConfig, write_folder
    from data_prep.synthetic.names import parse_name

    settings = SyntheticConfig(
        train_ids=people // 2,
        test_ids=people - people // 2,
        junk=0,
        distractors=0,
        height=64,
        width=32,
    )
    # Drawn in the layout of Market-1501, whose names say who it is: 0007_c1s1_000001_00.jpg.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".crops-") as drawn:
        people, crops = pathlib.Path(drawn) / "people", pathlib.Path(drawn) / "crops"
        write_folder(people, settings)
        for path in sorted(people.rglob("*.jpg")):
            name = parse_name(path.name)
            place = crops / f"camera{name.camera}" / f"person{name.pid}"
            place.mkdir(parents=True, exist_ok=True)
            path.rename(place / path.name)
        crops.rename(folder)  # whole, or not there


def manifest_rows(crops: pathlib.Path) -> list[tuple[str, str, str, str]]:
    """Path, person, camera and split of all crops; every other person is kept for the test.

    Raises:
      ValueError: no crops there, or too few people or cameras.
    """
    images = sorted(p for p in crops.glob("*/*/*") if p.suffix.lower() in ENDINGS)
    people = sorted({path.parts[-2] for path in images})
    cameras = {path.parts[-3] for path in images}
    if len(people) < 4 or len(cameras) < 2:
        raise ValueError(
            f"--crops {crops}: found {len(people)} people in {len(cameras)} cameras, expected 4 or "
            "more in 2 or more: lay images as CAMERA/PERSON/*.jpg"
        )
    tested, seen, rows = set(people[1::2]), set(), []
    for path in images:
        camera, person = path.parts[-3:-1]
        split = "train"
        if person in tested:  # the first image of a person in a camera asks for the others
            split = "gallery" if (camera, person) in seen else "query"
            seen.add((camera, person))
        rows.append((str(path), person, camera, split))
    return rows


def command(name: str, *words: object) -> None:
    """Runs a command of scripts/ as it would be typed.

    Raises:
      ValueError: it failed; it said why.
    """
    call = ["python", f"scripts/{name}.py", *map(str, words)]
    print(f"\n$ {' '.join(call)}", flush=True)
    step = subprocess.Popen([sys.executable, *call[1:]], cwd=ROOT)
    try:
        status = step.wait()
    except KeyboardInterrupt:  # or SIGTERM, which the step may not have got
        step.terminate()
        step.wait()
        print("stopped: the same command goes on", flush=True)
        raise
    if status:
        raise ValueError(f"{call[1]} failed, see above; mend that and start again")


def search(model_folder: pathlib.Path, rows: list[tuple[str, str, str, str]]) -> None:
    """Finds the gallery images that are nearest to the first queries, and prints them.

    Args:
      model_folder: what was exported.
      rows: of the manifest.
    """
    import ccafl_jax

    model = ccafl_jax.load(model_folder)
    queries = [row for row in rows if row[3] == "query"][:3]
    gallery = [row for row in rows if row[3] == "gallery"]
    # Features have unit length, so that their products are cosines.
    similarity = (
        model.embed([row[0] for row in queries]) @ model.embed([row[0] for row in gallery]).T
    )  # [queries, gallery]
    print("\nqueries, and the five images of other cameras that are nearest")
    for query, scores in zip(queries, similarity, strict=True):
        print(f"{query[1]} in {query[2]}")
        elsewhere = [i for i in (-scores).argsort() if gallery[i][2] != query[2]]
        for i in elsewhere[:5]:
            mark = "same person" if gallery[i][1] == query[1] else "another"
            print(f"  {scores[i]:.3f}  {gallery[i][1]} in {gallery[i][2]}: {mark}")


if __name__ == "__main__":
    main()
