"""Speed of the image towers: images/s and FLOP/s, forward and forward+backward, against floors.

"forward" is evaluation mode, as in feature extraction; "train" is the gradient of both features
with respect to all parameters, with batch statistics. FLOP/s are the operations that the tower
needs (encoders_work.py) over the time it takes. Every group of layers is also timed alone, forward
and backward, and compared with its floor: the larger of its operations at the rate of a large
matrix product and its bytes at the rate of a large copy, both measured in the same run. On a GPU,
where torch and timm are importable, the same shapes run in compiled PyTorch and the ratios are
printed.
"""

import argparse
import dataclasses
import importlib.util
import json
import math
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

# PyTorch shares the device for a while; memory grows on demand on both sides.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import encoders_work

from ccafl_jax.command_line import Parser, one_line_errors
from ccafl_jax.models.clip import ResNetConfig, VisionTransformer, ViTConfig, build_tower
from ccafl_jax.models.clip.transformer import activate
from ccafl_jax.models.layers import Compute, apply_block

HERE = pathlib.Path(__file__).parent
EXAMPLES = """\
examples:
  python scripts/bench/encoders.py                                    # small on a CPU, all on a GPU
  python scripts/bench/encoders.py --families RN50 ViT-B/16 --batch 128 256 --json results/h200.json
  python scripts/bench/encoders.py --size 384 128 --dtype float32 --remat
"""
CPU_NOTE = (
    "no accelerator here: these are CPU figures, for regression only; they say nothing about the "
    "speed on a GPU or TPU"
)
Seconds = dict[str, float]
"""`median`, `min` and `max` seconds a call."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """Published sizes: `layers` and `width` of the tower; patch and heads for a ViT."""

    embed_dim: int
    layers: tuple[int, ...] | int
    width: int
    heads: int = 0
    patch: int = 0

    def vision(self, size: tuple[int, int]) -> ResNetConfig | ViTConfig:
        """The tower for images of a size, with stride 1 in the last stage of a ResNet."""
        if not self.patch:
            return ResNetConfig(
                layers=self.layers, width=self.width, image_size=size, last_stride=1
            )
        return ViTConfig(
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            mlp_width=4 * self.width,
            patch_size=self.patch,
            image_size=size,
            stride=self.patch,
        )

    def tiny(self) -> "Family":
        """The same kind at a size for tests."""
        small = {"layers": 2, "width": 32, "heads": 2} if self.patch else {}
        small = small or {"layers": (1, 1, 1, 1), "width": 8}
        return dataclasses.replace(self, embed_dim=16, **small)


FAMILIES = {
    "RN50": Family(embed_dim=1024, layers=(3, 4, 6, 3), width=64),
    "RN101": Family(embed_dim=512, layers=(3, 4, 23, 3), width=64),
    "RN50x4": Family(embed_dim=640, layers=(4, 6, 10, 6), width=80),
    "ViT-B/32": Family(embed_dim=512, layers=12, width=768, heads=12, patch=32),
    "ViT-B/16": Family(embed_dim=512, layers=12, width=768, heads=12, patch=16),
    "ViT-L/14": Family(embed_dim=768, layers=24, width=1024, heads=16, patch=14),
}
REQUIRED = 1.0  # times compiled PyTorch's training throughput
GOALS = {"RN50": 1.5, "ViT-B/16": 1.2}
MATMUL_GOAL = 0.4  # of the matmul rate at the tower's own shapes


def main(arguments: list[str] | None = None) -> dict:
    """Measures, prints tables, writes JSON."""
    options = parse(arguments)
    result = {"environment": environment(options), "rates": rates(options), "cases": []}
    print(heading(result))
    theirs = pytorch(options)
    if theirs:
        result["pytorch"] = theirs
        print(f"PyTorch: {theirs.get('error') or theirs['environment']}")
    for name in options.families:
        for batch in options.batch:
            case = {"family": name, "batch": batch}
            try:
                case |= measure(name, batch, options, result["rates"])
            except Exception as error:  # memory, mostly: the other cases still run
                case["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            case["process_peak_bytes"] = process_peak()
            result["cases"].append(case)
            print("\n" + describe(case), flush=True)
    result["rates_after"] = rates(options)
    print("\n" + drift(result["rates"], result["rates_after"]))
    if theirs:
        compare(result)
        print("\n" + comparison_table(result))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return result


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line, with the defaults that the device decides."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add("--families", nargs="+", choices=FAMILIES, metavar="NAME", help=", ".join(FAMILIES))
    add("--batch", type=int, nargs="+", help="batch sizes (128; on a CPU 4)")
    add("--dtype", choices=["float32", "bfloat16"], help="of activations (bfloat16; CPU float32)")
    add("--precision", choices=["highest", "high", "default"], default="highest")
    add("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of images (256 128)")
    add("--remat", action="store_true", help="rematerialise blocks in the gradient")
    add("--repeats", type=int, help="measurements of each figure (7; on a CPU 3)")
    add("--no-groups", action="store_true", help="leave out the groups of layers")
    add("--torch", choices=["auto", "never", "cpu"], default="auto", help="PyTorch beside it")
    add("--torch-compile", default="default", help="mode of torch.compile, or off")
    add("--json", type=pathlib.Path, help="file for all figures")
    add("--tiny", action="store_true", help="tiny towers: a test of this script")
    options = parser.parse_args(arguments)
    cpu = options.cpu = jax.default_backend() == "cpu"
    small = cpu or options.tiny
    options.families = options.families or (["RN50", "ViT-B/16"] if small else list(FAMILIES))
    options.batch = options.batch or [2 if options.tiny else 4 if cpu else 128]
    options.dtype = jnp.dtype(options.dtype or ("float32" if cpu else "bfloat16"))
    options.size = tuple(options.size or ((64, 32) if options.tiny else (256, 128)))
    options.repeats = options.repeats or (3 if small else 7)
    options.window = 0.0 if small else 0.3  # seconds of back-to-back calls in one measurement
    options.call_flops = 0 if small else 5 * 10**11  # of bare products in one call, at the least
    options.matmul_side = 64 if options.tiny else 2048 if cpu else 8192
    options.copy_bytes = 2**16 if options.tiny else 2**28 if cpu else 2**30
    try:
        for name in options.families:
            family(name, options).vision(options.size)
    except ValueError as error:
        parser.error(str(error))
    return options


def family(name: str, options: argparse.Namespace) -> Family:
    """The family at its published size, or tiny."""
    return FAMILIES[name].tiny() if options.tiny else FAMILIES[name]


def environment(options: argparse.Namespace) -> dict:
    """What the figures depend on."""
    import flax

    device = jax.devices()[0]
    result = {
        "device": device.device_kind,
        "platform": device.platform,
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "size": list(options.size),
        "dtype": options.dtype.name,
        "precision": options.precision,
        "remat": options.remat,
        "repeats": options.repeats,
        "tiny": options.tiny,
    }
    return result | ({"note": CPU_NOTE} if options.cpu else {})


def measure(name: str, batch: int, options: argparse.Namespace, rates: dict) -> dict:
    """All figures of one family at one batch size."""
    size = family(name, options)
    vision = size.vision(options.size)
    compute = Compute(dtype=options.dtype, precision=options.precision, remat=options.remat)
    tower = random_module(
        lambda: build_tower(
            vision,
            out_features=size.embed_dim,
            activation="quick_gelu",
            compute=compute,
            rngs=nnx.Rngs(0),
        )
    )
    work = encoders_work.products(vision, embed_dim=size.embed_dim, batch=batch)
    result = {"forward": None, "train": None}
    for kind, (function, inputs) in steps(tower, vision, size.embed_dim, batch).items():
        result[kind] = figures(function, inputs, work, kind == "train", options)
    own = own_rate(work, options)
    result["own_matmul_flop_rate"] = own
    result["share_of_own_matmul"] = result["train"]["flop_rate"] / own
    if not options.no_groups:
        result["groups"] = groups_alone(tower, vision, batch, work, options, rates)
        alone = sum(group["seconds"]["median"] for group in result["groups"].values())
        result["groups_over_step"] = alone / result["train"]["seconds"]["median"]
    return result


def figures(function: Callable, inputs: tuple, work: list, train: bool, options) -> dict:
    """Throughput, operations and memory of one jitted function."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*inputs).compile()
    compilation = time.perf_counter() - start
    taken = seconds(lambda: compiled(*inputs), options)
    batch, needed = len(inputs[2]), encoders_work.flops(work, train=train)
    return {
        "seconds": taken,
        "images_per_second": batch / taken["median"],
        "flops": needed,
        "flop_rate": needed / taken["median"],
        "compiler_flops": compiler_flops(compiled),
        "planned_bytes": planned_bytes(compiled),
        "compilation_seconds": compilation,
    }


