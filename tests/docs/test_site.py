"""The site is built strictly, all its links and images lead somewhere, and it loads nothing."""

import html.parser
import os
import pathlib
import re
import subprocess
import sys
import urllib.parse

import pytest

from tests.docs.pages import DOCS, ROOT

LOADS = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src"}


class Links(html.parser.HTMLParser):
    """Where a page leads to, what it loads, and the anchors that it has."""

    def __init__(self):
        super().__init__()
        self.leads, self.loads, self.anchors = [], [], set()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href"):
            self.leads.append(given["href"])
        if tag in LOADS and given.get(LOADS[tag]):
            # Says where a page lies, and loads nothing.
            if given.get("rel") not in ("canonical", "next", "prev"):
                self.loads.append(given[LOADS[tag]])


def read_links(text):
    links = Links()
    links.feed(text)
    return links


def broken(page, links, pages):
    """Links of a page within the site that lead nowhere."""
    wrong = []
    for link in links.leads + links.loads:
        parts = urllib.parse.urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        path = urllib.parse.unquote(parts.path)
        target = (page.parent / path).resolve() if path else page
        target = target / "index.html" if target.is_dir() else target
        anchors = pages[target].anchors if target in pages else {parts.fragment}
        if not target.is_file() or (parts.fragment and parts.fragment not in anchors):
            wrong.append(f"{page.name}: {link}")
    return wrong


@pytest.mark.ci
def test_the_site_is_whole_and_loads_nothing(tmp_path):
    pytest.importorskip("material", reason="pip install -e '.[docs]'")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    pages = {path.resolve(): read_links(path.read_text()) for path in site.rglob("*.html")}
    assert {path.stem for path in DOCS.glob("*.md")} <= {path.stem for path in pages}
    # The page for what is not found names the others from the root of a server.
    whole = {path: links for path, links in pages.items() if path.name != "404.html"}
    assert sum(len(links.leads) for links in whole.values()) > 500
    assert [b for path, links in whole.items() for b in broken(path, links, pages)] == []
    foreign = [load for links in pages.values() for load in links.loads if "//" in load]
    assert foreign == []
    styles = "\n".join(path.read_text() for path in site.rglob("*.css"))
    assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", styles)
    # The theme fetches diagrams and formulas from elsewhere where a page has some.
    assert not any(re.search(r"class=\"(?:mermaid|arithmatex)", p.read_text()) for p in pages)


def test_broken_links_are_seen(tmp_path):
    (tmp_path / "b.html").write_text('<h2 id="here">x</h2>')
    page = tmp_path / "a.html"
    page.write_text('<a href="b.html#here">1</a><a href="b.html#there">2</a><img src="c.svg">')
    pages = {path.resolve(): read_links(path.read_text()) for path in tmp_path.glob("*.html")}
    assert broken(page.resolve(), pages[page.resolve()], pages) == [
        "a.html: b.html#there",
        "a.html: c.svg",
    ]


def slug(heading):
    """The anchor of a heading, as GitHub and the site make it."""
    words = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
    return words.strip().replace(" ", "-")


def test_links_between_sources_lead_somewhere():
    """What GitHub shows: README.md and the sources of the pages."""
    sources = [ROOT / "README.md", *DOCS.glob("*.md")]
    texts = {
        path: re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.S | re.M) for path in sources
    }
    anchors = {
        path: {slug(heading) for heading in re.findall(r"^#+ (.*)$", text, re.M)}
        for path, text in texts.items()
    }
    wrong, seen = [], 0
    for path, text in texts.items():
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"https?:", link):
                continue
            name, _, fragment = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            known = anchors.get(target, {fragment})
            seen += 1
            if not target.exists() or (fragment and fragment not in known):
                wrong.append(f"{path.name}: {link}")
    assert wrong == [] and seen > 80


def test_every_page_is_in_the_menu_and_lines_are_short():
    menu = (ROOT / "mkdocs.yml").read_text()
    pages = [path for path in DOCS.glob("*.md") if f": {path.name}" not in menu]
    assert pages == []
    assert "font: false" in menu and "strict: true" in menu
    made = ("index", "quickstart", "architecture", "troubleshooting", "add_a_method")
    made += ("differences", "commands", "responsible_use", "model_card_template", "citing")
    for name in made:
        for line in pathlib.Path(DOCS / f"{name}.md").read_text().splitlines():
            assert len(line) <= 112 or line.startswith("|"), f"{name}.md: {line}"
