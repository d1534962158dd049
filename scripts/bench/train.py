"""Speed of the methods' training steps, and a projection of their schedules on Market-1501.

Every phase is timed with its own losses, memory banks, augmentation and input, on random weights,
pixels and labels of Market-1501's size; beside it the bare step: forward, backward and the same
Adam of the same network on one ready batch, with a trivial loss. An image of TF-CLIP is a frame
of a clip, and its set has the identities of MARS. Steps are dispatched one after the other and
waited for at the end of a window; medians and extents are of several windows. Each network and
dtype runs in a process of its own. Where torch and timm are at hand, the bare step runs in PyTorch
as well (train_torch.py), compiled on a GPU.

FLOP/s are the compiler's count of the program before it is optimised (of the optimised one where
the first is not counted, as on GPUs) over the time that a step takes. Peak memory is the
device's own count for the process so far; "planned" is what the executable needs.
"""

import argparse
import importlib
import json
import pathlib
import subprocess
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from measuring import in_own_process, write

from ccafl_jax.command_line import Parser, one_line_errors

HERE = pathlib.Path(__file__).parent
EXAMPLES = """\
examples:
  python scripts/bench/train.py                                # all on a GPU, few on a CPU
  python scripts/bench/train.py --quick --networks RN50        # bfloat16, few repeats
  python scripts/bench/train.py --torch /opt/torch/bin/python  # an interpreter that has torch
  python scripts/bench/train.py --json results/train_gpu.json --docs docs/training.md --table gpu
  python scripts/bench/train.py --methods tfclip --frames 8    # clips of so many frames
"""

NETWORKS = {
    "ccafl": ("RN50", "ViT-B/16"),
    "calr": ("ResNet-50", "IBN-ResNet-50-a"),
    "tfclip": ("ViT-B/16", "RN50"),
}
TITLES = {"ccafl": "", "calr": "CALR, ", "tfclip": "TF-CLIP, "}
PHASES = {
    "ccafl": ("prompts", "inter", "inter+text", "inter+text+ical", "intra+text"),
    "calr": ("local", "global+alignment", "global"),
    "tfclip": ("clips",),
}
QUICK = PHASES | {"ccafl": ("prompts", "inter+text+ical", "intra+text")}
BATCH = {"ccafl": (16, 8), "calr": (16, 16), "tfclip": (4, 4)}
STAGE_1 = ("prompts", "local")  # with a batch of their own, and so no bare step beside them
INPUTS = ("resident", "streaming")
# Goals.
WAIT = 0.02  # share of the time that steps wait for input
OVER_BARE = 1.15  # a step over the bare step
TORCH, TORCH_GOAL = 1.0, 1.5  # images/s of the bare step over PyTorch's
MINUTES = 20  # for the whole schedule on a GPU


