"""The site: pages of the documents, the lessons and the docstrings, which hold together."""

from __future__ import annotations

import html
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from browser import CHROMIUM, chromium

from isoflop.experiments.cli.readme import ROOT
from isoflop.experiments.site import docstrings

SITE = ROOT / "experiments" / "site"
PAGES = {path.name: path.read_text(encoding="utf-8") for path in SITE.glob("*.md")}
UNWRITTEN = re.compile(r"\b(TODO|TBD|FIXME|lorem|coming soon|foretell|drowned|lanes)\b", re.I)
CORE = "experiments/site"  # where the site's own pages lie among the built ones


def test_code_stays_code_and_nothing_else_means_anything():
    told = docstrings.restructured(["N* of `D*`'s |w| and `params_raw`s, loss_, a", "second line."])
    assert told == ["N\\* of ``D*``'s \\|w\\| and ``params_raw``\\ s, loss\\_, a second line.", ""]


def test_formulas_and_arguments_keep_their_form():
    told = docstrings.restructured(
        ["One line.", "", "    L = E", "", "    a * b", "", "Args:", "    n: how", "        many.",
         "    d: of `D`.", "", "- one", "  more", "- two"]
    )  # fmt: skip
    assert told[2:8] == ["::", "", "    L = E", "", "    a * b", ""]
    assert told[8:10] == [":param n: how many.", ":param d: of ``D``."]
    assert told[11:13] == ["- one more", "- two"]


def test_every_module_of_models_and_sim_stands_on_one_page():
    listed = [name for modules in docstrings.packages().values() for name in modules]
    assert len(listed) == len(set(listed))
    for room in ("models", "sim"):
        for path in (ROOT / room).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(["isoflop", *(part for part in parts if part != "__init__")])
            assert name in listed or parts[-1].startswith("_")


def test_every_page_is_in_a_list_of_contents():
    trees = re.findall(r"```\{toctree\}.*?```", "".join(PAGES.values()), re.DOTALL)
    listed = {line.strip() for tree in trees for line in tree.splitlines()}
    assert {name.removesuffix(".md") for name in PAGES} - {"index"} <= listed


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_written_to_its_end(name):
    assert not UNWRITTEN.search(PAGES[name])
    assert PAGES[name].startswith("# ")


def test_the_site_s_packages_are_an_extra_and_nothing_of_it_is_installed():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^site = \["sphinx', project, re.MULTILINE)
    assert 'exclude = ["isoflop.experiments.site*"]' in project


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The site as `make site` builds it: a warning is an error."""
    out = tmp_path_factory.mktemp("site")
    words = ["-W", "--keep-going", "--quiet", "-c", str(SITE), str(ROOT), str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-8000:]
    return out


@pytest.mark.site
def test_links_lead_to_pages_and_places_that_are_there(built):
    pages = {path: path.read_text(encoding="utf-8") for path in built.rglob("*.html")}
    places = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in pages.items()}
    count = 0
    for path, text in pages.items():
        for link in re.findall(r'\bhref="([^"]+)"', text):
            place, _, anchor = unquote(html.unescape(link)).partition("#")
            if re.match(r"[a-z]+:", place):
                continue
            target = (path.parent / place.partition("?")[0]).resolve() if place else path
            assert target.exists(), f"{path}: {link}"
            if anchor and target in places:
                assert anchor in places[target], f"{path}: {link}"
            count += 1
    assert count > 1000


@pytest.mark.site
def test_documents_lessons_verdicts_and_docstrings_are_all_there(built):
    for name in PAGES:
        assert (built / CORE / name).with_suffix(".html").is_file()
    for path in ("README", "LOG", "CHANGELOG", "CONTRIBUTING", "models/README", "sim/README"):
        assert (built / f"{path}.html").is_file()
    for path in (ROOT / "experiments" / "lessons").glob("lesson*.py"):
        assert (built / "experiments" / "lessons" / path.name).with_suffix(".html").is_file()
    for name in docstrings.packages():
        assert (built / CORE / "api" / f"{name}.html").is_file()
    laws = (built / CORE / "api" / "isoflop.sim.laws.html").read_text(encoding="utf-8")
    assert 'id="isoflop.sim.laws.forms.Chinchilla"' in laws
    assert "not reproduced" in (built / CORE / "verdicts.html").read_text(encoding="utf-8")


@pytest.mark.site
def test_pages_ask_for_nothing_from_a_network(built):
    for path in built.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//', text), path


@pytest.mark.site
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
@pytest.mark.parametrize("width", [1280, 375])
def test_pages_open_without_a_word_on_the_console_and_fit_the_screen(built, tmp_path, width):
    names = ["index", "install", "tutorial", "table", "verdicts", "api/isoflop.sim.laws"]
    with chromium(tmp_path / "profile") as page:
        page.size(width)
        for path in [*(built / CORE / f"{name}.html" for name in names), built / "README.html"]:
            page.open(path.as_uri())
            assert page.overflow() <= 0, path
        assert page.said == []


@pytest.mark.site
def test_the_build_says_what_is_wrong(tmp_path):
    """That a warning is an error: a page with a link to nowhere is refused."""
    assert importlib.util.find_spec("sphinx")
    (tmp_path / "conf.py").write_text('extensions = ["myst_nb"]\nnitpicky = True\n')
    (tmp_path / "index.md").write_text("# A\n\n[b](nowhere.md)\n")
    words = ["-W", "--quiet", str(tmp_path), str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "nowhere" in done.stderr
