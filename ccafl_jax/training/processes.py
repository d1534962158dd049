"""Several processes of one run: how they find each other, and notice that one of them is gone.

Every process runs the same program on its own devices. `agreement` makes them agree on what is
built on the host.
"""

import argparse
import atexit
import contextlib
import dataclasses
import logging
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from ccafl_jax.training import relay
from ccafl_jax.training.peers import GONE, Peers

__all__ = [
    "GONE",
    "ProcessOptions",
    "add_flags",
    "are_several",
    "is_first",
    "jax_state",
    "options_from",
    "start",
    "watched",
]


@dataclasses.dataclass(frozen=True)
class ProcessOptions:
    """How the processes of a run find each other.

    Attributes:
      coordinator: HOST:PORT of the first process; "auto" lets JAX look for the cluster, and may
        ask the cloud's metadata server; empty: as the environment says.
      processes: how many there are.
      process_id: of this one, from 0.
      heartbeat_seconds: after which a silent process counts as gone.
      shutdown_seconds: that processes which end wait for each other.
      connect_seconds: that they wait for each other at the start.
    """

    coordinator: str = ""
    processes: int | None = None
    process_id: int | None = None
    heartbeat_seconds: int = 30
    shutdown_seconds: int = 30
    connect_seconds: int = 300


_peers: Peers | None = None
"""Watches the other processes, once `start` found some."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a run of several processes."""
    default = ProcessOptions()
    group = parser.add_argument_group(
        "several processes",
        "found by themselves under SLURM, Open MPI and on GKE; see docs/pods.md",
    )
    group.add_argument(
        "--coordinator",
        default="",
        metavar="HOST:PORT",
        help="where the first process listens; auto: JAX looks for the cluster (TPU slices)",
    )
    group.add_argument("--processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process_id", type=int, metavar="I", help="of this one, from 0")
    group.add_argument(
        "--heartbeat_seconds",
        type=int,
        default=default.heartbeat_seconds,
        metavar="S",
        help="after which a silent process counts as gone (default: %(default)s)",
    )
    group.add_argument(
        "--shutdown_seconds",
        type=int,
        default=default.shutdown_seconds,
        metavar="S",
        help="that processes wait for each other at the end (default: %(default)s)",
    )
    group.add_argument(
        "--connect_seconds",
        type=int,
        default=default.connect_seconds,
        metavar="S",
        help="that processes wait for each other at the start (default: %(default)s)",
    )


def options_from(arguments: argparse.Namespace) -> ProcessOptions:
    """The options that `add_flags` added."""
    names = [field.name for field in dataclasses.fields(ProcessOptions)]
    return ProcessOptions(**{name: getattr(arguments, name) for name in names})


def start(options: ProcessOptions | None = None) -> None:
    """Joins the other processes of the run; does nothing where there are none.

    Must come before anything that starts JAX's devices. Afterwards log lines begin with the number
    of the process, and the loss of another process ends this one, see `peers`.

    Args:
      options: how they find each other.

    Raises:
      ValueError: options that are half given or contradict each other, or others do not come.
    """
    global _peers
    options = options or ProcessOptions()
    check_options(options)
    if not (options.coordinator or is_cluster(os.environ)):
        return
    address, count, index, local_devices = _place_in_job(options)
    if count == 1:
        return
    jax.config.update("jax_enable_recoverability", True)  # else JAX aborts when a process is gone
    limit = time.monotonic() + options.connect_seconds
    process = None
    if index:
        _wait_for_coordinator(address, limit)
        process, address = _start_relay(address, options.heartbeat_seconds * 2 / 3)
    with _deadline(limit - time.monotonic(), f"not all {count} processes came", options):
        jax.distributed.initialize(
            address,
            count,
            index,
            local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=2 * options.connect_seconds,  # JAX aborts, so after `_deadline`
            heartbeat_timeout_seconds=options.heartbeat_seconds,
            shutdown_timeout_seconds=options.shutdown_seconds,
        )
    _peers = Peers(
        client=jax_state().client,
        index=index,
        count=count,
        heartbeat_seconds=options.heartbeat_seconds,
        shutdown_seconds=options.shutdown_seconds,
        relay=process,
    )
    _peers.start()
    atexit.register(_peers.finish)  # after JAX's own, so it runs before
    number_log_lines(index)


