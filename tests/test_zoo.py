"""The families are comparable: matched size, matched depth, one dial."""

import re

import pytest

from isoflop.models.errors import UserError
from isoflop.models.families import zoo
from isoflop.sim.cost.flops import param_counts

WIDTHS = (32, 64, 128, 256)
every_family = pytest.mark.parametrize("family", zoo.FAMILIES)


@every_family
def test_families_match_in_active_parameters(family):
    for width in WIDTHS:
        dense = param_counts(zoo.dense(width))["active_non_embedding"]
        model = param_counts(zoo.FAMILIES[family](width))
        assert abs(model["active_non_embedding"] / dense - 1) < 0.03, width
        assert model["total"] - model["non_embedding"] == 2 * 256 * width


@every_family
def test_depth_follows_width_unless_told(family):
    assert [len(zoo.FAMILIES[family](width).blocks) for width in WIDTHS] == [2, 2, 4, 8]
    assert len(zoo.FAMILIES[family](64, 3).blocks) == 3
    assert zoo.FAMILIES[family](64, vocab_size=300).vocab_size == 300
    with pytest.raises(UserError, match=r"depth=0 \(of width=64\) must be between 1 and"):
        zoo.FAMILIES[family](64, 0)


def sources(family: str) -> list[str]:
    """Years of publications in its docstring, or in those of the families that it names."""
    said = zoo.FAMILIES[family].__doc__ or ""
    named = [name for name in re.findall(r"`(\w+)`", said) if name in zoo.FAMILIES]
    return [
        *re.findall(r"\([A-Z][^()]*? ((?:19|20)\d\d)\b", said),
        *(year for name in named if name != family for year in sources(name)),
    ]


@every_family
def test_a_family_cites_its_source(family):
    assert sources(family)


def test_experts_add_parameters_that_a_token_does_not_touch():
    counts = param_counts(zoo.moe(128))
    assert counts["non_embedding"] > 2 * counts["active_non_embedding"]


def test_a_hybrid_keeps_attention_at_any_depth():
    for depth in (2, 4, 8):
        mixers = [block.mixer.kind for block in zoo.FAMILIES["hybrid"](64, depth).blocks]
        assert mixers.count("attention") == max(1, depth // 4)


@pytest.mark.parametrize(
    ("family", "depth", "attention", "sparse"),
    [
        ("jamba", 16, 2, 0),
        ("jamba_moe", 16, 2, 8),
        ("samba", 4, 2, 0),
        ("samba_moe", 4, 2, 4),
        ("qwen3_next", 8, 2, 0),
        ("qwen3_next_moe", 8, 2, 8),
        ("kimi_linear", 8, 2, 0),
        ("kimi_linear_moe", 8, 2, 8),
        ("griffin", 6, 2, 0),
    ],
)
def test_a_hybrid_has_its_published_proportions(family, depth, attention, sparse):
    blocks = zoo.FAMILIES[family](64, depth).blocks
    assert sum(block.mixer.kind in ("attention", "mla") for block in blocks) == attention
    assert sum(block.channel.kind == "moe" for block in blocks) == sparse


def test_finer_experts_keep_total_and_active_parameters():
    """But for the router, and what rounding makes of them."""
    one, four = (zoo.moe(256, 1, granularity=g).cost(1) for g in (1, 4))
    assert four.params / one.params == pytest.approx(1, rel=0.03)
    assert four.active_params / one.active_params == pytest.approx(1, rel=0.03)
    fine, coarse = (zoo.moe(256, 1, granularity=g).blocks[0].channel for g in (4, 1))
    assert (fine.n_experts, fine.top_k) == (4 * coarse.n_experts, 4 * coarse.top_k)


def test_a_width_too_narrow_for_the_mixer_is_refused():
    with pytest.raises(UserError, match=r"width=8 .* too few for mamba .* choose a width"):
        zoo.mamba(8)


@every_family
def test_hidden_layers_of_512_channels_are_multiples_of_eight(family):
    """So that a GPU pads no operand; a balance of parameters alone gives `dense` 1579 here."""
    for block in zoo.FAMILIES[family](592, 4).blocks:
        if (channel := block.channel) is not None:
            size = getattr(channel, "d_ff", None) or channel.d_expert
            assert size < 512 or size % 8 == 0
