"""CITATION.cff and the BibTeX of the page say the same of the four papers."""

import re
import tomllib

import pytest

from tests.docs.pages import ROOT, blocks, read

yaml = pytest.importorskip("yaml")


def squeezed(text):
    return " ".join(text.split())


def entries():
    """The BibTeX entries of the page: by kind and key, the fields."""
    (text,) = blocks(read("citing.md"), "bibtex")
    found = {}
    for kind, key, body in re.findall(r"^@(\w+)\{(\w+),\n(.*?)^\}", text, re.S | re.M):
        fields = re.findall(r"^  (\w+)\s*= \{(.*?)\}(?:,|$)", body, re.S | re.M)
        found[kind, key] = {name: squeezed(value) for name, value in fields}
    return found


def test_the_citation_file_and_the_page_agree():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cff)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cff["version"] == project["version"]
    assert cff["authors"] == [{"name": project["name"]}]  # an entity; no people are made up
    papers = [fields for (kind, _), fields in entries().items() if kind != "software"]
    assert len(papers) == len(cff["references"]) == 4
    readme = (ROOT / "README.md").read_text()
    for paper, reference in zip(papers, cff["references"], strict=True):
        people = [f"{a['family-names']}, {a['given-names']}" for a in reference["authors"]]
        assert paper["title"] == squeezed(reference["title"])
        assert paper["author"] == " and ".join(people)
        assert paper["year"] == str(reference["year"])
        assert paper.get("doi") == reference.get("doi")
        if "pages" in paper:
            assert paper["pages"] == f"{reference['start']}--{reference['end']}"
        link = paper["doi"] if "doi" in paper else paper["eprint"]
        assert link in readme
        assert ", ".join(a["family-names"] for a in reference["authors"]) in readme
