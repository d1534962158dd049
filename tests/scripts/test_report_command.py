"""The commands that draw reports, as they are typed."""

import importlib.util
import pathlib
import sys

import pytest

from tests.report.finished import finished_run

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("commands"))


@pytest.fixture
def call(monkeypatch, capsys):
    """Calls a command in this process; returns what it printed, or its error."""

    def begin(name, *words):
        monkeypatch.syspath_prepend(str(SCRIPTS))
        spec = importlib.util.spec_from_file_location(f"{name}_command", SCRIPTS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        monkeypatch.setattr(module, "start_logging", lambda: None)
        capsys.readouterr()
        try:
            module.main()
        except SystemExit as end:
            assert end.code == 2
            return capsys.readouterr().err.splitlines()[-1]
        return capsys.readouterr().out

    return begin


def test_a_report_is_made_again(call, run, tmp_path):
    out = tmp_path / "new" / "r.html"
    words = ("--out", out, "--no-rankings", "--perplexity", 7)
    assert f"report: {out} (" in call("report", "--workdir", run, *words)
    text = out.read_text()
    assert "Perplexity 7" in text and 'id="lists"' not in text and 'id="training"' in text
    printed = call("report", "--workdir", run, "--root", tmp_path / "gone")
    assert "note: no rankings: no folder" in printed and (run / "report.html").exists()


def test_errors_of_reports_take_one_line(call, run, tmp_path):
    found = call("report", "--workdir", tmp_path)
    assert found.startswith("error: ") and "no run (no summary.json)" in found
    assert "--lists is 0" in call("report", "--workdir", run, "--lists", 0)
    assert "--perplexity is -1" in call("report", "--workdir", run, "--perplexity", -1)


def test_embeddings_are_drawn(call, run, tmp_path):
    printed = call("tsne", "--workdir", run, "--out", tmp_path / "a.png")
    assert "90 points a stage, perplexity 22.25" in printed
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    words = ("--stages", "intra", "--perplexity", 5, "--out", tmp_path / "a.svg")
    call("tsne", "--workdir", run, *words)
    text = (tmp_path / "a.svg").read_text()
    assert "after stage intra" in text and "perplexity 5" in text and "zero-shot" not in text


def test_errors_of_embeddings_take_one_line(call, run, tmp_path):
    out = ("--workdir", run, "--out", tmp_path / "a.svg")
    assert "must end in .png or .svg" in call("tsne", "--workdir", run, "--out", "a.pdf")
    found = call("tsne", *out, "--stages", "clips")
    assert "no snapshot of clips; it has inter, intra, zero_shot" in found
    assert "one or two stages" in call("tsne", *out, "--stages", "intra", "inter", "zero_shot")
