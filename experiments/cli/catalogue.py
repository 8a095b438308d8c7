"""Tables of what there is, made from the code that defines it: a row for each, in its own words.

What a row says is the docstring beside the code: a mixer's module, a family's function, a law's
class, an experiment's file. `experiments/cli/readme.py` puts the tables into the READMEs.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

from isoflop import experiments
from isoflop.experiments import families
from isoflop.models.base import Tagged
from isoflop.models.checkpoints.formats import LAYOUTS
from isoflop.models.checkpoints.translation import Layout
from isoflop.models.families import zoo
from isoflop.sim import data, optim
from isoflop.sim.cost.names import CONVENTIONS
from isoflop.sim.laws.forms import LAWS

ROOT = Path(__file__).resolve().parents[2]


def markdown(heads: Sequence[str], body: Iterable[Sequence[str]], numbers: bool = True) -> str:
    """A table; columns after the first are set to the right where they hold numbers."""
    lines = [heads, ["---", *["---:" if numbers else "---"] * (len(heads) - 1)], *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def prose(text: str) -> str:
    """One line of a table's cell."""
    return re.sub(r"([|*])", r"\\\1", " ".join(text.split()))


def opening(doc: str | None) -> str:
    """The first paragraph of a docstring."""
    return prose((doc or "").split("\n\n")[0])


