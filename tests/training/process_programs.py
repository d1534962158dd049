"""Programs that the tests of several processes start: python process_programs.py NAME FLAGS.

Each appends lines of JSON to `--out` (Gloo writes into the lines of stdout), and touches `--ready`
when the work has begun.
"""

import argparse
import ctypes
import json
import os
import pathlib
import signal
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed

from ccafl_jax.training import processes
from ccafl_jax.training.agreement import from_first
from ccafl_jax.training.preemption import Preemption
from ccafl_jax.training.sharding import host_local, make_mesh, replicate, shard_rows

OUT = pathlib.Path(os.devnull)


def say(**values: object) -> None:
    with OUT.open("a") as file:
        file.write(json.dumps(values) + "\n")


def toy(steps: int):
    """A sharded step of regression, its first weights and its batches."""
    mesh = make_mesh()
    random = np.random.default_rng(0)
    weights = from_first(lambda: {"w": np.full(3, 0.5, np.float32)})
    weights = replicate(weights, mesh)

    @jax.jit
    def step(weights, x, y):
        def loss(weights):
            return jnp.mean((x @ weights["w"] - y) ** 2)

        value, slope = jax.value_and_grad(loss)(weights)
        return jax.tree.map(lambda w, g: w - 0.1 * g, weights, slope), value

    def batch():
        x = random.normal(size=(16, 3)).astype(np.float32)
        return shard_rows(x, mesh), shard_rows(x.sum(1), mesh)

    return step, weights, (batch() for _ in range(steps))


def train(arguments: argparse.Namespace) -> None:
    """The loop: with `--steps`, at `--pace` seconds each, stopping where it is asked to."""
    step, weights, batches = toy(arguments.steps)
    losses = []
    with Preemption() as preemption, processes.watched(lambda: "last: 7", resume="run --resume"):
        for number, batch in enumerate(batches, 1):
            if preemption.requested(number):
                say(stopped=number)
                return
            weights, loss = step(weights, *batch)
            losses.append(float(host_local(loss)))
            arguments.ready.touch()
            if arguments.fail_at == number and arguments.only in (None, arguments.process_id):
                raise ValueError("no such camera")
            time.sleep(arguments.pace)
        if arguments.process_id == 1:
            time.sleep(arguments.hold)
    say(losses=losses, w=host_local(weights["w"]).tolist(), devices=jax.device_count())


def host_work(arguments: argparse.Namespace) -> None:
    """Waits on the host, far from any collective."""
    with processes.watched(lambda: "last: 7", resume="run --resume"):
        from_first(lambda: 1)
        arguments.ready.touch()
        time.sleep(100)


def agree(arguments: argparse.Namespace) -> None:
    """Values of many kinds from the first process, late, large, and failing."""
    index = arguments.process_id or 0
    with processes.watched(lambda: "last: 7", resume="run --resume"):
        values = from_first(
            lambda: {"none": None, "tuple": (1, [2.5, "x"]), "half": np.ones((2, 1), jnp.bfloat16)}
        )
        say(tuple=repr(values["tuple"]), none=values["none"], half=str(values["half"].dtype))
        large = from_first(lambda: np.arange(1_000_000, dtype=np.int32))
        say(large=int(large.sum()), writable=large.flags.writeable, dtype=str(large.dtype))

        def late() -> int:
            ctypes.PyDLL(None).sleep(
                int(arguments.hold)
            )  # holds Python's lock, as some libraries do
            return index

        say(late=from_first(late))

        def failing() -> None:
            raise FileNotFoundError(f"no such file, says {index}")

        try:
            from_first(failing)
        except OSError as error:
            say(error=str(error))
        try:
            from_first(lambda: 1 / 0)
        except (ZeroDivisionError, RuntimeError) as error:
            say(error=str(error))
        stored = distributed.global_state.client.key_value_dir_get("ccafl_jax/agreed/1/part")
        say(after=from_first(lambda: index + 5), stored=stored)


def placement(arguments: argparse.Namespace) -> None:
    """Arrays of the host on the devices of all processes, without a collective."""
    mesh = make_mesh()
    rows = np.arange(jax.device_count() * 2 * 3, dtype=np.float32).reshape(-1, 3)
    sharded, across = shard_rows(rows, mesh), shard_rows(rows.T, mesh, axis=1)
    whole = replicate({"a": rows}, mesh)["a"]
    total = jax.jit(lambda a, b: jnp.sum(a * b.T))(sharded, across)
    try:
        make_mesh(1)
    except ValueError as error:
        say(error=str(error))
    say(
        total=float(host_local(total)),
        expected=float((rows * rows).sum()),
        mine=len(sharded.addressable_shards),
        whole=bool((host_local(whole) == rows).all()),
        first=processes.is_first(),
    )


def main() -> None:
    global OUT
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--ready", type=pathlib.Path, default=pathlib.Path(os.devnull))
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--pace", type=float, default=0.0)
    parser.add_argument("--hold", type=float, default=0.0)
    parser.add_argument("--fail_at", type=int, default=0)
    parser.add_argument("--only", type=int)
    processes.add_flags(parser)
    arguments = parser.parse_args()
    OUT = arguments.out
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))  # as the commands do, before they start
    processes.start(processes.options_from(arguments))
    programs = {x.__name__: x for x in (train, host_work, agree, placement)}
    programs[arguments.program](arguments)


if __name__ == "__main__":
    main()