def steps(tower: nnx.Module, vision, embed_dim: int, batch: int) -> dict[str, tuple]:
    """The two measured functions with their inputs: parameters, statistics, images, weights."""
    graphdef, params, stats = nnx.split(tower, nnx.Param, nnx.BatchStat)

    def features(params, stats, images, train):
        model = nnx.merge(graphdef, params, stats)
        vit = isinstance(model, VisionTransformer)
        last = (model.encode_class if vit else model.encode)(images, train=train)[1]
        pooled = last if vit else last.mean((1, 2), dtype=jnp.float32)
        return (pooled, model.project(last)), nnx.state(model, nnx.BatchStat)

    def forward(params, stats, images, weights):
        return features(params, stats, images, False)[0]

    def train(params, stats, images, weights):
        def loss(params):
            both, new_stats = features(params, renewed(stats), images, True)
            pairs = zip(both, weights, strict=True)
            return sum(jnp.vdot(f.astype(jnp.float32), w) for f, w in pairs), new_stats

        return jax.value_and_grad(loss, has_aux=True)(params)

    images = draw((batch, *vision.image_size, 3), jnp.float32, 0)
    sizes = (vision.features, embed_dim)
    weights = [draw((batch, size), jnp.float32, 1 + i) for i, size in enumerate(sizes)]
    inputs = (params, stats, images, weights)
    return {"forward": (forward, inputs), "train": (train, inputs)}