def main() -> int:
    """Measures, prints a table and returns the exit status."""
    options = parse()
    if options.alone == "device":
        from measuring import machine

        print(json.dumps(machine()))
        return 0
    if options.alone:
        request = json.loads(options.alone)
        module = importlib.import_module(f"train_{request['method']}")
        print(json.dumps(module.measure(module.Work(**request))))
        return 0
    device = in_own_process(__file__, "device", {})
    works = chosen(options, cpu=device["platform"] == "cpu")
    if not works:
        sys.exit("error: the methods have none of these networks and phases: name others")
    results: dict[str, Any] = {"device": device, "works": kept(options.json, device)}
    failed = []
    for work in works:
        name = shown_name(work)
        if work["attention"] != usual(work, cpu=device["platform"] == "cpu"):
            name += f", {work['attention']} attention"
        print(f"{name}: {work}", flush=True)
        try:
            found = in_own_process(__file__, json.dumps(work), {})
        except subprocess.CalledProcessError as error:  # the other works still run
            failed.append(f"{name} ended with status {error.returncode}")
            continue
        results["works"][name] = found
        found["verdicts"] = judge(found)
        save(results, options)  # what is measured survives a time-out of the rest
        if options.torch != "never":
            found["pytorch"] = pytorch(found, options)
            found["verdicts"] = judge(found)
            save(results, options)
    print(f"\n{table(results)}\n")
    for name, found in results["works"].items():
        for verdict in found["verdicts"]:
            print(f"{name}: {verdict['text']}")
    missed = failed + [
        f"{name}: {verdict['what']}"
        for name, found in results["works"].items()
        for verdict in found["verdicts"]
        if verdict["required"] and not verdict["met"]
    ]
    print(f"requirements missed: {'; '.join(missed) or 'none'}")
    return 1 if missed else 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    networks = dict.fromkeys(sum(NETWORKS.values(), ()))
    add("--methods", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), help="all")
    add("--networks", nargs="+", choices=networks, help="all; TF-CLIP, or on a CPU: its first")
    add("--dtypes", nargs="+", choices=["bfloat16", "float32"], help="both; on a CPU float32")
    add(
        "--attention",
        nargs="+",
        choices=["plain", "cudnn"],
        help="cudnn for ViTs in bfloat16 on a GPU",
    )
    add("--phases", nargs="+", choices=sum(PHASES.values(), ()), help="all")
    add("--inputs", nargs="+", choices=INPUTS, help="resident, and one phase with streaming")
    add("--batch", nargs=2, type=int, metavar=("P", "K"), help="of the recipe; on a CPU 4 2")
    add("--frames", type=int, help="of a clip of TF-CLIP (8; on a CPU 2)")
    add("--steps", type=int, help="steps in a window (20; on a CPU 1)")
    add("--repeats", type=int, help="windows of each step (5; on a CPU 3)")
    add("--scale", type=float, help="of images and classes (1; on a CPU 0.1)")
    add("--quick", action="store_true", help="bfloat16, no streaming, fewer phases and repeats")
    add("--tiny", action="store_true", help="tiny networks: a test of this script")
    add("--torch", default=sys.executable, help="interpreter that has torch and timm, or never")
    add("--torch-compile", default="default", help="mode of torch.compile on a GPU, or off")
    add("--json", type=pathlib.Path, help="file for figures; those of other networks in it stay")
    add("--docs", type=pathlib.Path, help="page whose table is rewritten")
    add("--table", default="gpu", help="name of the table in the page")
    add("--alone", help=argparse.SUPPRESS)
    return parser.parse_args()


def chosen(options: argparse.Namespace, *, cpu: bool) -> list[dict[str, Any]]:
    """The works, fields of `train_steps.Work`, with what the command line left open."""
    quick, small = options.quick, cpu or options.tiny
    dtypes = ["float32"] if cpu else ["bfloat16"] if quick else ["bfloat16", "float32"]
    works = []
    for method in options.methods:
        phases = [name for name in PHASES[method] if name in (options.phases or PHASES[method])]
        video = method == "tfclip"
        small_batch = (2, 2) if options.tiny or video else (4, 2)
        batch = options.batch or (small_batch if small else BATCH[method])
        shared = {
            "method": method,
            "classes": batch[0],
            "images": batch[1],
            "phases": phases if options.phases or not quick else list(QUICK[method]),
            "inputs": options.inputs or (["resident"] if quick else list(INPUTS)),
            "steps": options.steps or (1 if small else 10 if quick else 20),
            "repeats": options.repeats or (3 if small or quick else 5),
            "scale": options.scale or (0.01 if options.tiny else 0.1 if cpu else 1.0),
            "extracted": 64 if small else None,
            "tiny": options.tiny,
            "frames": (options.frames or (2 if small else 8)) if video else None,
        }
        single = cpu or video or (quick and method == "calr")
        few = NETWORKS[method][:1] if single else NETWORKS[method]
        networks = [name for name in NETWORKS[method] if name in (options.networks or few)]
        works += [
            {"network": network, "dtype": dtype, "remat": remat, **shared}
            for network in networks
            for dtype in options.dtypes or dtypes
            for remat in ([False, True] if video and not (small or quick) else [False])
            if phases
        ]
    return [
        {**work, "attention": attention}
        for work in works
        for attention in dict.fromkeys(options.attention or [usual(work, cpu=cpu)])
    ]


def shown_name(work: dict[str, Any]) -> str:
    """Network and dtype, with the method where it is not CCAFL."""
    name = f"{TITLES[work['method']]}{work['network']} {work['dtype']}"
    return f"{name}, remat" if work["remat"] else name


