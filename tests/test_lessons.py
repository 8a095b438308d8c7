"""Lessons keep their form, and their exercises are marked by the records."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from isoflop.experiments import lessons
from isoflop.experiments.cli import check
from isoflop.experiments.cli.main import main
from isoflop.experiments.families import RESULTS
from isoflop.experiments.lessons.exercises import EXERCISES
from isoflop.experiments.lessons.marking import Question, grade
from isoflop.models.errors import UserError
from isoflop.sim.data import Corpus

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "experiments" / "lessons").glob("lesson*.py"))
NAMES = [path.stem.split("_")[0] for path in FILES]
CONTRACT = ("Question", "What is measured", "Decision rule", "Minutes")
SECTIONS = ("Predict first", "A bad design", "Exercise", "Now with your own corpus")


def markdown(path):
    """The text of a percent script's markdown cells."""
    cells = re.split(r"^# %%", path.read_text(encoding="utf-8"), flags=re.M)
    told = [cell for cell in cells if cell.startswith(" [markdown]")]
    lines = [line for cell in told for line in cell.splitlines()[1:]]
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines)


def test_there_are_eight_lessons_with_an_exercise_each():
    assert NAMES == [*check.LESSONS] == [*EXERCISES] == [f"lesson{i}" for i in range(1, 9)]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_lesson_has_its_contract_a_prediction_a_bad_design_and_folded_answers(path):
    text = markdown(path)
    code = path.read_text(encoding="utf-8")
    compile(code, str(path), "exec")
    fenced = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    assert len(re.findall(r"^# ", fenced, re.M)) == 1
    head = text.split("\n## ")[0]
    assert re.findall(r"^- \*\*(.+?)\.\*\* \S", head, re.M) == [*CONTRACT]
    found = re.findall(r"^## (.+)$", fenced, re.M)
    assert [name for name in found if name in SECTIONS] == [*SECTIONS]
    assert text.count("<details>") == text.count("</details>") >= 2
    assert f'lessons.ask("{path.stem.split("_")[0]}")' in code
    assert f"isoflop check {path.stem.split('_')[0]} answer.json" in text


@pytest.fixture(scope="module")
def truths():
    return {name: {q.name: q.truth(None) for q in asked} for name, asked in EXERCISES.items()}


def mark(lesson, answer, tmp_path, capsys, *more):
    file = tmp_path / "answer.json"
    file.write_text(answer if isinstance(answer, str) else json.dumps(answer))
    code = main(["check", lesson, str(file), *more])
    out, err = capsys.readouterr()
    return code, out, err


def wrong(question: Question, truth):
    """An answer that is wrong, by little."""
    if isinstance(truth, bool):
        return not truth
    if isinstance(truth, str):
        return next(word for word in question.choices if word != truth)
    return truth * (1 + 1.5 * question.within)


@pytest.mark.parametrize("lesson", NAMES)
def test_the_right_answer_passes_and_each_wrong_one_fails_with_its_hint(
    lesson, truths, tmp_path, capsys
):
    truth, asked = truths[lesson], EXERCISES[lesson]
    assert len(asked) >= 3
    code, out, _ = mark(lesson, truth, tmp_path, capsys)
    assert (code, out.splitlines()[-1]) == (0, f"{len(asked)} of {len(asked)} right")
    for question in asked:
        bad = truth | {question.name: wrong(question, truth[question.name])}
        code, out, _ = mark(lesson, bad, tmp_path, capsys)
        assert code == 1
        assert re.findall(r"^wrong: (\w+)", out, re.M) == [question.name]
        assert question.hint in out
    inside = {
        q.name: truth[q.name] * (1 - 0.5 * q.within)
        for q in asked
        if isinstance(truth[q.name], float)
    }
    assert mark(lesson, truth | inside, tmp_path, capsys)[0] == 0


def test_truths_are_numbers_or_words_that_can_be_chosen(truths):
    for name, asked in EXERCISES.items():
        for question in asked:
            truth = truths[name][question.name]
            if isinstance(truth, str):
                assert truth in question.choices
            else:
                assert np.isfinite(truth), question.name


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("[1]", "must be a JSON object"),
        ("{", "must be a JSON object"),
        ({"a": 1.0}, "lacks 'middle', 'tokens_per_parameter', 'in_proportion'"),
        ({"a": None}, "a must be a finite number, and is None"),
        ({"a": float("nan")}, "a must be a finite number"),
        ({"a": True}, "a must be a finite number, and is True"),
        ({"in_proportion": 1}, "in_proportion must be true or false, and is 1"),
        ({"b": 1}, "has beyond them 'b'"),
        ('{"a": 1, "a": 2}', "twice"),
    ],
)
def test_an_answer_that_cannot_be_read_is_told_in_a_line(answer, said, truths, tmp_path, capsys):
    if isinstance(answer, dict) and "lacks" not in said:
        answer = truths["lesson2"] | answer
    code, out, err = mark("lesson2", answer, tmp_path, capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_records_that_do_not_tell_an_answer_are_refused():
    open_ = Question("x", "?", lambda folder: float("nan"), "")
    with pytest.raises(UserError, match="these records do not tell x"):
        grade([open_], {"x": 1.0})


def test_questions_are_printed_without_their_answers_and_other_lessons_are_unknown(capsys):
    assert main(["check", "lesson3"]) == 0
    out = capsys.readouterr().out
    assert "answer.json: {" in out
    assert "unidentifiable" in out  # one of the choices
    assert main(["check", "lesson9"]) == 2
    assert "there is no lesson lesson9" in capsys.readouterr().err
    assert main(["check", "lesson2", "nowhere.json"]) == 2
    assert "there is no file nowhere.json" in capsys.readouterr().err


def test_an_answer_is_marked_by_a_class_s_own_records(truths, tmp_path, capsys):
    own = tmp_path / "own"
    own.mkdir()
    lines = (RESULTS / "isoflop.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:  # the larger the better by far: no minimum is where it was
        loss, size = row["record"]["metrics"]["loss"], row["record"]["params"]["active"]
        loss["value"] *= (size / 2e4) ** -0.02
    (own / "isoflop.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, out, _ = mark("lesson2", truths["lesson2"], tmp_path, capsys, "--records", str(own))
    assert code == 1
    assert "wrong: middle is too small" in out
    code, _, err = mark("lesson1", truths["lesson1"], tmp_path, capsys, "--records", str(own))
    assert code == 2
    assert f"there is no file {own / 'power_law.jsonl'}" in err


def test_records_of_a_class_stand_for_the_committed_ones_where_they_are(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("ISOFLOP_RECORDS", str(tmp_path))
    assert lessons.path("ladder") == RESULTS / "ladder.jsonl"
    assert capsys.readouterr().out == f"ladder: {RESULTS / 'ladder.jsonl'}\n"
    (tmp_path / "ladder.jsonl").write_text("")
    assert lessons.path("ladder") == tmp_path / "ladder.jsonl"
    with pytest.raises(UserError, match="has no runs of dense"):
        lessons.records("ladder", "dense")


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_lesson_runs_as_a_script(path, tmp_path):
    """Those that train do so on another corpus."""
    text = tmp_path / "book.txt"
    text.write_bytes(Corpus(name="sympy").open().train.array[:2_000_000].tobytes())
    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=tmp_path,
        env=os.environ | {"ISOFLOP_CORPUS": str(text), "PYTHONPATH": str(ROOT / ".package")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "answer.json: {" in done.stdout
