"""Commands in the documents parse, their code compiles, and their links lead somewhere."""

from __future__ import annotations

import importlib
import pkgutil
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from isoflop.experiments import cli
from isoflop.experiments.cli import flags
from isoflop.experiments.cli.catalogue import log_entries
from isoflop.experiments.cli.main import main
from isoflop.experiments.cli.readme import DOCUMENTS, ROOT

TEXTS = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in (*DOCUMENTS, "CHANGELOG.md", "CONTRIBUTING.md")
}
TEXTS |= {  # their prose, which is in comments
    path.relative_to(ROOT).as_posix(): re.sub(
        r"^# ?",
        "",
        "\n".join(re.findall(r"^#.*", path.read_text(encoding="utf-8"), re.M)),
        flags=re.M,
    )
    for path in sorted((ROOT / "experiments" / "lessons").glob("lesson*.py"))
}
LAUNCH = ROOT / "experiments" / "launch"
ROOMS = ("models", "sim", "figures", "experiments", "tests")
GUIDES = [name for name in TEXTS if name not in ("LOG.md", "CHANGELOG.md")]  # not history
FILES = {path.name for room in ROOMS for path in (ROOT / room).rglob("*.*")}
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(text: str, language: str) -> list[str]:
    return [body for name, body in FENCED.findall(text) if name == language]


def commands() -> list[str]:
    """Every line of a shell block, and every command in backquotes, without comments."""
    found: dict[str, None] = {}
    for name in GUIDES:
        lines = [line for body in blocks(TEXTS[name], "sh") for line in body.splitlines()]
        lines += re.findall(r"`((?:isoflop|make|pip install|python -m) [^`]+)`", TEXTS[name])
        found |= {line.split(" #")[0].strip(): None for line in lines}
    return [line for line in found if line]


class Parsed(BaseException):
    """A command line was understood; nothing that it asks for is done."""


@pytest.fixture
def parse_alone(monkeypatch):
    """Commands end where their options have been read."""
    original = flags.parse

    def parse(*args, **kwargs):
        original(*args, **kwargs)
        raise Parsed

    names = [f"{cli.__name__}.{module.name}" for module in pkgutil.iter_modules(cli.__path__)]
    for found in [importlib.import_module(name) for name in names]:  # all before any is changed
        if getattr(found, "parse", None) is original:
            monkeypatch.setattr(found, "parse", parse)


LINES = [shlex.split(line)[1:] for line in commands() if line.startswith("isoflop ")]
ALONE = [words for words in LINES if all(word.startswith("--") for word in words[1:])]  # of prose
OWN = {"NAME": "gla", "EXPERIMENT|FAMILY": "dense"}  # what stands for a name of the reader's own


