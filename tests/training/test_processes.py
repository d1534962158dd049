import argparse
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from process_jobs import HEARTBEAT, free_port, started

from ccafl_jax.training import peers, processes, relay
from ccafl_jax.training.processes import GONE, ProcessOptions, check_options, is_cluster

SLURM = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}
OMPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"}


def test_flags_become_options():
    parser = argparse.ArgumentParser()
    processes.add_flags(parser)
    assert processes.options_from(parser.parse_args([])) == ProcessOptions()
    words = "--coordinator h:1 --processes 4 --process_id 2 --heartbeat_seconds 7"
    words += " --shutdown_seconds 8 --connect_seconds 9"
    assert processes.options_from(parser.parse_args(words.split())) == ProcessOptions(
        "h:1", 4, 2, 7, 8, 9
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"coordinator": "h:1"}, "--coordinator without --processes and --process_id"),
        ({"processes": 2, "process_id": 0}, "--processes and --process_id without --coordinator"),
        ({"process_id": 0}, "--process_id without --coordinator and --processes"),
        ({"coordinator": "h", "processes": 2, "process_id": 0}, "expected HOST:PORT"),
        ({"coordinator": "h:1", "processes": 2, "process_id": 2}, "expected 0 to 1"),
        ({"coordinator": "auto", "processes": 2}, "leave out --processes"),
        ({"heartbeat_seconds": 0}, "--heartbeat_seconds 0: expected at least 1"),
    ],
)
def test_half_given_options_name_what_is_missing(options, words):
    with pytest.raises(ValueError, match=words) as caught:
        check_options(ProcessOptions(**options))
    assert "\n" not in str(caught.value)


def test_whole_options_are_taken():
    check_options(ProcessOptions())
    check_options(ProcessOptions("auto"))
    check_options(ProcessOptions("[::1]:80", 1, 0))


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        (SLURM, True),
        (SLURM | {"SLURM_NTASKS": "1"}, False),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, False),  # one of many tasks of an allocation
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, False),  # in a batch script, without srun
        (OMPI, True),
        (OMPI | {"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1", "TPU_WORKER_HOSTNAMES": "a"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, True),
    ],
)
def test_the_environment_shows_several_processes(environment, several):
    assert is_cluster(environment) == several


def test_open_mpi_without_an_address_asks_for_the_flags():
    with pytest.raises(ValueError, match=r"--process_id \$OMPI_COMM_WORLD_RANK"):
        is_cluster({"OMPI_COMM_WORLD_SIZE": "4"})


def test_alone_nothing_is_started_and_nothing_is_sent(monkeypatch):
    for name in [*SLURM, *OMPI]:
        monkeypatch.delenv(name, raising=False)
    processes.start(ProcessOptions())
    assert processes.is_first() and not processes.are_several()
    with processes.watched(lambda: "", resume=""):
        pass