def groups_alone(tower, vision, batch: int, work: list, options, rates: dict) -> dict[str, dict]:
    """Each group of layers alone, forward and backward, with its floor."""
    floors = encoders_work.floors(
        work,
        width=options.dtype.itemsize,
        flop_rate=rates["matmul_flop_rate"],
        byte_rate=rates["copy_byte_rate"],
    )
    result = {}
    x = jax.ShapeDtypeStruct((batch, *vision.image_size, 3), jnp.float32)
    for index, (name, module, keep, apply) in enumerate(groups(tower, vision)):
        step, state = group_step(module, keep, apply, differentiate_input=index > 0)
        output = jax.eval_shape(lambda *args, apply=step: apply(*args, None)[0], *state, x)
        inputs = (*state, draw(x.shape, x.dtype, 0), draw(output.shape, output.dtype, 1))
        compiled = jax.jit(step).lower(*inputs).compile()
        taken = seconds(lambda run=compiled, args=inputs: run(*args), options)
        floor = floors[name]
        result[name] = floor | {
            "floor_seconds": floor.pop("seconds"),
            "seconds": taken,
            "share_of_floor": 0.0,
            "planned_bytes": planned_bytes(compiled),
        }
        result[name]["share_of_floor"] = result[name]["floor_seconds"] / taken["median"]
        x = jax.ShapeDtypeStruct(output.shape, output.dtype)
    return result


def group_step(module, keep, apply, *, differentiate_input: bool) -> tuple[Callable, tuple]:
    """A function of (parameters, rest, input, output gradient) and its first two arguments.

    It returns output, gradients and statistics; without an output gradient, the output alone.
    """

    def kept(path, value):
        return isinstance(value, nnx.Param) and keep(path)

    graphdef, params, rest = nnx.split(module, kept, ...)

    def step(params, rest, x, gradient):
        def run(params, x):
            merged = nnx.merge(graphdef, params, renewed(rest))
            return apply(merged, x), nnx.state(merged, nnx.BatchStat)

        if gradient is None:
            return run(params, x)
        if differentiate_input:
            y, backward, stats = jax.vjp(run, params, x, has_aux=True)
        else:
            y, backward, stats = jax.vjp(lambda params: run(params, x), params, has_aux=True)
        return y, backward(gradient), stats

    return step, (params, rest)


