"""The log of a run: what a resumed run writes again is removed, in lines and in events."""

import json
import struct

import pytest

from ccafl_jax.training import log as log_module
from ccafl_jax.training.log import RunLog, format_line


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events_of(workdir):
    """(tag, step, value) of all event files in a run folder, in the order of their names.

    A record is its length (8 bytes), a checksum (4), the event and another checksum (4).
    """
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            content = content[16 + length :]
    return found


def write_epochs(log, stage, epochs, scale=1.0):
    for epoch in epochs:
        log.write(stage, epoch, {"loss": scale / (epoch + 3), "rate": 0.1})


def comparable(workdir):
    return [{k: v for k, v in line.items() if k != "time"} for line in lines_of(workdir)]


def test_an_interrupted_log_ends_like_one_that_was_not(tmp_path):
    whole = RunLog(tmp_path / "whole", dataset="d")
    write_epochs(whole, "prompts", range(4))
    write_epochs(whole, "encoder", range(5))
    whole.close()

    first = RunLog(tmp_path / "cut", dataset="d")
    write_epochs(first, "prompts", range(4))
    write_epochs(first, "encoder", range(2))
    write_epochs(first, "encoder", [2], scale=9.0)  # its checkpoint was never written
    first.close()
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "enc')  # killed while it wrote
    second = RunLog(tmp_path / "cut", dataset="d", resume_at={"prompts": 4, "encoder": 2})
    write_epochs(second, "encoder", range(2, 5))
    second.close()

    assert comparable(tmp_path / "cut") == comparable(tmp_path / "whole")
    events = events_of(tmp_path / "cut")
    assert events == events_of(tmp_path / "whole")
    assert len(events) == len({(tag, step) for tag, step, _ in events}) == 18


def test_lines_before_the_resume_point_stay_as_they_are(tmp_path):
    log = RunLog(tmp_path)
    log.write("encoder", 0, {"loss": 1 / 3})
    log.close()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    RunLog(tmp_path, resume_at={"encoder": 1}).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_run_that_starts_anew_has_a_new_log(tmp_path):
    for scale in (1.0, 2.0):
        log = RunLog(tmp_path, dataset="d")
        write_epochs(log, "prompts", range(2), scale)
        log.close()
    assert [line["loss"] for line in lines_of(tmp_path)] == [2 / 3, 2 / 4]
    assert len(events_of(tmp_path)) == 4


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(log_module, "is_first", lambda: False)
    log = RunLog(tmp_path / "w", resume_at={"encoder": 1})
    log.write("encoder", 1, {"loss": 1.0})
    assert log.seconds >= 0
    log.close()
    assert not (tmp_path / "w").exists()


def test_where_nothing_can_be_appended_the_file_is_written_anew(tmp_path, monkeypatch):
    log = RunLog(tmp_path)
    modes, opened = [], type(log._path).open
    monkeypatch.setattr(log_module, "is_local", lambda _: False)
    monkeypatch.setattr(
        type(log._path), "open", lambda *a, **k: modes.append(a[1:]) or opened(*a, **k)
    )
    write_epochs(log, "encoder", range(3))
    log.close()
    assert [line["epoch"] for line in lines_of(tmp_path)] == [0, 1, 2]
    assert modes == [("r",), ("w",)] * 3


def test_a_full_disk_takes_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    log = RunLog(tmp_path)
    monkeypatch.setattr(log, "_append", full)
    with pytest.raises(OSError, match=r"metrics\.jsonl: No space left on device; make room"):
        log.write("encoder", 0, {"loss": 1.0})
    log.close()


def test_a_printed_line_has_few_digits():
    assert format_line({"mAP": 0.123456, "clusters": 12}) == "mAP 0.1235  clusters 12"