class Coordinator:
    """A server that answers in capitals."""

    def __init__(self):
        self.server = socket.create_server(("127.0.0.1", 0))
        port, parent = str(self.server.getsockname()[1]), str(os.getpid())
        self.relay = subprocess.Popen(
            [sys.executable, relay.__file__, "127.0.0.1", port, "2", parent],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.client = socket.create_connection(("127.0.0.1", int(self.relay.stdout.readline())))
        self.connection, _ = self.server.accept()

    def exchange(self) -> bytes:
        self.client.sendall(b"a")
        self.connection.sendall(self.connection.recv(1).upper())
        return self.client.recv(1)


@pytest.fixture
def coordinator():
    found = Coordinator()
    yield found
    found.relay.kill()
    found.relay.communicate()
    for each in (found.server, found.client, found.connection):
        each.close()


def is_open(connection: socket.socket) -> bool:
    connection.settimeout(0.3)
    try:
        return connection.recv(1) != b""
    except TimeoutError:
        return True


def test_the_relay_hides_that_the_coordinator_closed_the_connection(coordinator):
    assert coordinator.exchange() == b"A"
    coordinator.connection.close()
    assert coordinator.relay.stdout.readline() == "it closed the connection\n"
    assert is_open(coordinator.client)


def test_the_relay_reports_what_stays_unanswered_but_not_silence(coordinator):
    assert coordinator.exchange() == b"A"
    time.sleep(2.5)
    coordinator.client.sendall(b"a")
    begin = time.monotonic()
    assert coordinator.relay.stdout.readline() == "it has not answered for 2 s\n"
    assert 1 < time.monotonic() - begin < 5


def test_the_relay_outlives_a_coordinator_that_takes_no_connection_but_not_its_parent():
    port = free_port()
    code = (
        "import os, socket, subprocess, sys, time\n"
        f"words = [{relay.__file__!r}, '127.0.0.1', '{port}', '2', str(os.getpid())]\n"
        "words.insert(0, sys.executable)\n"
        "relay = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)\n"
        "here = '127.0.0.1', int(relay.stdout.readline())\n"
        "client = socket.create_connection(here)\n"
        "print(relay.pid, relay.stdout.readline(), flush=True)\n"
        "time.sleep(1)\n"
        "client.sendall(b'a')  # still open\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )  # returns only when the relay, which shares its stderr, has ended too
    assert found.returncode == 0 and not found.stderr
    assert found.stdout.split(maxsplit=1)[1].strip() == "it takes no connection"


def test_the_relay_passes_on_that_the_client_closed_its_side(coordinator):
    assert coordinator.exchange() == b"A"
    coordinator.client.close()
    assert coordinator.connection.recv(1) == b""
    coordinator.connection.close()
    time.sleep(1)
    coordinator.relay.kill()
    assert coordinator.relay.stdout.read() == ""


def test_only_errors_of_collectives_are_those_of_others(monkeypatch):
    slept = []
    monkeypatch.setattr(peers.time, "sleep", slept.append)
    watch = peers.Peers(None, 0, 2, 30, 30, None)
    watch.blame(ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer"))
    assert len(slept) == 1 and 30 < slept.pop() < 60
    watch.blame(ValueError("no such camera"))
    watch.blame(ConnectionResetError("connection reset by the hub"))
    assert not slept


def errors_of(job):
    return {index: each.errors for index, each in enumerate(job)}


@pytest.mark.ci
@pytest.mark.parametrize(("count", "devices"), [(2, 2), (4, 1)])
def test_several_processes_compute_what_one_does(tmp_path, count, devices):
    with started(tmp_path, 1, "train", devices=count * devices) as job:
        assert job[0].wait() == 0
        expected = job[0].lines[-1]
    with started(tmp_path, count, "train", devices=devices) as job:
        assert [each.wait() for each in job] == [0] * count, errors_of(job)
        found = [each.lines[-1] for each in job]
    assert all(x == found[0] for x in found)
    assert found[0]["devices"] == expected["devices"] == count * devices
    np.testing.assert_allclose(found[0]["losses"], expected["losses"], rtol=1e-6)
    np.testing.assert_allclose(found[0]["w"], expected["w"], rtol=1e-6)


@pytest.mark.ci
def test_processes_agree_on_what_the_first_one_builds(tmp_path):
    hold = HEARTBEAT + 3  # with Python's lock held: no thread of the first process may run
    with started(tmp_path, 2, "agree", "--hold", hold) as job:
        assert [each.wait() for each in job] == [0, 0], errors_of(job)
        assert job[0].lines == job[1].lines
    lines = job[0].lines
    assert lines[0] == {"tuple": "(1, [2.5, 'x'])", "none": None, "half": "bfloat16"}
    assert lines[1] == {"large": 499999500000, "writable": True, "dtype": "int32"}
    assert lines[2:] == [
        {"late": 0},
        {"error": "no such file, says 0"},
        {"error": "division by zero"},
        {"after": 5, "stored": []},
    ]


@pytest.mark.ci
def test_arrays_of_the_host_are_placed_on_the_devices_of_all(tmp_path):
    with started(tmp_path, 2, "placement", devices=2) as job:
        assert [each.wait() for each in job] == [0, 0], errors_of(job)
    for index, each in enumerate(job):
        error, found = each.lines
        assert "the 2 processes of a run use all of theirs" in error["error"]
        assert found["total"] == found["expected"] and found["whole"] and found["mine"] == 2
        assert found["first"] == (index == 0)


@pytest.mark.ci
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("program", ["train --steps 9999 --pace 0.02", "host_work"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_others_leave_with_one_line_when_one_is_gone(tmp_path, program, victim, number):
    with started(tmp_path, 2, *program.split()) as job:
        for each in job:
            each.wait_until_ready()
        job[victim].process.send_signal(number)
        begin = time.monotonic()
        other = job[1 - victim]
        assert other.wait() == GONE == os.EX_TEMPFAIL, other.errors
        assert time.monotonic() - begin < 3 * HEARTBEAT
    (line,) = other.errors
    assert line.startswith(f"error: process {victim} of 2 is gone: ")
    assert line.endswith("; last: 7; start all processes again with: run --resume")


@pytest.mark.ci
def test_an_error_of_one_process_is_told_by_the_others(tmp_path):
    with started(tmp_path, 2, "train", "--steps", 9999, "--fail_at", 3, "--only", 1) as job:
        assert [job[1].wait(), job[0].wait()] == [1, GONE], errors_of(job)
    (line,) = job[0].errors
    assert "process 1 of 2 is gone: it ended with an error: no such camera;" in line


@pytest.mark.ci
def test_an_error_of_all_processes_is_told_by_each(tmp_path):
    with started(tmp_path, 2, "train", "--fail_at", 3) as job:
        assert [each.wait() for each in job] == [1, 1], errors_of(job)
    assert [each.errors[-1] for each in job] == ["ValueError: no such camera"] * 2


@pytest.mark.ci
def test_one_process_may_finish_later(tmp_path):
    with started(tmp_path, 2, "train", "--hold", 2) as job:
        assert [each.wait() for each in job] == [0, 0], errors_of(job)
    assert not job[0].errors and not job[1].errors


@pytest.mark.ci
def test_processes_that_do_not_come_are_missed_in_one_line():
    here = f"127.0.0.1:{free_port()}"
    for index, words in ((0, "not all 2 processes came"), (1, "is process 0 running there?")):
        code = (
            "import sys; sys.path.insert(0, '.'); from ccafl_jax.training.processes import *\n"
            f"try: start(ProcessOptions('{here}', 2, {index}, connect_seconds=2))\n"
            "except ValueError as error: sys.exit(f'error: {error}')"
        )
        found = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
        )
        assert found.returncode and words in found.stderr.splitlines()[-1]
        assert "stack trace" not in found.stderr
