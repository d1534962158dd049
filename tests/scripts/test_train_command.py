"""Training as it is typed: killed, asked to stop, in two processes, and what it says then."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from ccafl_jax.training.manifest import NAME as MANIFEST
from scripts.stress_kills import differences, outcome

pytestmark = pytest.mark.ci

ROOT = pathlib.Path(__file__).parents[2]
TINY = [
    "--config=configs/ccafl_demo.py:smoke",
    "--config.data.synthetic_ids=16",
    "--config.evaluation.every=0",
]
CALR = ["--config=configs/calr_synthetic.py:smoke", "--config.evaluation.every=0"]
TFCLIP = ["--config=configs/tfclip_synthetic.py:smoke", "--config.evaluation.every=0"]
CCLNET = ["--config=configs/cclnet_synthetic.py:smoke", "--config.evaluation.every=0"]
LIMIT = 600  # seconds; far more than it takes


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def start(compiled):
    """Starts training commands; none outlives its test."""
    running = []

    def begin(workdir, *more, recipe=TINY):
        # One device each, whatever the tests around this one use, and full optimisation.
        environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "scripts/train.py", *recipe, "--workdir", str(workdir)]
        command += ["--compilation_cache", str(compiled), *map(str, more)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
        running.append(process)
        return process

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def two(start, workdir, *more):
    """Two processes of one run on this machine."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    flags = ["--coordinator", f"localhost:{port}", "--processes", 2, "--heartbeat_seconds", 8]
    flags += ["--shutdown_seconds", 8]
    return [start(workdir, *flags, "--process_id", index, *more) for index in range(2)]


def finish(process):
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, out + err
    return out


def wait_for(workdir, lines):
    """Waits until the log has so many lines."""
    log, limit = workdir / "metrics.jsonl", time.monotonic() + LIMIT
    while not log.exists() or len(log.read_text().splitlines()) < lines:
        assert time.monotonic() < limit
        time.sleep(0.05)