def renewed(state: nnx.State) -> nnx.State:
    """The same arrays in variables of the present trace, which may be written there."""
    return jax.tree.map(lambda x: x, state)


def groups(tower, vision) -> Iterator[tuple[str, nnx.Module, Callable, Callable]]:
    """Name, module, which of its parameters count, and its function, in the order of the data."""
    if isinstance(vision, ResNetConfig):
        yield "stem", tower.stem, always, lambda m, x: run_stem(m, x, tower.compute)
        for name in ("layer1", "layer2", "layer3", "layer4"):
            yield name, getattr(tower, name), always, run_stage
        names = ("attnpool",)
        yield "attention pool", tower, lambda path: path[0] in names, lambda m, x: m.project(x)
        return
    first = ("stem", "class_embedding", "positional_embedding", "ln_pre")
    yield "patch embedding", tower, lambda path: path[0] in first, run_patches
    attending = ("ln_1", "in_proj", "out_proj")
    yield "attention", tower.blocks, lambda path: path[1] in attending, run_attention
    yield "MLP", tower.blocks, lambda path: path[1] not in attending, run_mlp
    last = ("ln_post", "proj")
    yield "projection", tower, lambda path: path[0] in last, run_projection


def always(path: tuple) -> bool:
    """Keeps every parameter."""
    return True


def run_stem(stem: nnx.Module, x: jax.Array, compute: Compute) -> jax.Array:
    """Three convolutions and the pool of a ResNet."""
    return stem(x.astype(compute.activations), train=True)


def run_stage(blocks: nnx.List, x: jax.Array) -> jax.Array:
    """One stage of a ResNet."""
    for block in blocks:
        x = apply_block(block, x, train=True)
    return x


def run_patches(tower: nnx.Module, images: jax.Array) -> jax.Array:
    """Tokens before the first block of a ViT."""
    dtype = tower.compute.activations
    patches = tower.stem(images.astype(dtype))
    shape = (len(images), 1, patches.shape[-1])
    token = jnp.broadcast_to(tower.class_embedding[...].astype(dtype), shape)
    x = jnp.concatenate([token, patches], axis=1) + tower.positional_embedding[...].astype(dtype)
    return tower.ln_pre(x)


def run_attention(blocks: nnx.List, x: jax.Array) -> jax.Array:
    """The attention half of every block of a ViT."""
    for block in blocks:
        x = x + block.attend(block.ln_1(x))
    return x


def run_mlp(blocks: nnx.List, x: jax.Array) -> jax.Array:
    """The perceptron half of every block of a ViT."""
    for block in blocks:
        hidden = activate(block.c_fc(block.ln_2(x)), kind=block.activation)
        x = x + block.c_proj(hidden)
    return x


def run_projection(tower: nnx.Module, x: jax.Array) -> jax.Array:
    """The last norm and the projection of the class token."""
    return tower.project(tower.ln_post(x[:, 0]))