def mixers() -> str:
    """The files of models/mixers, with the `kind` of every config that they define."""
    body = []
    for path in sorted((ROOT / "models" / "mixers").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if kinds := [kind for node in tree.body for kind in _kinds(node)]:
            cells = [f"[`{path.name}`](mixers/{path.name})", ", ".join(f"`{k}`" for k in kinds)]
            body.append([*cells, opening(ast.get_docstring(tree))])
    return markdown(["file", "`kind`", "what it is"], body, numbers=False)


def _kinds(node: ast.stmt) -> list[str]:
    """The value of a config class's `kind`, if it has one."""
    return [
        item.value.value
        for item in getattr(node, "body", ())
        if isinstance(item, ast.AnnAssign)
        and getattr(item.target, "id", "") == "kind"
        and isinstance(item.value, ast.Constant)
        and isinstance(item.value.value, str)
    ]


def zoo_families() -> str:
    """Every family, what it is and leaves out, and the tuned rate of its matrices at width 64."""
    rates = families.tuned()["rates"]
    body = [
        [f"`{name}`", opening(make.__doc__), f"{rates[name]:g}" if name in rates else "—"]
        for name, make in zoo.FAMILIES.items()
    ]
    return markdown(["family", "what it is", "tuned rate"], body, numbers=False)


def formats() -> str:
    """The published checkpoints that are read and written."""
    body = [
        [f"`{name}`", f"`{layout.architecture}`", ", ".join(_parts(layout))]
        for name, layout in LAYOUTS.items()
    ]
    return markdown(["`model_type`", "architecture", "becomes"], body, numbers=False)


def _parts(layout: Layout) -> list[str]:
    return list(dict.fromkeys(f"`{part.kind.__name__}`" for part in layout.parts.values()))


def conventions() -> str:
    """How the field counts FLOPs, and what each way counts."""
    body = [[f"`{name}`", prose(said)] for name, said in CONVENTIONS.items()]
    return markdown(["convention", "FLOPs of a run"], body, numbers=False)


def laws() -> str:
    """The laws that `isoflop fit` knows, by the name that --law takes."""
    body = [
        [f"`{name}`", opening(law.__doc__), ", ".join(law.inputs)] for name, law in LAWS.items()
    ]
    return markdown(["`--law`", "law", "fitted to"], body, numbers=False)


def sources() -> str:
    """What a run can be trained on."""
    return _configs(data, data.DataConfig)


def tasks() -> str:
    """The tasks by their files, each with what is learnt and where it is from."""
    body = []
    for path in sorted((ROOT / "sim" / "data" / "tasks").glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and (kinds := _kinds(node)):
                cells = [
                    f"`{node.name}`",
                    f"`{kinds[0]}`",
                    f"[`{path.name}`](data/tasks/{path.name})",
                ]
                body.append([*cells, opening(ast.get_docstring(node))])
    return markdown(["config", "`kind`", "file", "what it is"], body, numbers=False)


def optimisers() -> str:
    return _configs(optim, optim.Optim)


def _configs(package: ModuleType, base: type[Tagged]) -> str:
    """The configs that a package exports, by name; `base` is what they have in common."""
    found = [getattr(package, name) for name in package.__all__]
    body = [
        [f"`{item.__name__}`", f"`{item.model_fields['kind'].default}`", opening(item.__doc__)]
        for item in found
        if isinstance(item, type) and issubclass(item, base) and item is not base
    ]
    return markdown(["config", "`kind`", "what it is"], body, numbers=False)


def catalogue() -> str:
    """Every experiment: its question and duration, by its docstring, and what is committed."""
    body = []
    for name, experiment in experiments.discover().items():
        duration = re.search(r"^Duration:(.*?)(?=^\w+:|\Z)", experiment.doc, re.S | re.M)
        told = [prose(experiment.question), prose(duration[1]) if duration else "—"]
        body.append([f"[`{name}`]({name}.py)", *told, _pictures(name), _committed(name)])
    heads = ["experiment", "question", "duration", "figures", "committed results"]
    return markdown(heads, body, numbers=False)


def lessons() -> str:
    """Every lesson by its contract: the question and the minutes."""
    body = []
    for path in sorted((ROOT / "experiments" / "lessons").glob("lesson*.py")):
        text = path.read_text(encoding="utf-8")
        items = re.findall(r"^# - \*\*(.+?)\.\*\* (.+\n(?:#   .+\n)*)", text, re.M)
        told = {name: prose(said.replace("\n#  ", "")) for name, said in items}
        (title,) = re.findall(r"^# # Lesson \d+: (.+)$", text, re.M)
        body.append([f"[{title}](lessons/{path.name})", told["Question"], told["Minutes"]])
    return markdown(["lesson", "question", "minutes"], body, numbers=False)


def _pictures(name: str) -> str:
    """Committed figures, by the folders that hold them."""
    out = ROOT / "figures" / "out"
    told = []
    for folder in (path for path in (out / name, out / "gpu" / name) if path.is_dir()):
        found = list(folder.glob("*.png"))
        place, what = (found[0], "picture") if len(found) == 1 else (folder, "pictures")
        gpu = " of a GPU" if folder.parent != out else ""
        told.append(f"[{len(found)} {what}{gpu}](../{place.relative_to(ROOT).as_posix()})")
    return ", ".join(told) or "—"


def _committed(name: str) -> str:
    """Records of runs and tables of measurements, with the number of their rows."""
    told = []
    for path in sorted((ROOT / "experiments" / "results").glob("*.jsonl")):
        if path.stem == name or path.stem.startswith(f"{name}_"):
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            what = "runs" if "record" in rows[0] else "measurements"
            told.append(f"[{len(rows)} {what}](results/{path.name})")
    return ", ".join(told) or "none: measured when asked for"


def log_index() -> str:
    """Titles of the log's entries by subject, then by date, as they stand under their headings."""
    found: dict[str, dict[str, list[str]]] = {}
    for subject, date, title in log_entries():
        found.setdefault(subject, {}).setdefault(date, []).append(title)
    return "\n\n".join(
        "\n".join([f"**{subject}**", "", *(f"- {day}: {' · '.join(t)}" for day, t in days.items())])
        for subject, days in sorted(found.items())
    )


def log_entries() -> list[tuple[str, str, str]]:
    """Subject, date and title of every entry of LOG.md, in its order."""
    text = (ROOT / "LOG.md").read_text(encoding="utf-8")
    entries = []
    for date, day in re.findall(r"^## (\d{4}-\d\d-\d\d)\n(.*?)(?=^## |\Z)", text, re.S | re.M):
        for subject, under in re.findall(r"^### (.*?)\n(.*?)(?=^### |\Z)", day, re.S | re.M):
            titles = re.findall(r"^- \*\*(.+?)\*\*", under, re.S | re.M)
            entries += [(subject, date, prose(title).rstrip(".:")) for title in titles]
    return entries
