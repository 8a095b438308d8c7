"""The cost table is arithmetic, and the READMEs' copies of it are the generated ones."""

import pytest

from isoflop.experiments import costs
from isoflop.experiments.cli import readme
from isoflop.models.families import zoo
from isoflop.models.lm import Block, ModelConfig
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.mamba import Mamba
from isoflop.models.mixers.moe import Moe
from isoflop.sim.cost.flops import causal_flops
from isoflop.sim.cost.names import CONVENTIONS


@pytest.fixture(scope="module")
def measured():
    return costs.measure()


@pytest.fixture(scope="module")
def executed(measured):
    return [row for row in measured if row["convention"] == "executed"]


def test_the_readmes_generated_parts_are_what_is_generated(measured, monkeypatch):
    def asked(conventions):
        return [row for row in measured if row["convention"] in conventions]

    monkeypatch.setattr(costs, "measure", asked)
    for name, parts in readme.DOCUMENTS.items():
        text = (readme.ROOT / name).read_text(encoding="utf-8")
        assert readme.insert(text, parts) == text, "run: python -m isoflop.experiments.cli.readme"


def test_a_family_has_a_row_for_each_convention():
    families = ("dense", "jamba_moe")
    rows = costs.measure(families, width=64, lengths=(512,), contexts=(512,))
    assert [(row["family"], row["convention"]) for row in rows] == [
        (family, convention) for family in families for convention in CONVENTIONS
    ]
    dense = {row["convention"]: row for row in rows if row["family"] == "dense"}
    assert dense["6ND"]["flops_at_512"] == 6 * dense["6ND"]["params"]


def test_only_what_sees_the_whole_context_costs_more_with_it(executed):
    """Executed FLOPs per token, 2k against 32k, and the state, 8k against 128k."""
    for row in executed:
        family = row["family"]
        mixers = [block.mixer for block in zoo.FAMILIES[family](256).blocks]
        sees_all = any(m.max_tokens(131072) is not None for m in mixers)
        local = any(m.kind == "attention" and m.window is not None for m in mixers)
        assert (row["state_bytes_at_131072"] > 2 * row["state_bytes_at_8192"]) == sees_all
        if not local:
            assert (row["flops_at_32768"] > 1.2 * row["flops_at_2048"]) == sees_all, family


def test_causal_flops_are_the_sum_of_the_steps():
    for mixer in (Attention(n_heads=2), Attention(n_heads=2, window=9), Mamba()):
        block = Block(mixer=mixer, channel=Moe(n_experts=4, top_k=2, d_expert=3))
        config = ModelConfig(d_model=8, vocab_size=5, blocks=(block, block))
        for length in (1, 2, 3, 8, 9, 10, 50):
            steps = [config.step_cost(context).flops for context in range(1, length + 1)]
            assert causal_flops(config, length) == sum(steps)
