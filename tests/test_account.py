"""The popular account: each claim has its row and its rule, and published data say their part."""

import math
import re

import pytest

from isoflop.experiments import claims
from isoflop.experiments.claims import account_costs, account_methods, account_scale
from isoflop.experiments.scores import TASKS, families, routing, scores
from isoflop.sim.compare.verdicts import ACCOUNT, Claim

FILES = ("account_costs", "account_methods", "account_scale")
ROWS = [one for name in FILES for one in claims.claims(name)]


def judged(one: Claim):
    return one.verdict(claims.RESULTS)


def test_a_claim_that_can_be_decided_says_when_it_is_held_and_when_refuted():
    for one in ROWS:
        if one.judge is not None:
            assert one.words is ACCOUNT
            assert re.search(r"\b[Hh]eld if\b", one.rule), one.name
            assert re.search(r"\brefuted if\b", one.rule), one.name
        assert re.fullmatch(r"D[1-5]([ –]D?[1-5])*", one.source), one.name


def test_a_perfect_5_percent_of_gsm8k_closes_23_percent_of_the_gap():
    """66 of 1,319 questions, of the 383 − 95 between the two models."""
    assert sum(routing().values()) == 1319
    verdict = judged(account_methods.consultant)
    assert verdict.word == "refuted, from published data"
    assert verdict.numbers["closed"] == pytest.approx(0.05 * 1319 / (383 - 95))
    assert verdict.result == "a perfect 5 % closes 0.23 [0.20, 0.26] of the gap"


def test_scores_are_of_148_models_within_their_range():
    assert len(scores()) == 148
    for model in scores():
        assert 1e7 < model.params < 1e12
        assert all(0 <= score <= 1 for score in model.score.values())
        assert set(model.score) <= set(TASKS)
        assert re.fullmatch(r"(\d\d(0[1-9]|1[0-2]))?", model.date), model.model
    llama = next(m for m in scores() if m.model == "Llama-2-70b-hf")
    assert (llama.params, llama.tokens, llama.score["mmlu"]) == (70e9, 2e12, 0.6983)
    assert llama.above("mmlu") == pytest.approx((0.6983 - 0.25) / 0.75)


def test_a_share_of_the_largest_models_score_is_read_between_sizes():
    group = families("mmlu", span=10.0, least=0.2)["Llama-2"]
    small, large = (math.log(m.params) for m in group[:2])
    at = math.log(group[-1].params / 10)
    assert at == pytest.approx(small)
    assert small < large
    values = account_scale._share_of_best("mmlu", 0.1)
    assert group[0].above("mmlu") / group[-1].above("mmlu") == pytest.approx(
        next(v for v in values if abs(v - 0.419) < 0.001)
    )


@pytest.mark.parametrize(
    ("one", "word"),
    [
        (account_scale.eighty_for_ten, "refuted"),
        (account_scale.plateaus, "refuted"),
        (account_scale.sixty_of_mmlu, "not resolved"),
        (account_scale.better_data, "held"),
        (account_costs.training_bills, "refuted"),
        (account_costs.efficiency_by_year, "not resolved"),
    ],
)
def test_published_data_decide_and_are_said_to(one, word):
    assert judged(one).word == f"{word}, from published data"


def test_a_verdict_follows_its_numbers(monkeypatch):
    """Had the scores been flat above 30B, the plateau would have been held."""
    flat = {"mmlu": [0.2, 0.4, 0.3], "gsm8k": [8.0, 9.0, 9.5], "hellaswag": [0.1, 0.2, 0.3]}
    monkeypatch.setattr(account_scale, "_per_doubling", flat.get)
    assert judged(account_scale.plateaus).word == "held, from published data"
    monkeypatch.setattr(account_scale, "_share_of_best", lambda task, size: [0.95, 0.96, 0.97])
    assert judged(account_scale.eighty_for_ten).word == "held, from published data"
