"""A model is the sum of its parts, and the same function however it is run."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isoflop.models import generation, lm
from isoflop.models.base import Init, count
from isoflop.models.errors import UserError
from isoflop.models.generation import Sampling
from isoflop.models.lm import Block, ModelConfig, tile
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.linear import LinearAttention
from isoflop.models.mixers.mamba import Mamba
from isoflop.models.mixers.mlp import Gelu, SwiGLU
from isoflop.models.mixers.moe import Moe
from isoflop.models.mixers.rwkv import Rwkv7, RwkvChannel
from isoflop.sim.cost.flops import causal_flops
from isoflop.sim.cost.jaxpr import matmul_flops

HYBRID = ModelConfig(
    d_model=16,
    vocab_size=11,
    blocks=(
        Block(mixer=Mamba(d_state=4, chunk=8), channel=Gelu(d_ff=20)),
        Block(
            mixer=Attention(n_heads=2, window=5),
            channel=Moe(n_experts=4, top_k=2, d_expert=8, block=4),
        ),
        Block(mixer=LinearAttention(n_heads=2, chunk=8), channel=SwiGLU(d_ff=24)),
    ),
)

OPTIONS = ModelConfig(
    d_model=16,
    vocab_size=11,
    tie_embeddings=True,
    norm="layer",
    norm_eps=1e-3,
    embed_norm=True,
    embed_scale=3.0,
    logit_cap=2.0,
    blocks=(
        Block(mixer=Rwkv7(n_heads=2, values="leave")),
        Block(mixer=RwkvChannel(d_ff=20)),
        Block(
            mixer=Rwkv7(n_heads=2, rank_value=3, values="mix"),
            channel=SwiGLU(d_ff=12, activation="gelu", bias=True),
        ),
    ),
)
both = pytest.mark.parametrize("config", [HYBRID, OPTIONS], ids=["hybrid", "options"])


def parts(config: ModelConfig):
    """(parameters, apply) of a model."""
    graph = nnx.split(config.abstract())[0]
    return nnx.state(config.build(init=Init(0))), lambda p: nnx.merge(graph, p)


def tokens(config: ModelConfig, batch: int = 2, length: int = 19):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(0, config.vocab_size, (batch, length)), jnp.int32)


def scans(apply, params, x, repeats: int) -> bool:
    """Whether the forward pass loops over its layers."""
    jaxpr = jax.make_jaxpr(lambda p, x: apply(p)(x)[0])(params, x)
    loops = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
    return any(eqn.params["length"] == repeats for eqn in loops)


def test_llama_2_7b_has_its_published_parameters():
    """Touvron et al. 2023 (2307.09288): 32 layers of 4096, MLP of 11008, vocabulary of 32000."""
    block = Block(mixer=Attention(n_heads=32), channel=SwiGLU(d_ff=11008))
    model = ModelConfig(d_model=4096, vocab_size=32000, blocks=tile(32, block))
    assert model.cost(1).params == model.cost(1).active_params == 6_738_415_616


def test_mixtral_8x7b_has_its_published_parameters():
    """Jiang et al. 2024 (2401.04088, table 1): 8 experts of 14336, 2 active, 8 key/value heads."""
    block = Block(
        mixer=Attention(n_heads=32, n_kv_heads=8, d_head=128),
        channel=Moe(n_experts=8, top_k=2, d_expert=14336),
    )
    cost = ModelConfig(d_model=4096, vocab_size=32000, blocks=tile(32, block)).cost(1)
    assert cost.params == 46_702_792_704
    assert cost.active_params == 12_879_925_248


def test_mamba_130m_has_its_published_parameters():
    """state-spaces/mamba-130m: 24 layers of 768, vocabulary padded to 50280, tied embeddings."""
    blocks = tile(24, Block(mixer=Mamba()))
    model = ModelConfig(d_model=768, vocab_size=50280, blocks=blocks, tie_embeddings=True)
    assert model.cost(1).params == 129_135_360


@both
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_params_are_the_leaves(config, tied):
    config = config.model_copy(update={"tie_embeddings": tied})
    params, _ = parts(config)
    assert config.cost(1).params == count(params)
    assert config.embedding_params == (1 if tied else 2) * 11 * 16


def test_tied_embeddings_are_the_head():
    config = HYBRID.model_copy(update={"tie_embeddings": True, "blocks": HYBRID.blocks[2:]})
    params, apply = parts(config)
    x = tokens(config)
    hidden, logits = jax.jit(lambda p, x: (apply(p).hidden(x)[0], apply(p)(x)[0]))(params, x)
    want = np.asarray(hidden) @ np.asarray(params["embed"][...]).T
    np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-5)


def test_equal_blocks_are_traced_once_and_others_for_themselves(monkeypatch):
    """Forward and backward; a fourth of five blocks differs."""
    traced, plain = [], lm.BlockModule.__call__

    def counted(self, *args):
        traced.append(self.channel is not None)
        return plain(self, *args)

    monkeypatch.setattr(lm.BlockModule, "__call__", counted)
    same, other = Block(mixer=Attention(n_heads=1)), Block(channel=SwiGLU(d_ff=24))
    config = ModelConfig(d_model=12, vocab_size=11, blocks=(same, same, same, other, same))
    params, apply = parts(config)
    jax.make_jaxpr(jax.grad(lambda p, x: apply(p)(x)[0].sum()))(params, tokens(config))
    assert traced == [False, True]


def test_scanned_layers_equal_unrolled_ones_in_value_and_gradient(monkeypatch):
    pattern = (
        Block(mixer=Attention(n_heads=2)),
        Block(channel=Moe(n_experts=3, top_k=2, d_expert=8, block=4)),
    )
    config = ModelConfig(d_model=8, vocab_size=11, blocks=tile(2, *pattern))
    params, apply = parts(config)

    def value(params, x):
        logits, aux = apply(params)(x)
        return jnp.mean(jax.nn.logsumexp(logits, -1)) + aux["penalty"], (logits, aux)

    def both(scan_from):
        monkeypatch.setattr(lm, "SCAN_FROM", scan_from)
        assert scans(apply, params, x, repeats=2) == (scan_from <= 2)
        return jax.jit(jax.value_and_grad(lambda p, x: value(p, x), has_aux=True))(params, x)

    x = tokens(config)
    unrolled, scanned = both(100), both(1)
    for one, other in zip(jax.tree.leaves(unrolled), jax.tree.leaves(scanned), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "config", [HYBRID, pytest.param(OPTIONS, marks=pytest.mark.slow)], ids=["hybrid", "options"]
)
def test_steps_give_the_logits_of_the_whole_sequence(config):
    params, apply = parts(config)
    x = tokens(config)
    want = jax.jit(lambda p, x: apply(p)(x)[0])(params, x)

    def decode(params, x):
        model = apply(params)
        state = model.init_state(*x.shape)
        return jax.lax.scan(model.step, state, x.T)[1]

    got = jnp.moveaxis(jax.jit(decode)(params, x), 0, 1)
    assert np.abs(np.asarray(got - want)).max() < 1e-5 * np.abs(np.asarray(want)).max()


def test_decoding_past_the_context_is_refused_or_nan_in_a_compiled_program():
    """The full attention bounds the model; the window below it and the recurrence do not."""
    full = Block(mixer=Attention(n_heads=2))
    config = HYBRID.model_copy(update={"blocks": (*HYBRID.blocks[:2], full)})
    assert (HYBRID.max_tokens(6), HYBRID.max_tokens(4), config.max_tokens(6)) == (None, 4, 6)
    params, apply = parts(config)
    x = tokens(config, length=7)
    model = apply(params)
    state = model.init_state(2, 6)
    logits = jax.jit(lambda p, s, x: jax.lax.scan(apply(p).step, s, x)[1])(params, state, x.T)
    assert np.isfinite(np.asarray(logits[:6])).all()
    assert np.isnan(np.asarray(logits[6])).all()
    for token in x.T[:6]:
        state, _ = jax.jit(lambda p, s, x: apply(p).step(s, x))(params, state, token)
    with pytest.raises(
        UserError, match=r"state of block 2 \(SoftmaxAttention\) has taken every token"
    ):
        model.step(state, x[:, 6])


@pytest.mark.parametrize(
    "config", [HYBRID, pytest.param(OPTIONS, marks=pytest.mark.slow)], ids=["hybrid", "options"]
)
def test_prefill_of_unequal_prompts_then_steps_give_the_logits_of_the_whole_sequence(config):
    params, apply = parts(config)
    x, lengths = tokens(config, batch=3), jnp.asarray([13, 8, 1])
    want = jax.jit(lambda p, x: apply(p)(x)[0])(params, x)

    def decode(params, x):
        model = apply(params)
        state, all_of = model.prefill(model.init_state(*x.shape), x, lengths, every=True)
        _, last = model.prefill(model.init_state(*x.shape), x, lengths)
        after = jax.vmap(lambda row, n: jnp.roll(row, -n))(x, lengths)
        return all_of, last, jax.lax.scan(model.step, state, after.T)[1]

    prompts, last, rest = jax.jit(decode)(params, x)
    scale = np.abs(np.asarray(want)).max()
    for row, n in enumerate(lengths):
        got = np.concatenate([prompts[row, :n], rest[: 19 - n, row]])
        assert np.abs(got - want[row]).max() < 1e-5 * scale
        assert np.abs(np.asarray(last[row] - want[row, n - 1])).max() < 1e-5 * scale


def test_a_prompt_beyond_the_context_is_refused_or_nan_in_a_compiled_program():
    config = HYBRID.model_copy(update={"blocks": (Block(mixer=Attention(n_heads=2)),)})
    params, apply = parts(config)
    model, x = apply(params), tokens(config, length=7)
    with pytest.raises(UserError, match=r"takes 6 tokens more of the context that it was made"):
        model.prefill(model.init_state(2, 6), x)
    with pytest.raises(UserError, match=r"block 0 \(SoftmaxAttention\) takes 6 tokens more"):
        model.generate(x[:, :4], 4, state=model.init_state(2, 6))
    state, _ = jax.jit(lambda p, s: apply(p).prefill(s, x, jnp.asarray([6, 2])))(
        params, model.init_state(2, 6)
    )
    with pytest.raises(UserError, match=r"has taken every token"):
        model.prefill(state, x[:, :1])
    model._check_room(state, jnp.asarray([0, 1]))
    whole = jax.jit(lambda p, s: apply(p).prefill(s, x, every=True)[1])
    logits = np.asarray(whole(params, model.init_state(2, 6)))
    assert (np.isnan(logits).all(-1) == (np.arange(7) == 6)).all()


WRITER = ModelConfig(d_model=16, vocab_size=11, blocks=(Block(mixer=Attention(n_heads=2)),))


def written(model, x, count, lengths=None, seed=0, **sampling):
    found = model.generate(x, count, lengths, Sampling(**sampling), seed)
    assert np.asarray(found.finite).all()
    return [
        row[:n].tolist() for row, n in zip(np.asarray(found.tokens), found.lengths, strict=True)
    ]


def test_what_is_written_greedily_is_the_likeliest_after_each_prompt_until_a_stop():
    params, apply = parts(WRITER)
    model, lengths = apply(params), [5, 2, 9]
    x = tokens(WRITER, batch=3, length=9)
    logits = jax.jit(lambda p, x: apply(p)(x)[0])
    want = np.concatenate([x, np.zeros((3, 6), np.int32)], axis=1)
    for i in range(6):
        for row, n in enumerate(lengths):
            want[row, n + i] = np.argmax(logits(params, want)[row, n + i - 1])
    want = [want[row, n : n + 6].tolist() for row, n in enumerate(lengths)]
    assert written(model, x, 6, jnp.asarray(lengths)) == want
    stop = want[0][2]
    until = [row[: (*row, stop).index(stop)] for row in want]
    assert len(until[0]) < 3
    assert written(model, x, 6, jnp.asarray(lengths), stop=(stop, 10)) == [
        row[: ([*row, 10]).index(10)] for row in until
    ]
    one = written(model, x, 1, jnp.asarray(lengths))
    assert one == [row[:1] for row in want]


def test_top_k_and_top_p_of_one_token_are_greedy_and_a_seed_names_what_is_sampled():
    params, apply = parts(WRITER)
    model, x = apply(params), tokens(WRITER, batch=2, length=4)
    greedy = written(model, x, 6)
    assert written(model, x, 6, temperature=3.0, top_k=1) == greedy
    assert written(model, x, 6, temperature=3.0, top_p=1e-6) == greedy
    hot = written(model, x, 6, temperature=3.0)
    compiled = generation.generate._cache_size()
    assert written(model, x, 6, temperature=3.0) == hot
    assert written(model, x, 6, temperature=3.0, seed=1) != hot
    assert written(model, x, 6, temperature=1e-6) == greedy
    assert generation.generate._cache_size() == compiled
    assert written(model, x[:1], 6, temperature=3.0) == hot[:1]  # whatever rows are beside it
    longer = written(model, x, 9, temperature=3.0)
    assert [row[:6] for row in longer] == hot


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.5}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.7001}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"top_k": 3, "top_p": 0.7}, [4 / 7, 3 / 7, 0, 0]),  # of 4/9, 3/9 and 2/9
    ],
)
def test_a_token_is_chosen_as_often_as_its_share_of_what_is_kept(sampling, kept):
    """In any order of the vocabulary, at temperature 2 of the squared probabilities."""
    logits, order = 2 * jnp.log(jnp.asarray([0.4, 0.3, 0.2, 0.1])), np.array([2, 0, 3, 1])
    keys = jax.random.split(jax.random.key(0), 20_000)
    one = partial(generation.choose, Sampling(temperature=2.0, **sampling))
    drawn = np.asarray(jax.jit(jax.vmap(one, (0, None)))(keys, logits[order]))
    share = np.bincount(drawn, minlength=4) / len(keys)
    np.testing.assert_allclose(share, np.array(kept)[order], atol=0.015)
    assert (share[np.array(kept)[order] == 0] == 0).all()


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 must be a finite number above 0"),
        ({"temperature": 1e-40}, "temperature=1e-40 must be a finite number above 0, from 1e-30"),
        ({"temperature": 1e39}, r"must be a finite number above 0, from 1e-30 to 1e\+30"),
        ({"temperature": math.nan}, "temperature=nan must be"),
        ({"top_k": 3}, "top_k needs a temperature above 0"),
        ({"top_p": 0.5}, "top_p needs a temperature above 0"),
        ({"temperature": 1.0, "top_k": 0}, "top_k=0 must be at least 1"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p=1.5 must be above 0 and at most 1"),
        ({"stop": (11,)}, "the stop token 11 is none of the vocabulary, 0 to 10"),
    ],
)
def test_a_sampling_that_is_none_is_refused(sampling, message):
    params, apply = parts(HYBRID)
    with pytest.raises(UserError, match=message):
        apply(params).generate(tokens(HYBRID), 2, sampling=Sampling(**sampling))


@both
def test_state_size_is_the_size_of_the_state(config):
    params, apply = parts(config)
    for context in (1, 4, 50):
        assert config.state_size(context) == count(apply(params).init_state(1, context))


@both
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 19), (2, 70)])
def test_cost_with_a_batch_is_what_the_jaxpr_executes(config, batch, length):
    params, apply = parts(config)
    x = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    executed = matmul_flops(lambda p, x: apply(p)(x)[0], params, x)
    assert config.cost(length, batch).matmul_flops == executed


@both
@pytest.mark.parametrize("batch", [1, 3])
def test_step_cost_with_a_batch_is_what_the_jaxpr_executes(config, batch):
    params, apply = parts(config)
    state = apply(params).init_state(batch, 9)
    x = jax.ShapeDtypeStruct((batch,), jnp.int32)
    executed = matmul_flops(lambda p, s, x: apply(p).step(s, x), params, state, x)
    assert config.step_cost(9, batch).matmul_flops == executed


def test_scanned_layers_cost_as_many_flops_as_unrolled_ones():
    block = Block(mixer=Attention(n_heads=2), channel=SwiGLU(d_ff=8))
    config = ModelConfig(d_model=8, vocab_size=11, blocks=tile(lm.SCAN_FROM, block))
    params, apply = parts(config)
    x = jax.ShapeDtypeStruct((2, 9), jnp.int32)
    assert scans(apply, params, x, repeats=lm.SCAN_FROM)
    assert config.cost(9, 2).matmul_flops == matmul_flops(lambda p, x: apply(p)(x)[0], params, x)


def test_a_window_skips_work_in_the_code_and_in_every_count():
    """Beyond the window, FLOPs grow with the context, not with its square."""

    def model(window):
        block = Block(mixer=Attention(n_heads=2, window=window))
        return ModelConfig(d_model=16, vocab_size=11, blocks=(block,))

    def grows(flops):
        return flops(1024) / flops(512)

    windowed, full = model(32), model(None)
    params, apply = parts(windowed)

    def executed(length):
        x = jax.ShapeDtypeStruct((1, length), jnp.int32)
        return matmul_flops(lambda p, x: apply(p)(x)[0], params, x)

    assert grows(executed) < 2.05
    assert grows(lambda t: windowed.cost(t).flops) < 2.05
    assert grows(lambda t: causal_flops(windowed, t)) < 2.05
    assert grows(lambda t: full.cost(t).flops) > 3
    assert windowed.state_size(1024) == windowed.state_size(32)


def test_a_model_survives_json():
    assert ModelConfig.model_validate_json(HYBRID.model_dump_json()) == HYBRID
    assert hash(ModelConfig.model_validate_json(HYBRID.model_dump_json())) == hash(HYBRID)


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"kind='mambo' is not a MixerConfig; use one of .*mamba"):
        Block.model_validate({"mixer": {"kind": "mambo"}})


def test_an_unknown_field_is_refused():
    with pytest.raises(ValueError, match="heads"):
        Block.model_validate({"mixer": {"kind": "attention", "n_heads": 2, "heads": 2}})


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="d_model=10 must be a multiple of n_heads=4"):
        ModelConfig(d_model=10, vocab_size=8, blocks=(Block(mixer=Attention(n_heads=4)),))


def test_values_that_no_block_below_leaves_are_refused():
    message = "the rwkv7 of block 1 needs the values of a block below, and none leaves them"
    blocks = (Block(mixer=Rwkv7(n_heads=2)), Block(mixer=Rwkv7(n_heads=2, values="mix")))
    with pytest.raises(ValueError, match=message):
        ModelConfig(d_model=16, vocab_size=8, blocks=blocks)


def test_bf16_activations_keep_fp32_logits_and_weights():
    config = HYBRID.model_copy(update={"dtype": "bfloat16"})
    params, apply = parts(config)
    logits, _ = jax.jit(lambda p, x: apply(p)(x))(params, tokens(config))
    assert logits.dtype == jnp.float32
    assert np.isfinite(np.asarray(logits)).all()
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}


@pytest.mark.parametrize("repeats", [1, pytest.param(lm.SCAN_FROM, marks=pytest.mark.slow)])
def test_packed_rows_give_the_logits_of_their_segments_alone(repeats):
    block = Block(mixer=Attention(n_heads=2, window=5), channel=SwiGLU(d_ff=8))
    config = ModelConfig(d_model=16, vocab_size=11, blocks=tile(repeats, block))
    params, apply = parts(config)
    x = tokens(config)
    segment_ids = jnp.asarray([[7] * 4 + [3] * 15, [0] * 11 + [5] * 7 + [0]])
    packed = jax.jit(lambda p, x, ids: apply(p)(x, ids)[0])(params, x, segment_ids)
    model = jax.jit(lambda p, x: apply(p)(x)[0])
    for row, start, end in [(0, 0, 4), (0, 4, 19), (1, 0, 11), (1, 11, 18), (1, 18, 19)]:
        alone = model(params, jnp.roll(x[row : row + 1], -start, 1))[0, : end - start]
        scale = np.abs(np.asarray(alone)).max()
        assert np.abs(np.asarray(packed[row, start:end] - alone)).max() < 1e-5 * scale


@pytest.mark.parametrize("repeats", [2, lm.SCAN_FROM], ids=["unrolled", "scanned"])
def test_remat_recomputes_blocks_and_none_leaves_that_to_the_scan(repeats):
    config = ModelConfig(
        d_model=8, vocab_size=11, blocks=tile(repeats, Block(channel=Gelu(d_ff=8)))
    )

    def recomputes(remat):
        params, apply = parts(config.model_copy(update={"remat": remat}))
        loss = jax.grad(lambda p, x: apply(p)(x)[0].sum())
        return "remat2[" in str(jax.make_jaxpr(loss)(params, tokens(config)))

    assert [recomputes(remat) for remat in (True, False, None)] == [True, False, repeats > 2]


@pytest.mark.slow
def test_remat_changes_no_gradient():
    params, apply = parts(HYBRID)
    _, recomputed = parts(HYBRID.model_copy(update={"remat": True}))
    x = tokens(HYBRID)
    segment_ids = jnp.asarray([[0] * 8 + [1] * 11, [0] * 19])

    def gradient(apply):
        return jax.jit(jax.grad(lambda p: jnp.mean(apply(p)(x, segment_ids)[0] ** 2)))(params)

    kept, again = (jax.tree.leaves(gradient(f)) for f in (apply, recomputed))
    for one, other in zip(kept, again, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)