def wait_for_checkpoint(workdir, number):
    """Waits until a checkpoint counts."""
    complete, limit = workdir / "checkpoints" / str(number) / MANIFEST, time.monotonic() + LIMIT
    while not complete.exists():
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, compiled):
    """A run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "w"
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "scripts/train.py", *TINY, "--workdir", str(workdir)]
    command += ["--compilation_cache", str(compiled)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return outcome(workdir)


def test_killed_in_training_the_same_command_goes_on(start, whole, tmp_path):
    process = start(tmp_path / "w", "--rerun")
    wait_for(tmp_path / "w", 3)
    process.kill()
    process.communicate()
    printed = finish(start(tmp_path / "w", "--rerun"))
    assert "resumed after 2 prompts and" in printed
    assert differences(whole, outcome(tmp_path / "w")) == []
    # Once it is finished, the same command begins anew.
    process = start(tmp_path / "w", "--rerun")
    limit = time.monotonic() + LIMIT
    while (tmp_path / "w" / "summary.json").exists():
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_calr_killed_in_both_stages_goes_on(start, tmp_path):
    finish(start(tmp_path / "whole", recipe=CALR))
    # Five cameras of two epochs each, then four epochs of all.
    for lines in (3, 12):
        process = start(tmp_path / "w", "--rerun", recipe=CALR)
        wait_for(tmp_path / "w", lines)
        process.kill()
        process.communicate()
    printed = finish(start(tmp_path / "w", "--rerun", recipe=CALR))
    assert re.search(r"resumed after 10 local and [1-4] encoder", printed), printed
    assert differences(outcome(tmp_path / "whole"), outcome(tmp_path / "w")) == []


@pytest.mark.parametrize(
    ("recipe", "epochs", "said"),
    [
        (TFCLIP, 1, "resumed after 1 encoder epochs"),  # of two
        # Two epochs of stage 0, two of prompts, and the first of two of stage 2.
        (CCLNET, 5, "resumed after 2 prompts and 3 encoder epochs"),
    ],
    ids=["tfclip", "cclnet"],
)
def test_video_and_infrared_killed_within_a_stage_go_on(start, tmp_path, recipe, epochs, said):
    finish(start(tmp_path / "whole", recipe=recipe))
    process = start(tmp_path / "w", "--rerun", recipe=recipe)
    wait_for_checkpoint(tmp_path / "w", epochs)
    process.kill()
    process.communicate()
    assert not (tmp_path / "w" / "summary.json").exists()
    printed = finish(start(tmp_path / "w", "--rerun", recipe=recipe))
    assert said in printed, printed
    assert differences(outcome(tmp_path / "whole"), outcome(tmp_path / "w")) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_saves_and_says_how_to_go_on(start, whole, tmp_path, number):
    process = start(tmp_path / "w")
    wait_for(tmp_path / "w", 3)
    process.send_signal(number)
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0 and f"{number.name}: stopping after this step" in err, out + err
    last = out.splitlines()[-1]
    assert last.startswith("stopped: ") and last.endswith("--resume") and "continue with: " in last
    assert not (tmp_path / "w" / "summary.json").exists()
    finish(start(tmp_path / "w", "--resume"))
    assert differences(whole, outcome(tmp_path / "w")) == []


def test_a_second_signal_ends_at_once(start, tmp_path):
    process = start(tmp_path / "w")
    wait_for(tmp_path / "w", 1)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode in (0, 130, 143)  # the first may have been obeyed in between


def test_other_options_are_refused_and_can_be_allowed(start, tmp_path):
    workdir = tmp_path / "w"
    finish(start(workdir, "--stages", "prompts"))
    process = start(workdir, "--resume", "--config.optimizer.base_lr=0.5")
    err = process.communicate(timeout=LIMIT)[1]
    assert process.returncode == 2, err
    line = next(x for x in err.splitlines() if x.startswith("error: "))
    assert "optimizer.base_lr is 0.001 there and 0.5 here" in line and "--allow_changes" in line
    more = ["--resume", "--allow_changes", "--config.optimizer.base_lr=0.002", "--stages=intra"]
    finish(start(workdir, *more))


def test_all_stacks_profile_and_costs(start, tmp_path):
    printed = finish(start(tmp_path / "w", "--dry_run"))
    phases = ("prompts", "intra+text", "inter", "inter+text", "inter+text+ical")
    for name in map(re.escape, phases):
        assert re.search(rf"^{name}: [\d.]+ GFLOP a step and device; peak", printed, re.M)
    assert not (tmp_path / "w" / "checkpoints").exists()
    process = start(tmp_path / "w", "--profile", "2:5", "--stages", "prompts")
    time.sleep(1)
    wait_for(tmp_path / "w", 1)
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0 and "most recent call first" in err
    assert list((tmp_path / "w" / "profile").rglob("*.xplane.pb"))


def losses_of(workdir):
    lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {(x["stage"], x["epoch"]): x for x in lines}


def assert_close_to(whole, workdir):
    expected = {(x["stage"], x["epoch"]): x for x in whole["log"]}
    found = losses_of(workdir)
    assert found.keys() == expected.keys()
    for place, line in expected.items():
        for key in ("loss", "total", "inter", "icdl_instance", "gid", "association_clusters"):
            if key in line:
                np.testing.assert_allclose(found[place][key], line[key], rtol=2e-3, err_msg=place)


def test_two_processes_train_as_one(start, whole, tmp_path):
    outputs = [finish(process) for process in two(start, tmp_path / "w")]
    page = (tmp_path / "w" / "report.html").read_text()
    assert 'id="lists"' in page and "no rank lists" not in page
    assert_close_to(whole, tmp_path / "w")
    assert "[1] traced: prompts 1" in outputs[1] and "summary: " not in outputs[1]


def test_one_of_two_is_asked_to_stop_and_both_save_the_same_step(start, whole, tmp_path):
    processes = two(start, tmp_path / "w")
    wait_for(tmp_path / "w", 3)
    processes[1].send_signal(signal.SIGTERM)
    lines = [finish(process).splitlines()[-1] for process in processes]
    said = {re.search(r"stopped: (.*); continue", line)[1] for line in lines}
    assert len(said) == 1, lines
    assert not (tmp_path / "w" / "summary.json").exists()
    # What two saved, one can go on with.
    finish(start(tmp_path / "w", "--resume"))
    assert_close_to(whole, tmp_path / "w")


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_of_two_is_gone_the_other_says_so_and_the_run_resumes(
    start, whole, tmp_path, victim
):
    processes = two(start, tmp_path / "w")
    wait_for(tmp_path / "w", 3)
    killed = time.monotonic()
    processes[victim].kill()
    out, err = processes[1 - victim].communicate(timeout=LIMIT)
    assert time.monotonic() - killed < 60
    assert processes[1 - victim].returncode == 75, out + err
    said = [line for line in err.splitlines() if f"process {victim}" in line]
    assert len(said) == 1 and "--resume" in said[0] and "checkpoint" in said[0], err
    assert "***" not in err and "Traceback" not in err  # no stack of C++ or Python
    finish(start(tmp_path / "w", "--resume"))
    assert_close_to(whole, tmp_path / "w")