def usual(work: dict[str, Any], *, cpu: bool) -> str:
    """What `model.attention=auto` comes to, on an NVIDIA GPU of today."""
    fused = not cpu and work["network"].startswith("ViT") and work["dtype"] == "bfloat16"
    return "cudnn" if fused else "plain"


def kept(path: pathlib.Path | None, device: dict[str, Any]) -> dict[str, Any]:
    """Works that the file holds from an earlier run on the same kind of device."""
    if path is None or not path.is_file():
        return {}
    earlier = json.loads(path.read_text())
    return earlier["works"] if earlier["device"] == device else {}


def pytorch(found: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The bare step in PyTorch, in a process of its own; `error` where it cannot run."""
    work, cpu = found["work"], found["device"]["platform"] == "cpu"
    if work["tiny"]:
        return {"error": "not compared: the networks are tiny"}
    if work["network"].startswith("IBN"):
        return {"error": "not compared: timm has no IBN-a"}
    if work["frames"]:
        return {"error": "not compared: timm has no video model"}
    request = {
        "family": work["network"],
        "batch": work["classes"] * work["images"],
        "size": found["sizes"]["image"],
        "embed_dim": found["sizes"]["embed_dim"],
        "dtype": work["dtype"],
        "device": "cpu" if cpu else "cuda",
        "compile": "off" if cpu else options.torch_compile,
        "window": 0.0 if cpu else work["steps"] * found["bare"]["seconds"]["median"],
        "repeats": work["repeats"],
    }
    command = [options.torch, str(HERE / "train_torch.py"), json.dumps(request)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return {"error": f"not compared: {error}"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"error": f"not compared: {last}"}
    theirs = json.loads(lines[-1])
    if "error" not in theirs:
        rate = request["batch"] / theirs["seconds"]["median"]
        theirs["images_per_second"] = rate
        for step in steps_of(found).values():
            step["over_torch"] = step["images_per_second"] / rate
    return theirs


def steps_of(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Steps of the image encoder by name, the bare one first; those that failed are left out."""
    steps = {"bare": found["bare"], **found["phases"]}
    return {
        name: step for name, step in steps.items() if name not in STAGE_1 and "error" not in step
    }


def judge(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Requirements and goals: `what`, `required`, `met` and a line of `text`."""
    verdicts: list[dict[str, Any]] = []

    def note(what: str, value: float, bound: float, *, most: bool, required: bool = True) -> None:
        met = value <= bound if most else value >= bound
        text = (
            f"{'requirement' if required else 'goal'} {'<=' if most else '>='} {bound:g}: {what} "
            f"is {value:.3g}: {'met' if met else 'MISSED'}"
        )
        verdicts.append({"what": what, "required": required, "met": bool(met), "text": text})

    streamed = found.get("streaming", {})
    for name, step in {**found["phases"], "streaming": streamed}.items():
        if "error" in step:
            text = f"{name} failed: {step['error']}"
            verdicts.append({"what": name, "required": True, "met": False, "text": text})
    for name, step in steps_of(found).items():
        if name != "bare":
            note(f"{name}, share of waiting for input", step["input_wait_share"], WAIT, most=True)
        if "over_bare" in step:
            note(f"{name} over the bare step", step["over_bare"], OVER_BARE, most=True)
    if "slower" in streamed:
        share = min(streamed["slower"], streamed["input_wait_share"])
        note(f"{streamed['phase']}, the same with streamed images", share, WAIT, most=True)
    bare = found["bare"]
    if "over_torch" in bare:
        note("images/s of the bare step over PyTorch", bare["over_torch"], TORCH, most=False)
        if found["device"]["platform"] != "cpu":
            what = "images/s of the bare step over PyTorch"
            note(what, bare["over_torch"], TORCH_GOAL, most=False, required=False)
    full = found["work"]["scale"] == 1 and not found["work"]["tiny"]
    whole = full and {*QUICK[found["work"]["method"]]} <= {
        name for name, step in found["phases"].items() if "error" not in step
    }
    if found["device"]["platform"] == "gpu" and whole and "projection" in found:
        minutes = found["projection"]["total"] / 60
        note("minutes of the schedule, projected", minutes, MINUTES, most=True)
    return verdicts


def save(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Writes what there is so far."""
    write(results, options.json, options.docs, f"train_{options.table}", table(results))


def table(results: dict[str, Any]) -> str:
    """The figures in Markdown: steps, clips, then the parts of the schedule."""
    lines = [
        "| network | step | steps/s (extent) | images/s | TFLOP/s | x bare | x PyTorch "
        "| input wait | planned GB | peak GB | compiled in |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in results["works"].items():
        for step, figures in all_steps(found).items():
            lines.append(f"| {name} | {step} | {' | '.join(cells(figures))} |")
        theirs = found.get("pytorch")
        if theirs:
            lines.append(f"| {name} | bare, PyTorch | {' | '.join(torch_cells(theirs))} |")
    lines += clip_lines(results)
    for keys, rows in projections(results).items():  # each method has parts of its own
        lines += [
            "",
            "Schedule of the recipe, projected from these parts:",
            "",
            f"| network | {' | '.join(keys)} | total |",
            "|---" * (len(keys) + 2) + "|",
        ]
        for name, parts in rows.items():
            row = [f"{parts[key]:.0f} s" for key in keys] + [f"{parts['total'] / 60:.1f} min"]
            lines.append(f"| {name} | {' | '.join(row)} |")
    return "\n".join(lines)


def all_steps(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The bare step, the phases and the one with streamed images, by what tables call them."""
    steps = {"bare": found["bare"], **found["phases"]}
    if "streaming" in found:
        steps[f"{found['streaming'].get('phase', 'none')}, streaming"] = found["streaming"]
    return steps


def clip_lines(results: dict[str, Any]) -> list[str]:
    """A table of clips a second; nothing where only images were trained."""
    lines = []
    for name, found in results["works"].items():
        frames = found["work"].get("frames")
        steps = all_steps(found) | found["epoch"] if frames else {}
        for step, figures in steps.items():
            if "error" not in figures:
                rate = figures["images_per_second"]
                title = step.replace("_", " ")
                lines.append(f"| {name} | {title} | {frames} | {rate / frames:.4g} | {rate:.4g} |")
    head = ["", "| network | what | frames of a clip | clips/s | frames/s |", "|---" * 5 + "|"]
    return head + lines if lines else []


def projections(results: dict[str, Any]) -> dict[tuple[str, ...], dict[str, dict[str, Any]]]:
    """By parts of a schedule: the projections that have these, by network."""
    found: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for name, work in results["works"].items():
        if parts := work.get("projection"):
            keys = tuple(key for key in parts if key not in ("total", "not_measured"))
            found.setdefault(keys, {})[name] = parts
    return found


def cells(step: dict[str, Any]) -> list[str]:
    """A row of the first table, from the third column on."""
    if "error" in step:
        return [f"failed: {step['error']}"] + [""] * 8

    def shown(key: str, form: str, factor: float = 1.0) -> str:
        value = step.get(key)
        return "" if value is None else format(factor * value, form)

    slow, fast = 1 / step["seconds"]["max"], 1 / step["seconds"]["min"]
    return [
        f"{step['steps_per_second']:.3g} ({slow:.3g} to {fast:.3g})",
        shown("images_per_second", ".1f"),
        shown("flop_rate", ".3g", 1e-12),
        shown("over_bare", ".2f"),
        shown("over_torch", ".2f"),
        shown("input_wait_share", ".2%"),
        shown("planned_bytes", ".2f", 1e-9),
        shown("device_peak_bytes", ".2f", 1e-9),
        shown("compile_seconds", ".1f") + " s",
    ]


def torch_cells(theirs: dict[str, Any]) -> list[str]:
    """The row of PyTorch."""
    if "error" in theirs:
        return [theirs["error"]] + [""] * 8
    median, peak = theirs["seconds"]["median"], theirs["peak_bytes"]
    slow, fast = 1 / theirs["seconds"]["max"], 1 / theirs["seconds"]["min"]
    return [
        f"{1 / median:.3g} ({slow:.3g} to {fast:.3g})",
        f"{theirs['images_per_second']:.1f}",
        *[""] * 5,
        "" if peak is None else f"{peak / 1e9:.2f}",
        theirs["mode"],
    ]


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
