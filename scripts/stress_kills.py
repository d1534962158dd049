"""Kills training runs at random moments, resumes them, and compares what they end with.

A run is trained to the end without disturbance. Then others begin in the same way, are killed
(kill -9) at a random moment of their life, and go on with --resume. Each must end bit for bit as
the first: every array of the last checkpoint, the log but for its clock, and the figures.
"""

import concurrent.futures
import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from ccafl_jax.command_line import Parser, one_line_errors

ROOT = pathlib.Path(__file__).resolve().parents[1]

EXAMPLES = """\
examples:
  python scripts/stress_kills.py --workdir /tmp/kills                  # 50 runs, a kill each
  python scripts/stress_kills.py --workdir /tmp/kills --kills 5 --seed 7
  python scripts/stress_kills.py --workdir /tmp/kills --json results/stress_kills.json
"""


def main() -> int:
    """Runs, prints a line for each kill and returns the exit status."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="folder for the runs")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--config", default="configs/ccafl_demo.py:smoke")
    parser.add_argument("--json", type=pathlib.Path, help="file for the outcome")
    parser.add_argument("options", nargs="*", help="after --: more options of scripts/train.py")
    options = parser.parse_args()
    train = [sys.executable, "scripts/train.py", "--config", options.config, *options.options]
    train += ["--compilation_cache", str(options.workdir / "compiled")]
    options.workdir.mkdir(parents=True, exist_ok=True)

    reference = options.workdir / "reference"
    for _ in range(2):  # once to compile, once to take the time
        start = time.monotonic()
        run([*train, "--workdir", str(reference), "--overwrite"])
        whole = time.monotonic() - start
    expected = outcome(reference)
    print(f"undisturbed: {whole:.1f} s", flush=True)

    draw = random.Random(options.seed)
    moments = [draw.random() * whole for _ in range(options.kills)]

    def one(number: int) -> dict:
        folder = options.workdir / f"run{number}"
        return killed(train, folder, moments[number], reference) | {"number": number}

    found = []
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for result in pool.map(one, range(options.kills)):
            differs = differences(expected, outcome(options.workdir / f"run{result['number']}"))
            result["differs"] = differs
            found.append(result)
            shutil.rmtree(options.workdir / f"run{result['number']}")
            print(
                f"kill {result['number'] + 1}: after {result['seconds']:.1f} s, at "
                f"{result['state']}: {', '.join(differs) or 'identical'}",
                flush=True,
            )
    same = sum(not result["differs"] for result in found)
    print(f"{same} of {len(found)} identical")
    if options.json:
        summary = {"kills": len(found), "identical": same, "seconds_undisturbed": whole}
        options.json.write_text(json.dumps(summary | {"runs": found}, indent=1) + "\n")
    return 0 if same == len(found) else 1


def run(command: list[str]) -> None:
    """Runs a command to its end.

    Raises:
      RuntimeError: it failed.
    """
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode}:\n{done.stdout}\n{done.stderr}")


def killed(train: list[str], folder: pathlib.Path, seconds: float, reference: pathlib.Path) -> dict:
    """Begins a run, kills it, and resumes it to the end; says where it was."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copytree(reference / "data", folder / "data")  # the same synthetic people
    command = [*train, "--workdir", str(folder)]
    while True:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            printed = process.communicate()[0]
            break
        # Other runs slowed it down less than expected: it was over before it was killed.
        seconds *= 0.8
        command = [*train, "--workdir", str(folder), "--overwrite"]
    lines = [line for line in (printed or "").splitlines() if line.strip()]
    run([*train, "--workdir", str(folder), "--resume"])
    return {"seconds": seconds, "state": f"{lines[-1][:60]!r}" if lines else "the start"}


def outcome(folder: pathlib.Path) -> dict:
    """What a run left, without its clock."""
    from ccafl_jax.training.checkpoints import Checkpoints, digest

    checkpoints = Checkpoints(folder / "checkpoints")
    arrays = {"number": checkpoints.latest(), "digest": digest(flat(checkpoints.restore()))}
    return {"arrays": arrays, "log": log_of(folder), "figures": figures_of(folder)}


def log_of(folder: pathlib.Path) -> list[dict]:
    """Lines of the log without their clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def figures_of(folder: pathlib.Path) -> dict:
    """The summary without its clock."""
    summary = json.loads((folder / "summary.json").read_text())
    for part in (summary, *summary["stages"]):
        part.pop("seconds")
    return summary


def flat(tree: dict, prefix: str = "") -> dict:
    """A nested dictionary of arrays by path."""
    found = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}/") if isinstance(value, dict) else {name: value}
    return found


def differences(expected: dict, found: dict) -> list[str]:
    """The parts of two outcomes that differ."""
    return [name for name in expected if expected[name] != found[name]]


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
