"""Claims and verdicts: the rule is beside the code, and what is printed is what the records say."""

import json
import shutil

import pytest

from isoflop.experiments import claims
from isoflop.experiments.cli import readme
from isoflop.experiments.cli.main import main
from isoflop.models.errors import UserError
from isoflop.sim.compare.verdicts import (
    ACCOUNT,
    NOT_RESOLVED,
    NOT_RUN,
    Finding,
    Verdict,
    above,
    all_of,
    claim,
    outside,
)
from isoflop.sim.records.store import read_table, write_table

CLAIMS = claims.claims()


def judged_by(answer: bool | None, words=claims.Claim.words, **options):
    @claim("the moon is cheese", source="folklore", setting="none", words=words, **options)
    def moon(*rows: list) -> Finding:
        """Reproduced if
        it is."""
        return Finding(answer, "1.00 [0.90, 1.10]", {"rows": [len(each) for each in rows]})

    return moon


def test_a_claim_is_named_by_its_function_and_its_rule_is_the_docstring():
    found = judged_by(True)
    assert (found.name, found.rule, found.file) == ("moon", "Reproduced if it is.", "test_verdicts")


def test_a_claim_without_a_rule_is_refused():
    with pytest.raises(ValueError, match="needs its decision rule"):
        claim("x", source="y", setting="z")(lambda: Finding(True, ""))


@pytest.mark.parametrize(
    ("answer", "word"), [(True, "reproduced"), (False, "not reproduced"), (None, "not resolved")]
)
def test_an_answer_becomes_the_words_of_its_kind(answer, word, tmp_path):
    assert judged_by(answer).verdict(tmp_path).word == word
    own = {"reproduced": "held", "not reproduced": "refuted"}.get(word, word)
    assert judged_by(answer, words=ACCOUNT).verdict(tmp_path).word == own


def test_records_too_few_for_a_rule_resolve_nothing_and_keep_the_table(tmp_path):
    @claim("the moon is round", source="folklore", setting="none")
    def moon() -> Finding:
        """Reproduced if it is."""
        raise UserError("the contexts share no executed FLOPs")

    verdict = moon.verdict(tmp_path)
    assert (verdict.word, verdict.result) == (NOT_RESOLVED, "the contexts share no executed FLOPs")


def test_records_of_other_runs_than_a_rule_asks_for_resolve_nothing(tmp_path):
    @claim("the moon is round", source="folklore", setting="none", records=("one",))
    def moon(rows: list) -> Finding:
        """Reproduced if it is."""
        return Finding({row["family"]: True for row in rows}["dense"], "")

    write_table(tmp_path / "one.jsonl", [{"family": "mamba"}])
    verdict = moon.verdict(tmp_path)
    assert verdict.word == NOT_RESOLVED
    assert verdict.result == "the records lack what the rule asks for: 'dense'"


def test_a_claim_is_not_run_until_all_of_its_records_are_there(tmp_path):
    found = judged_by(True, records=("one", "two"))
    write_table(tmp_path / "one.jsonl", [{"a": 1}])
    verdict = found.verdict(tmp_path)
    assert (verdict.word, verdict.result) == (NOT_RUN, "no records of two")
    write_table(tmp_path / "two.jsonl", [{"a": 1}, {"a": 2}])
    assert found.verdict(tmp_path).numbers == {"rows": [1, 2]}


def test_a_claim_outside_a_laboratory_says_why(tmp_path):
    found = outside("taste", "larger is nicer", source="folklore", why="nobody can taste", file="x")
    assert found.verdict(tmp_path) == Verdict(found, "outside a laboratory", "nobody can taste", {})


@pytest.mark.parametrize(
    ("interval", "threshold", "answer"),
    [
        ((1.1, 1.2), 1.0, True),
        ((0.8, 0.9), 1.0, False),
        ((0.9, 1.1), 1.0, None),
        ((None, 0.9), 1.0, False),
        ((1.1, None), 1.0, True),
        ((0.5, None), 1.0, None),
        ((3.0, 4.0), (1.0, 2.0), True),
        ((1.5, 4.0), (1.0, 2.0), None),
        ((0.1, 0.2), (1.0, 2.0), False),
    ],
)
def test_an_interval_is_above_a_threshold_or_another_interval_only_as_a_whole(
    interval, threshold, answer
):
    assert above(*interval, threshold) is answer


def test_all_of_some_answers_is_false_as_soon_as_one_is_and_open_where_one_is():
    assert all_of([True, True]) is True
    assert all_of([True, None]) is None
    assert all_of([None, False]) is False
    with pytest.raises(UserError, match="at least one answer"):
        all_of([])


def test_names_of_claims_are_unique_and_their_files_are_found():
    assert len({one.name for one in CLAIMS}) == len(CLAIMS)
    assert {one.file for one in CLAIMS} == set(claims.files())


def test_the_committed_verdicts_are_of_these_claims_and_rules():
    """`test_the_committed_verdicts_are_what_the_records_say` judges again."""
    rows = read_table(readme.VERDICTS)
    names = ("name", "file", "claim", "source", "setting", "rule", "records")
    plain = json.loads(json.dumps([[getattr(one, name) for name in names] for one in CLAIMS]))
    assert [[row[name] for name in names] for row in rows] == plain, (
        "run: python -m isoflop.experiments.cli.readme"
    )


@pytest.mark.slow
def test_the_committed_verdicts_are_what_the_records_say():
    assert read_table(readme.VERDICTS) == json.loads(json.dumps(readme.judged()))


def test_the_command_judges_the_records_of_a_folder(tmp_path, capsys):
    assert main(["verdicts", "--file", "context", "--records", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows
    assert {row["verdict"] for row in rows} == {NOT_RUN}
    shutil.copy(claims.RESULTS / "context.jsonl", tmp_path)
    assert main(["verdicts", "--file", "context", "--records", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "REPRODUCED: a training step of a selective state space grows linearly" in said
    (committed,) = (r for r in read_table(readme.VERDICTS) if r["name"] == "cost_is_linear")
    assert committed["result"] in said


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ["--file", "contxt"],
            "there is no file of claims called contxt; perhaps you meant context",
        ),
        (["--records", "nowhere"], "there is no folder nowhere; name one that holds NAME.jsonl"),
    ],
)
def test_a_mistake_is_one_line(args, said, capsys):
    assert main(["verdicts", *args]) == 2
    assert said in capsys.readouterr().err


def test_a_damaged_record_is_named(tmp_path, capsys):
    (tmp_path / "context.jsonl").write_text("{}\n[]\n")
    assert main(["verdicts", "--file", "context", "--records", str(tmp_path)]) == 2
    assert "context.jsonl:2" in capsys.readouterr().err
