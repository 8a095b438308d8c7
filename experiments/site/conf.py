"""The site: `make site`. Its sources are the documents where they lie, so Sphinx's source folder is
the root of the checkout, and this folder has what is the site's alone.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT / ".package")]

import docstrings  # noqa: E402

project = "isoflop"
author = "The isoflop authors"
release = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]

root_doc = "experiments/site/index"
include_patterns = [
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LOG.md"),
    *("models/README.md", "sim/README.md", "experiments/README.md"),
    *("experiments/launch/README.md", "experiments/published/README.md"),
    *("experiments/site/**", "experiments/lessons/lesson*.py"),
]
exclude_patterns = ["experiments/site/*.py", ".*", "build", "runs", "report", "**/__pycache__"]
extensions = ["myst_nb", "sphinx.ext.autodoc"]
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # signatures name the types of other packages

myst_heading_anchors = 4
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "off"  # `make lessons` runs them, and shows what they print

autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_type_aliases = {"Floats": "Floats"}
python_use_unqualified_type_names = True
add_module_names = False

suppress_warnings = ["ref.python"]  # two classes of one name, in a signature

html_theme = "furo"
html_title = f"isoflop {release}"
html_show_sourcelink = False
html_show_copyright = False
html_copy_source = False
html_extra_path = ["root"]  # beside the site's pages: the way to the first


def links(app: Any, name: str, source: list[str]) -> None:
    """Links to code open the file, and those to folders, which a site has not, are words."""
    document = Path(app.env.doc2path(name))

    def changed(link: re.Match[str]) -> str:
        words, place = link.groups()
        path = document.parent / place
        if path.is_dir():
            return words
        page = app.env.path2doc(str(path.resolve())) in app.project.docnames  # as a lesson is
        return f"[{words}](path:{place})" if path.suffix == ".py" and not page else link[0]

    if document.suffix == ".md":
        source[0] = re.sub(r"\[([^\[\]]+)\]\(([\w./-]+)\)", changed, source[0])


def explorer(app: Any, failed: Exception | None) -> None:
    """The page of `isoflop explore`, which the lessons link."""
    from isoflop.experiments.cli.explore import explore

    if failed is None and app.builder.name == "html":
        explore(out=Path(app.outdir) / "explore.html")


def setup(app: Any) -> None:
    docstrings.write_pages(HERE / "api")
    app.connect("source-read", links)
    app.connect("autodoc-process-docstring", docstrings.process)
    app.connect("autodoc-process-signature", docstrings.signature)
    app.connect("build-finished", explorer)
