"""Starts the processes of `process_programs` for the tests, and never leaves one behind."""

import contextlib
import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

PROGRAMS = pathlib.Path(__file__).with_name("process_programs.py")
HEARTBEAT = 5


@dataclasses.dataclass
class Started:
    """A process: what it wrote is there once `wait` has returned."""

    process: subprocess.Popen
    ready: pathlib.Path
    out: pathlib.Path
    began: float = dataclasses.field(default_factory=time.monotonic)
    lines: list[dict] = dataclasses.field(default_factory=list)
    errors: list[str] = dataclasses.field(default_factory=list)

    def wait(self, seconds: float = 120) -> int:
        """Its exit status."""
        _, err = self.process.communicate(timeout=seconds)
        if self.out.exists():
            self.lines = [json.loads(line) for line in self.out.read_text().splitlines()]
        told = ("coordination_service.cc:185]", "[Gloo] Rank", "SIGTERM caught")  # by JAX itself
        self.errors = [x for x in err.splitlines() if not any(text in x for text in told)]
        return self.process.returncode

    def wait_until_ready(self) -> None:
        limit = time.monotonic() + 60
        while not self.ready.exists():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < limit, "never ready"
            time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def started(folder: pathlib.Path, count: int, *words: object, devices: int = 1, program=PROGRAMS):
    """`count` processes of a program on the loopback device, each with some CPU devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    port, found = free_port(), []
    try:
        for index in range(count):
            ready, out = folder / f"ready{index}", folder / f"out{index}"
            for path in (ready, out):
                path.unlink(missing_ok=True)
            place = ["--coordinator", f"127.0.0.1:{port}", "--processes", count]
            place += ["--process_id", index, "--connect_seconds", 60]
            place += ["--heartbeat_seconds", HEARTBEAT, "--shutdown_seconds", HEARTBEAT]
            command = [sys.executable, program, *words, "--ready", ready, "--out", out]
            process = subprocess.Popen(
                [str(word) for word in [*command, *(place if count > 1 else [])]],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"XLA_FLAGS": flags},
            )
            found.append(Started(process, ready, out))
        yield found
    finally:
        for each in found:
            each.process.kill()
            each.process.communicate()