def rates(options: argparse.Namespace) -> dict:
    """Operations and bytes a second that this device reaches at large shapes."""
    side, dtype = options.matmul_side, options.dtype
    shape = ("forward", 1, side, side, side)
    result = {}
    for key, precision in (("", options.precision), ("_default_precision", "default")):
        taken = product_seconds(shape, dtype, precision, options)
        result[f"matmul{key}_flop_rate"] = 2 * side**3 / taken["median"]
    x = draw((options.copy_bytes // dtype.itemsize,), dtype, 0)
    negate = jax.jit(jnp.negative)
    taken = seconds(lambda: negate(x), options)
    result["copy_byte_rate"] = 2 * options.copy_bytes / taken["median"]
    return result | {"matmul_side": side, "copy_bytes": options.copy_bytes}


def own_rate(work: list, options: argparse.Namespace) -> float:
    """Operations a second of bare products at the shapes of a training step."""
    # There are up to a hundred shapes, so each is measured for a shorter while.
    brief = argparse.Namespace(**vars(options) | {"window": options.window / 6, "repeats": 3})
    operations = total = 0.0
    for shape, times in encoders_work.shapes(work).items():
        taken = product_seconds(shape, options.dtype, options.precision, brief)
        operations += times * 2 * math.prod(shape[1:])
        total += times * taken["median"]
    return operations / total


def product_seconds(shape: encoders_work.Shape, dtype, precision: str, options) -> Seconds:
    """Seconds of one bare product.

    Small ones are timed several in a call, on different operands: a launch costs as much as they
    do, and equal products would be merged into one.
    """
    kind, count, m, k, n = shape
    formula, left, right = {
        "forward": ("cmk,ckn->cmn", (m, k), (k, n)),
        "input": ("cmn,ckn->cmk", (m, n), (k, n)),
        "weight": ("cmk,cmn->ckn", (m, k), (m, n)),
    }[kind]
    if count == 1:
        formula = formula.replace("c", "")
    else:
        left, right = (count, *left), (count, *right)
    held = count * (m * k + k * n + m * n) * jnp.dtype(dtype).itemsize
    many = min(32, options.call_flops // (2 * count * m * k * n), 2**31 // held)
    many = max(1, many)
    pairs = [(draw(left, dtype, 2 * i), draw(right, dtype, 2 * i + 1)) for i in range(many)]

    def products(pairs):
        return [jnp.einsum(formula, a, b, precision=precision) for a, b in pairs]

    compiled = jax.jit(products).lower(pairs).compile()
    taken = seconds(lambda: compiled(pairs), options)
    return {key: value / many for key, value in taken.items()}


def seconds(run: Callable, options: argparse.Namespace) -> Seconds:
    """Times calls back to back, waiting for the last, after a warm-up."""
    for _ in range(1 if options.window == 0 else 3):
        jax.block_until_ready(run())
    start = time.perf_counter()
    jax.block_until_ready(run())
    once = time.perf_counter() - start
    calls = max(1, min(200, round(options.window / max(once, 1e-9))))
    taken = [once] if options.window == 0 else []
    while len(taken) < options.repeats:
        start = time.perf_counter()
        for _ in range(calls):
            output = run()
        jax.block_until_ready(output)
        taken.append((time.perf_counter() - start) / calls)
    return {"median": statistics.median(taken), "min": min(taken), "max": max(taken)}


def draw(shape: tuple, dtype, seed: int) -> jax.Array:
    """Random numbers: zeros can run faster than data."""
    return jax.random.normal(jax.random.key(seed), shape, jnp.dtype(dtype))


def random_module(build: Callable[[], nnx.Module]) -> nnx.Module:
    """A module with random parameters, drawn without tracing its initialisers.

    Kernels have unit gain; scales and variances are 1, everything else 0.
    """
    module = nnx.eval_shape(build)
    graphdef, state = nnx.split(module)
    rng = np.random.default_rng(0)

    def fill(path, value):
        name = jax.tree_util.keystr(path)
        if len(value.shape) > 1:
            array = rng.standard_normal(value.shape, np.float32)
            array *= math.prod(value.shape[:-1]) ** -0.5
        else:
            array = np.full(value.shape, float("scale" in name or "var" in name), np.float32)
        return jnp.asarray(array, value.dtype)

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(fill, state))


def compiler_flops(compiled) -> float | None:
    """Operations by the compiler's own count, which leaves out library calls on some devices."""
    try:
        cost = compiled.cost_analysis()
        cost = cost[0] if isinstance(cost, list) else cost
        return float(cost["flops"])
    except Exception:  # not every backend counts
        return None


def planned_bytes(compiled) -> int | None:
    """Memory that an executable plans: arguments, results and temporaries."""
    try:
        plan = compiled.memory_analysis()
        parts = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
        return int(parts - plan.alias_size_in_bytes)
    except Exception:  # not every backend plans
        return None


def process_peak() -> int:
    """Most bytes held so far on the device, or resident where it does not say."""
    stats = jax.devices()[0].memory_stats() or {}
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(stats.get("peak_bytes_in_use", resident))


def pytorch(options: argparse.Namespace) -> dict | None:
    """The same cases in PyTorch, in a process of its own; None where it is not to run."""
    if options.torch == "never" or (options.cpu and options.torch != "cpu"):
        return None
    absent = [name for name in ("torch", "timm") if importlib.util.find_spec(name) is None]
    if absent:
        return {"error": f"not compared: no {' and no '.join(absent)} here", "cases": []}
    request = {
        "cases": [[name, batch] for name in options.families for batch in options.batch],
        "device": "cpu" if options.cpu else "cuda",
        "size": options.size,
        "embed_dims": {name: FAMILIES[name].embed_dim for name in options.families},
        "compile": options.torch_compile,
        "dtype": options.dtype.name,
        "matmul_side": options.matmul_side,
        "window": options.window,
        "repeats": options.repeats,
    }
    finished = subprocess.run(
        [sys.executable, str(HERE / "encoders_torch.py"), json.dumps(request)],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in finished.stdout.splitlines() if line.startswith("{")]
    if not lines or "error" in lines[0]:
        last = (finished.stderr.strip().splitlines() or ["no output"])[-1]
        return {"error": f"not compared: {lines[0]['error'] if lines else last}", "cases": []}
    return {"environment": lines[0], "cases": lines[1:]}


def compare(result: dict) -> None:
    """Adds ratios to PyTorch and what they meet to the cases."""
    theirs = {(case["family"], case["batch"]): case for case in result["pytorch"]["cases"]}
    for case in result["cases"]:
        other = theirs.get((case["family"], case["batch"]), {"error": "not run"})
        case["pytorch"] = other
        if "error" in other or "error" in case:
            continue
        for kind in ("forward", "train"):
            case[f"{kind}_ratio"] = other[kind]["median"] / case[kind]["seconds"]["median"]
        if result["environment"]["platform"] == "gpu":
            case["verdicts"] = verdicts(case)


def verdicts(case: dict) -> list[str]:
    """One line for each requirement and goal: met, or missed and what binds."""
    checks = [
        ("requirement", "training throughput over compiled PyTorch", case["train_ratio"], REQUIRED)
    ]
    if case["family"] in GOALS:
        goal = GOALS[case["family"]]
        checks.append(("goal", checks[0][1], case["train_ratio"], goal))
    share = case["share_of_own_matmul"]
    checks.append(("goal", "share of the matmul rate at its own shapes", share, MATMUL_GOAL))
    lines = []
    for kind, what, found, wanted in checks:
        line = f"{kind} {wanted:g}: {what} is {found:.2f}: {'met' if found >= wanted else 'MISSED'}"
        lines.append(line + ("" if found >= wanted else bound(case)))
    return lines


def bound(case: dict) -> str:
    """The group of layers that loses most time over its floor, and what bounds that floor."""
    if "groups" not in case:
        return ""
    lost = {k: g["seconds"]["median"] - g["floor_seconds"] for k, g in case["groups"].items()}
    name = max(lost, key=lost.get)
    group = case["groups"][name]
    return (
        f"; most is lost in {name}: {1e3 * lost[name]:.2f} ms over its floor, which is bound by "
        f"{group['bound']} and reached to {100 * group['share_of_floor']:.0f} %"
    )


def heading(result: dict) -> str:
    """Device and rates."""
    where, rate = result["environment"], result["rates"]
    lines = [
        f"{where['device']} ({where['platform']}), jax {where['jax']}, flax {where['flax']}; "
        f"images {'x'.join(map(str, where['size']))}, {where['dtype']}, precision "
        f"{where['precision']}" + (", rematerialised" if where["remat"] else ""),
        f"matrix product {rate['matmul_side']}: {tera(rate['matmul_flop_rate'])} TFLOP/s "
        f"({tera(rate['matmul_default_precision_flop_rate'])} at default precision); copy "
        f"{rate['copy_byte_rate'] / 1e9:.1f} GB/s",
    ]
    return "\n".join(lines + ([where["note"]] if "note" in where else []))


def drift(before: dict, after: dict) -> str:
    """How far the rates moved during the run: what smaller differences are worth."""
    moved = [
        f"{what} {100 * (after[key] / before[key] - 1):+.0f} %"
        for what, key in (("matrix product", "matmul_flop_rate"), ("copy", "copy_byte_rate"))
    ]
    return f"rates at the end against the beginning: {', '.join(moved)}"


def describe(case: dict) -> str:
    """The tables of one case."""
    title = f"{case['family']}, batch {case['batch']}"
    if "error" in case:
        return f"{title}: failed: {case['error']}"
    rows = [[title, "images/s", "(min-max)", "TFLOP/s", "GFLOP", "by compiler", "planned MB"]]
    for kind in ("forward", "train"):
        figure = case[kind]
        fastest, slowest = (case["batch"] / figure["seconds"][key] for key in ("min", "max"))
        rows.append(
            [
                kind,
                f"{figure['images_per_second']:.1f}",
                f"({slowest:.1f}-{fastest:.1f})",
                tera(figure["flop_rate"]),
                giga(figure["flops"]),
                giga(figure["compiler_flops"]),
                mega(figure["planned_bytes"]),
            ]
        )
    lines = [table(rows)]
    lines.append(
        f"matmul rate at its own shapes {tera(case['own_matmul_flop_rate'])} TFLOP/s, reached in "
        f"training to {100 * case['share_of_own_matmul']:.0f} %; process peak so far "
        f"{mega(case['process_peak_bytes'])} MB"
    )
    if "groups" in case:
        lines.append(group_table(case))
    return "\n".join(lines)


def group_table(case: dict) -> str:
    """Groups of layers alone."""
    rows = [["group, train", "ms", "(min-max)", "floor ms", "share", "bound", "GFLOP", "MB"]]
    for name, group in case["groups"].items():
        taken = {key: 1e3 * value for key, value in group["seconds"].items()}
        rows.append(
            [
                name,
                f"{taken['median']:.3f}",
                f"({taken['min']:.3f}-{taken['max']:.3f})",
                f"{1e3 * group['floor_seconds']:.3f}",
                f"{100 * group['share_of_floor']:.0f} %",
                group["bound"],
                giga(group["flops"]),
                mega(group["bytes"]),
            ]
        )
    step = case["train"]["seconds"]["median"]
    floor = sum(group["floor_seconds"] for group in case["groups"].values())
    return table(rows) + (
        f"\nwhole step {1e3 * step:.3f} ms, its floor {1e3 * floor:.3f} ms "
        f"({100 * floor / step:.0f} %); groups alone add up to {case['groups_over_step']:.2f} of it"
    )


def comparison_table(result: dict) -> str:
    """Ratios to PyTorch and verdicts."""
    rows = [["against PyTorch", "batch", "ours train/s", "theirs", "ratio", "forward ratio"]]
    lines = []
    for case in result["cases"]:
        if "train_ratio" not in case:
            reason = case.get("error") or case["pytorch"].get("error")
            lines.append(f"{case['family']}, batch {case['batch']}: not compared: {reason}")
            continue
        rows.append(
            [
                f"{case['family']} ({case['pytorch']['model']})",
                str(case["batch"]),
                f"{case['train']['images_per_second']:.1f}",
                f"{case['batch'] / case['pytorch']['train']['median']:.1f}",
                f"{case['train_ratio']:.2f}",
                f"{case['forward_ratio']:.2f}",
            ]
        )
        for verdict in case.get("verdicts", ["no verdict: the requirement is for a GPU"]):
            lines.append(f"{case['family']}, batch {case['batch']}: {verdict}")
    return "\n".join([table(rows), *lines])


def table(rows: list[list[str]]) -> str:
    """Columns padded to their widest cell, the first to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(lines)


def tera(value: float) -> str:
    """In 10^12, with three digits or so."""
    return f"{value / 1e12:.3g}"


def giga(value: float | None) -> str:
    """In 10^9, or a dash."""
    return "-" if value is None else f"{value / 1e9:.2f}"


def mega(value: float | None) -> str:
    """In 10^6, or a dash."""
    return "-" if value is None else f"{value / 1e6:.0f}"


if __name__ == "__main__":
    with one_line_errors():
        main()