def check_options(options: ProcessOptions) -> None:
    """Fails on options that do not make sense together.

    Raises:
      ValueError: naming what is missing or wrong.
    """
    for name in ("heartbeat_seconds", "shutdown_seconds", "connect_seconds"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} {getattr(options, name)}: expected at least 1")
    given = {
        "--coordinator": options.coordinator or None,
        "--processes": options.processes,
        "--process_id": options.process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if options.coordinator == "auto":
        if len(missing) < 2:
            raise ValueError(
                "--coordinator auto finds the number of processes itself: leave out --processes "
                "and --process_id"
            )
        return
    if len(missing) == 3:
        return
    if missing:
        found = " and ".join(name for name in given if name not in missing)
        raise ValueError(
            f"{found} without {' and '.join(missing)}: give all of {', '.join(given)}, or none "
            "under SLURM, Open MPI or GKE"
        )
    host, colon, port = options.coordinator.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise ValueError(f"--coordinator {options.coordinator}: expected HOST:PORT")
    if not 0 <= options.process_id < options.processes:
        raise ValueError(
            f"--process_id {options.process_id} of {options.processes} processes: expected 0 to "
            f"{options.processes - 1}"
        )


def is_cluster(environment: Mapping[str, str]) -> bool:
    """Whether the environment shows a job of several processes that JAX can find its way in.

    Reads variables only: the network is left alone.

    Raises:
      ValueError: there are several, but not what they need to find each other.
    """

    def number(name: str, default: int = 1) -> int:
        value = environment.get(name, "")
        return int(value) if value.isdigit() else default

    tasks = number("SLURM_STEP_NUM_TASKS", number("SLURM_NTASKS"))
    if tasks > 1 and "SLURM_STEP_NODELIST" in environment:  # which srun sets
        return True
    if number("OMPI_COMM_WORLD_SIZE") > 1:
        if "OMPI_MCA_orte_hnp_uri" not in environment:
            raise ValueError(
                f"Open MPI started {environment['OMPI_COMM_WORLD_SIZE']} processes without the "
                "address of the first: give --coordinator HOST:PORT --processes "
                "$OMPI_COMM_WORLD_SIZE --process_id $OMPI_COMM_WORLD_RANK"
            )
        return True
    hosts = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES", ""))
    return "," in hosts or (bool(hosts) and number("MEGASCALE_NUM_SLICES") > 1)


def are_several() -> bool:
    """Whether the run has several processes."""
    return jax_state().num_processes > 1


def is_first() -> bool:
    """Whether this is the process that writes logs and builds labels."""
    return jax_state().process_id == 0  # jax.process_index() would start the devices


@contextlib.contextmanager
def watched(last_checkpoint: Callable[[], str], *, resume: str) -> Iterator[None]:
    """Wraps the work of a run: the others learn how it ends, and errors of collectives are theirs.

    Args:
      last_checkpoint: words that name it; called when another process is gone.
      resume: the command that goes on after it.
    """
    if _peers is None:
        yield
        return
    _peers.last_checkpoint, _peers.resume = last_checkpoint, resume
    try:
        yield
    except BaseException as error:
        _peers.blame(error)
        words = str(error).strip() or type(error).__name__
        _peers.say_failed(f"it ended with an error: {words.splitlines()[0][:300]}")
        raise
    _peers.say_done()


def number_log_lines(index: int) -> None:
    """Puts the number of the process before every line that the log prints."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(logging.Formatter(f"[{index}] %(message)s"))


def jax_state() -> Any:
    """What JAX knows of the processes, with its connection to the coordinator."""
    from jax._src import distributed  # nothing public gives the client

    return distributed.global_state


def _place_in_job(options: ProcessOptions) -> tuple[str, int, int, list[int] | None]:
    """The coordinator, the number of processes, that of this one, and its devices (None: all)."""
    if options.processes:
        return options.coordinator, options.processes, options.process_id, None
    from jax._src.clusters import ClusterEnv  # what jax.distributed.initialize asks

    found = ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, None, options.connect_seconds
    )
    if None in found[:3]:
        raise ValueError(
            "JAX does not know this cluster: give --coordinator, --processes and --process_id"
        )
    return found


def _wait_for_coordinator(address: str, limit: float) -> None:
    """Waits until the first process listens; JAX would abort where it does not come."""
    host, _, port = address.rpartition(":")
    begin = time.monotonic()
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > limit:
                raise ValueError(
                    f"--coordinator {address}: {error.strerror or error} for "
                    f"{time.monotonic() - begin:.0f} s; is process 0 running there?"
                ) from None
            time.sleep(0.2)


def _start_relay(address: str, seconds: float) -> tuple[subprocess.Popen, str]:
    """Starts the relay to the coordinator, and returns its own address."""
    host, _, port = address.rpartition(":")
    program = pathlib.Path(relay.__file__)
    process = subprocess.Popen(
        [sys.executable, "-I", program, host.strip("[]"), port, str(seconds), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the processes of the run
    )
    return process, f"127.0.0.1:{process.stdout.readline().strip()}"


@contextlib.contextmanager
def _deadline(seconds: float, what: str, options: ProcessOptions) -> Iterator[None]:
    """Ends the process where the body takes too long: it waits in native code."""

    def end() -> None:
        print(
            f"error: {what} within --connect_seconds {options.connect_seconds}: start them all, "
            "each with its own --process_id",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    timer = threading.Timer(max(1.0, seconds), end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