@pytest.mark.parametrize("words", [w for w in LINES if w not in ALONE], ids=" ".join)
def test_a_command_is_understood_as_it_stands(words, parse_alone, monkeypatch, tmp_path):
    if words[1:2] == ["mine.py"] and words[0] != "init":
        example = next(b for b in blocks(TEXTS["README.md"], "python") if "cells(" in b)
        (tmp_path / "mine.py").write_text(example, encoding="utf-8")
    for name in {"book.txt", "mixed.txt"}.intersection(words):
        (tmp_path / name).write_text("of the reader's own", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # as commands set it themselves
    with pytest.raises(Parsed):
        main([OWN.get(word, word) for word in words])


@pytest.mark.parametrize("words", ALONE, ids=" ".join)
def test_a_command_that_is_mentioned_is_there_with_its_options(words, capsys):
    with pytest.raises(SystemExit) as end:
        main([words[0], "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert all(option in said for option in words[1:])


def test_other_commands_are_targets_modules_and_extras():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    others = [shlex.split(line) for line in commands() if not line.startswith("isoflop ")]
    assert len(others) > 4
    for words in others:
        match words:
            case ["make", target]:
                assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
            case ["pip", "install", "."]:
                pass
            case ["pip", "install", wanted]:
                extra = re.fullmatch(r"(?:isoflop|\.)\[([\w-]+)\]", wanted)
                assert extra, wanted
                assert re.search(rf"^{extra[1]} = \[", project, re.MULTILINE), wanted
            case [setting, "python", script] if "=" in setting:
                assert (ROOT / script).exists(), script
            case ["python", "-m", module]:
                assert importlib.util.find_spec(module), module
            case _:
                pytest.fail(f"what tests {shlex.join(words)}?")


@pytest.mark.parametrize("name", GUIDES)
def test_python_in_a_document_compiles(name):
    for body in blocks(TEXTS[name], "python"):
        compile(body if body.startswith(("class", '"""')) else f"{{{body}}}", name, "exec")


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_to_files_and_headings_that_are_there(name):
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", TEXTS[name])):
        if not re.match(r"https?:", link):
            place, _, anchor = link.partition("#")
            path = ((ROOT / name).parent / place).resolve() if place else ROOT / name
            assert path.exists(), f"{name}: {link}"
            assert not anchor or anchor in anchors(path), f"{name}: {link}"


def anchors(path: Path) -> set[str]:
    """The names that GitHub gives to a document's headings."""
    heads = re.findall(r"^#+ (.*)$", FENCED.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", GUIDES)
def test_files_in_backquotes_are_there(name):
    for path in re.findall(r"`((?:models|sim|figures|experiments|tests)/[\w./-]+)`", TEXTS[name]):
        assert "NAME" in path or (ROOT / path).exists(), f"{name}: {path}"


@pytest.mark.parametrize("name", GUIDES)
def test_files_named_from_their_own_folder_are_there(name):
    """`mixers/linear.py` in models/README.md, or a file alone, which any folder may hold."""
    for path in re.findall(r"`([\w./-]+(?:\.py|\.md|/))`", TEXTS[name]):
        places = [ROOT / path, (ROOT / name).parent / path]
        known = any(place.exists() for place in places) or path in FILES
        assert "NAME" in path or known, f"{name}: {path}"


def test_the_readme_is_short_and_its_layout_is_that_of_the_folders():
    assert len(TEXTS["README.md"].splitlines()) <= 250
    (drawn,) = (body for body in blocks(TEXTS["README.md"], "") if body.startswith("models/"))
    room = Path()
    for line in drawn.splitlines():
        names = re.match(r" *((?:[\w]+/ ?)+)", line)
        assert names, line
        for name in names[1].split():
            room = room if line.startswith(" ") else Path(name)
            assert (ROOT / room / name if line.startswith(" ") else ROOT / name).is_dir(), line


def test_the_log_is_dated_newest_first_and_in_its_index_once():
    head, *days = re.split(r"^## (?=\d{4}-)", TEXTS["LOG.md"], flags=re.MULTILINE)
    dates = [day.splitlines()[0] for day in days]
    assert dates == sorted(set(dates), reverse=True)
    for date, day in zip(dates, days, strict=True):
        told = [line for line in day.splitlines()[1:] if line]
        assert told[0].startswith("### "), f"{date}: the first entry has no subject"
        entries = [line for line in told if not line.startswith(("  ", "### "))]
        assert all(line.startswith("- **") for line in entries), date
    titles = [title for _, _, title in log_entries()]
    assert len(titles) == len(set(titles)) == len(re.findall(r"^- \*\*", TEXTS["LOG.md"], re.M))
    listed = re.findall(r"^- \d{4}-\d\d-\d\d: (.*)$", head, re.MULTILINE)
    assert sorted(" · ".join(listed).split(" · ")) == sorted(titles)


def test_the_changelog_keeps_its_form():
    """Of Keep a Changelog: versions, the unreleased first, and their kinds of change."""
    versions = re.findall(r"^## (.*)$", TEXTS["CHANGELOG.md"], re.MULTILINE)
    assert versions[0] == "[Unreleased]"
    kinds = re.findall(r"^### (.*)$", TEXTS["CHANGELOG.md"], re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_citation_is_of_the_package_s_version_and_licence():
    cited = dict(
        re.findall(r"^([\w-]+): (.+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE)
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
