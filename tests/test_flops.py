"""What a model claims to cost against what it executes, and the conventions against formulas."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import ShapeDtypeStruct as Shape

from isoflop.models.families import zoo
from isoflop.models.lm import Block, ModelConfig, tile
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.mlp import SwiGLU
from isoflop.sim.cost.flops import (
    causal_flops,
    param_counts,
    step_flops,
    training_flops,
)
from isoflop.sim.cost.jaxpr import executed_flops
from isoflop.sim.cost.names import CONVENTIONS, NAMES, PARAMETERS
from isoflop.sim.data import Corpus
from isoflop.sim.optim import AdamW
from isoflop.sim.records.store import Record
from isoflop.sim.spec import Budget, Run


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_a_model_costs_what_its_forward_pass_executes(family):
    """Of one sequence: work on weights alone is claimed for each, and executed once a batch."""
    config = zoo.FAMILIES[family](32, 3, 61)
    graph, params = nnx.split(config.abstract())
    cost, tokens = config.cost(75), Shape((1, 75), jnp.int32)
    assert (cost.matmul_flops, cost.elementwise_flops) == executed_flops(
        lambda p, x: nnx.merge(graph, p)(x)[0], params, tokens
    )
    state = jax.eval_shape(lambda p: nnx.merge(graph, p).init_state(1, 75), params)
    cost, token = config.step_cost(75), Shape((1,), jnp.int32)
    assert (cost.matmul_flops, cost.elementwise_flops) == executed_flops(
        lambda p, s, x: nnx.merge(graph, p).step(s, x), params, state, token
    )


@pytest.mark.parametrize(
    "options",
    [{"norm": "layer"}, {"embed_norm": True, "embed_scale": 3.0}, {"logit_cap": 30.0}],
    ids=str,
)
def test_norms_and_logits_of_a_model_are_in_its_cost(options):
    block = Block(mixer=Attention(n_heads=2), channel=SwiGLU(d_ff=8))
    config = ModelConfig(d_model=8, vocab_size=11, blocks=(block,), **options)
    graph, params = nnx.split(config.abstract())
    _, elementwise = executed_flops(
        lambda p, x: nnx.merge(graph, p)(x)[0], params, Shape((1, 9), jnp.int32)
    )
    assert config.cost(9).elementwise_flops == elementwise


def test_causal_attention_pays_for_the_keys_it_sees():
    d, h, length, vocab = 32, 4, 100, 50
    config = ModelConfig(
        d_model=d,
        vocab_size=vocab,
        blocks=tile(3, Block(mixer=Attention(n_heads=h), channel=SwiGLU(d_ff=64))),
    )
    pairs = length * (length + 1) // 2
    projections = 2 * length * (4 * d * d + 3 * d * 64)
    attention = 4 * d * pairs + 4 * h * pairs  # products, and softmax at 4 per score
    # rotation of queries and keys and its angles, softmax's quotient, norms, sums, SwiGLU
    local = 3 * (2 * d + d // h) + d + 2 * (4 * d + 3) + 2 * d + 3 * 64
    ends = 2 * d * vocab + d + 4 * d + 3  # head, embedding's scale, norm
    assert causal_flops(config, length) == (
        3 * (projections + attention + local * length) + ends * length
    )


def test_conventions_of_a_run_follow_their_formulas():
    config = zoo.moe(32, 2)
    run = Run(
        model=config,
        data=Corpus(name="kjv"),
        optim=AdamW(lr=0.01, warmup_steps=5),
        budget=Budget(steps=20, batch=4, seq_len=64),
    )
    flops, counts, tokens = training_flops(run), param_counts(config), 20 * 4 * 64
    assert flops["6ND"] == 6 * counts["total"] * tokens
    assert flops["6ND_non_embedding"] == 6 * (counts["total"] - 2 * 256 * 32) * tokens
    assert flops["6ND_active"] == 6 * counts["active_non_embedding"] * tokens
    assert flops["matmul"] == 3 * 20 * config.cost(64, 4).matmul_flops
    assert flops["causal"] < flops["executed"]
    assert counts["active"] < counts["total"]


def test_every_convention_and_count_has_a_name_of_its_own_and_is_on_every_record():
    config = zoo.moe(32, 2)
    for known in (CONVENTIONS, param_counts(config)):
        assert known.keys() <= NAMES.keys()
        assert len({NAMES[name] for name in known}) == len(known)
    assert param_counts(config).keys() == PARAMETERS.keys()
    assert step_flops(config, 16, 1).keys() == CONVENTIONS.keys()
    assert all(name in (Record.__doc__ or "") for name in CONVENTIONS)
