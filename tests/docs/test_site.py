"""The site: every page in the navigation, links and equations sound, nothing fetched from elsewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from .commands import REPOSITORY

DOCS = REPOSITORY / "docs"
FETCHES = {("link", "href"), ("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src")}


class Fetched(HTMLParser):
    """Collects what a browser would fetch to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if (tag, name) in FETCHES and value]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site without the API reference, which imports the whole package, and without running the notebook.

    It is built from a copy, because a build writes the pages of the reference beside the others.
    """
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, folder / "docs", ignore=shutil.ignore_patterns("api", "__pycache__"))
    for path in REPOSITORY.iterdir():
        if path.name != "docs" and not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    settings = ["-D", "nb_execution_mode=off", "-t", "without_reference"]
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", *settings]
    run = subprocess.run(
        [*command, str(folder / "docs"), str(folder / "html")], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return folder / "html"


def pages(site: Path) -> list[Path]:
    return [path for path in site.rglob("*.html") if "_static" not in path.parts]


def test_every_page_is_built(site):
    sources = [*DOCS.glob("*.md"), *DOCS.glob("notebooks/*.ipynb")]
    built = {path.relative_to(site).with_suffix("").as_posix() for path in pages(site)}
    assert {source.relative_to(DOCS).with_suffix("").as_posix() for source in sources} <= built


def test_pages_of_the_root_are_there_with_their_links(site):
    assert "[Unreleased]" in (site / "changelog.html").read_text()
    assert 'href="contributing.html"' in (site / "security.html").read_text().split("<article", 1)[1]


def test_nothing_is_fetched_from_elsewhere(site):
    for path in pages(site):
        parser = Fetched()
        parser.feed(path.read_text())
        assert parser.addresses
        outside = [address for address in parser.addresses if re.match(r"(https?:)?//", address)]
        assert outside == [], path.name
    for sheet in site.rglob("*.css"):
        assert re.findall(r"(?:@import|url\()\s*['\"]?(?:https?:)?//", sheet.read_text()) == [], sheet.name


def test_equations_are_mathml(site):
    text = (site / "uniap.html").read_text()
    assert text.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">') == 6
    assert "<merror" not in text
    shown = re.sub(r"<annotation.*?</annotation>", "", " ".join(re.findall(r"<math.*?</math>", text, flags=re.DOTALL)))
    # a command that the converter does not know would stand there as text
    assert "\\" not in shown
    assert not list(site.rglob("*mathjax*"))


def test_links_to_equations_lead_somewhere(site):
    text = (site / "uniap.html").read_text()
    targets = set(re.findall(r'href="#(equation-[a-z\-]+)"', text))
    assert len(targets) >= 3
    assert targets <= set(re.findall(r'id="([^"]+)"', text))


def test_pictures_have_a_description():
    for path in DOCS.glob("*.md"):
        for words in re.findall(r"!\[([^\]]*)\]\(", path.read_text()):
            assert len(words) > 10, path.name


def test_a_broken_link_fails_the_build(tmp_path):
    """What the other tests rely on: a warning is an error."""
    (tmp_path / "conf.py").write_text('extensions = ["myst_parser"]\n')
    (tmp_path / "index.md").write_text("# Title\n\n[there](nowhere.md)\n")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", str(tmp_path), str(tmp_path / "html")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "nowhere.md" in run.stderr
