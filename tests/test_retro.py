"""RETRO: neighbours reach no earlier token, are found exactly, copy no row, and are charged."""

from functools import cache
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from pydantic import ValidationError

from isoflop.experiments import retrieve
from isoflop.models.base import Init, Retrieval, count
from isoflop.models.errors import UserError
from isoflop.models.lm import Block, ModelConfig
from isoflop.models.mixers.mlp import SwiGLU
from isoflop.models.mixers.retro import ChunkedCrossAttention
from isoflop.sim.cost.flops import step_flops, training_flops
from isoflop.sim.cost.jaxpr import executed_flops
from isoflop.sim.data import Batch, File, Mixture, Part, Retrieved, ZipfFacts
from isoflop.sim.data.ngrams import NGrams, shared
from isoflop.sim.evaluate.checkpoint import Checkpoint
from isoflop.sim.evaluate.position import judge
from isoflop.sim.optim import AdamW
from isoflop.sim.records.store import Store
from isoflop.sim.spec import Budget, Run
from isoflop.sim.train.loop import train
from isoflop.sim.train.program import Program

M, K, R = 4, 2, 6  # chunk, nearest, length
CROSS = ChunkedCrossAttention(n_heads=2, chunk=M, nearest=K, length=R, d_head=6)
LENGTH = 19  # four whole chunks and three tokens


def model(cross: ChunkedCrossAttention | None = CROSS, **options) -> ModelConfig:
    first, last = Block(channel=SwiGLU(d_ff=8)), Block(channel=SwiGLU(d_ff=6))
    beside = () if cross is None else (Block(mixer=cross),)
    return ModelConfig(d_model=12, vocab_size=31, blocks=(first, *beside, last), **options)


@cache
def built(config: ModelConfig):
    """(graph, parameters moved off their initial values)."""
    graph, params = nnx.split(config.build(init=Init(0)))
    rng = np.random.default_rng(0)
    return graph, jax.tree.map(lambda x: jnp.asarray(x + 0.1 * rng.normal(size=x.shape)), params)


def apply(config: ModelConfig, method, *args):
    return jitted(config, method)(built(config)[1], *args)


@cache
def jitted(config: ModelConfig, method):
    graph, _ = built(config)
    return jax.jit(lambda params, *args: method(nnx.merge(graph, params), *args))


def rows(length: int = LENGTH, seed: int = 0):
    rng = np.random.default_rng(seed)
    beside = Retrieval(M, K, R).beside(length)
    return (jnp.asarray(rng.integers(31, size=(2, n)), jnp.int32) for n in (length, beside))


def parallel(lm, tokens, neighbours):
    return lm(tokens, neighbours=neighbours)[0]


def logits(config, tokens, neighbours):
    return np.asarray(apply(config, parallel, tokens, neighbours))


def test_a_neighbour_reaches_the_last_token_of_its_chunk_and_those_before_the_next_ones_alone():
    tokens, neighbours = rows()
    before = logits(model(), tokens, neighbours)
    for chunk in range(4):
        changed = neighbours.reshape(2, 4, K * R).at[:, chunk].add(1) % 31
        differs = (logits(model(), tokens, changed.reshape(2, -1)) != before).any(-1)
        first = (chunk + 1) * M - 1
        assert not differs[:, :first].any()
        assert differs[:, first : first + M].all()
        assert not differs[:, first + M :].any()


def test_every_neighbour_is_read_for_itself_and_in_both_directions():
    graph, params = nnx.split(CROSS.build(12, init=Init(0)))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, K * R, 12)), jnp.float32)
    read = jax.jit(lambda x: nnx.merge(graph, params)._read(x)[1])
    changed = read(x.at[:, R - 1].add(1)) != read(x)  # the last token of the first neighbour
    assert np.flatnonzero(changed.any((0, 1, 3))).tolist() == list(range(R))


def test_a_later_token_changes_no_earlier_logit_neighbours_included(prose):
    """Of a row whose neighbours are found again after the change."""
    source = data(prose, purge=None).open()
    config = model(ChunkedCrossAttention(**SEARCH, n_heads=2)).model_copy(
        update={"vocab_size": 256}
    )
    own = source.inner.held_out(64, 32)
    none = np.zeros((len(own.tokens), 60), bool)

    def found(tokens):
        batch = source._beside(Batch(tokens), none, (0, 0))
        return batch, logits(config, batch.tokens[:, :-1], batch.neighbours)

    before, plain = found(own.tokens)
    for cut in (1, 8, 15, 16, 31):
        tokens = own.tokens.copy()
        tokens[:, cut:] = tokens[:, cut:][:, ::-1] ^ 1
        after, changed = found(tokens)
        assert (changed[:, :cut] == plain[:, :cut]).all()
        if cut < 16:
            assert (after.neighbours != before.neighbours).any()


def test_without_neighbours_it_is_the_plain_model_to_the_bit():
    """Before a chunk is whole, and in training: the loss of the first tokens."""
    retro, plain = model(), model(None)
    tokens, none = (x[:, :n] for x, n in zip(rows(), (M - 1, 0), strict=True))
    _, params = built(retro)
    blocks = params["blocks"]
    without = nnx.State({**params, "blocks": {0: blocks[0], 1: blocks[2]}})
    plainly = nnx.merge(nnx.split(plain.abstract())[0], without)
    own = logits(retro, tokens, none)
    want = jax.jit(lambda lm, x: lm(x)[0])(plainly, tokens)
    assert (own == np.asarray(want)).all()


@pytest.mark.parametrize(
    "cross",
    [
        CROSS,
        ChunkedCrossAttention(n_heads=1, chunk=1, nearest=1, length=1, d_head=2, encoder=0),
        ChunkedCrossAttention(n_heads=3, chunk=5, length=7, encoder=2, encoder_ff=10),
    ],
)
def test_costs_are_what_the_jaxpr_executes(cross):
    config = model(cross, embed_norm=True)
    lm = config.abstract()
    assert config.cost(1).params == count(nnx.state(lm))

    def described(*shape, dtype=jnp.int32):
        return jax.ShapeDtypeStruct(shape, dtype)

    for length in (cross.chunk, LENGTH):
        inputs = described(2, length), described(2, cross.retrieval.beside(length))
        cost = config.cost(length, batch=2)
        graph, params = nnx.split(lm)
        executed = executed_flops(
            lambda p, x, y, graph=graph: nnx.merge(graph, p)(x, neighbours=y)[0], params, *inputs
        )
        assert (cost.matmul_flops, cost.elementwise_flops) == executed
    state = jax.eval_shape(lambda: lm.init_state(1, 9))
    assert sum(x.size for x in jax.tree.leaves(state)) == config.state_size(9)
    cost = config.step_cost(9)
    step = executed_flops(
        lambda p, s, x: nnx.merge(graph, p).step(s, x), params, state, described(1)
    )
    assert (cost.matmul_flops, cost.elementwise_flops) == step
    cost = config.read_cost
    read = executed_flops(
        lambda p, s, x: nnx.merge(graph, p).read(s, x), params, state,
        described(1, cross.retrieval.tokens),
    )  # fmt: skip
    assert (cost.matmul_flops, cost.elementwise_flops) == read


def test_the_causal_convention_charges_steps_and_what_is_read():
    config = model()
    steps = sum(config.step_cost(n).flops for n in range(1, LENGTH + 1))
    assert step_flops(config, LENGTH, 1)["causal"] == 3 * (steps + 4 * config.read_cost.flops)


@pytest.mark.parametrize(
    "sizes",
    [
        [3, 4, 2, 1, 1, 3, 1, 4],
        pytest.param([1] * LENGTH, marks=pytest.mark.slow),
        pytest.param([3, 4, 4, 4, 4], marks=pytest.mark.slow),
    ],
)
def test_steps_and_prefills_equal_the_parallel_form(sizes):
    """Each chunk's neighbours being read when they are due."""
    tokens, neighbours = rows()
    sets = neighbours.reshape(2, -1, K * R)

    def decoded(lm, tokens, sets):
        state, out, place = lm.init_state(2, LENGTH), [], 0
        for size in sizes:
            if (place + 1) % M == 0:
                state = lm.read(state, sets[:, (place + 1) // M - 1])
            if size == 1:
                state, y = lm.step(state, tokens[:, place])
                out.append(y[:, None])
            else:
                state, y = lm.prefill(state, tokens[:, place : place + size], every=True)
                out.append(y)
            place += size
        return jnp.concatenate(out, 1)

    want = logits(model(), tokens, neighbours)
    got = np.asarray(apply(model(), decoded, tokens, sets))
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()


@pytest.mark.slow
def test_padding_of_a_prefill_changes_nothing_and_is_finite():
    tokens, neighbours = rows()

    def padded(lm, tokens, neighbours):
        state = lm.prefill(lm.init_state(2, LENGTH), tokens[:, : M - 1])[0]
        state = lm.read(state, neighbours[:, : K * R])
        state, y = lm.prefill(state, tokens[:, 3:], jnp.asarray([4, 2]), every=True)
        return state[1]["position"], y

    position, y = apply(model(), padded, tokens, neighbours)
    want = logits(model(), tokens, neighbours)
    assert np.isfinite(y).all()
    assert position.tolist() == [7, 5]
    for row, size in enumerate((4, 2)):
        np.testing.assert_allclose(y[row, :size], want[row, 3 : 3 + size], atol=1e-5)


def test_tokens_whose_neighbours_were_not_read_are_nan_or_refused():
    tokens, neighbours = rows()
    lm = nnx.merge(*built(model()))

    def after(position):
        first, cross, last = lm.init_state(2, LENGTH)
        return [first, cross | {"position": jnp.full(2, position)}, last]

    with pytest.raises(UserError, match="before a chunk's neighbours are read; read them first"):
        lm.step(after(M - 1), tokens[:, 3])
    late = apply(model(), lambda lm, *args: lm.step(*args)[1], after(M - 1), tokens[:, 3])
    assert np.isnan(late).all()
    with pytest.raises(UserError, match="2 tokens come before that one"):
        lm.read(after(1), neighbours[:, : K * R])
    with pytest.raises(UserError, match="reads 12 tokens of neighbours for a chunk, and 5"):
        lm.read(after(M - 1), neighbours[:, :5])


def test_neighbours_that_a_model_does_not_read_are_refused():
    tokens, neighbours = rows()
    plain, retro = (nnx.merge(*built(config)) for config in (model(None), model()))
    with pytest.raises(UserError, match="with no tokens of neighbours by this model, and 48"):
        plain(tokens, neighbours=neighbours)
    with pytest.raises(UserError, match="with 48 tokens of neighbours by this model, and none"):
        retro(tokens)
    with pytest.raises(UserError, match="packed rows"):
        retro(tokens, jnp.zeros_like(tokens), neighbours)
    other = Block(mixer=CROSS.model_copy(update={"chunk": 5}))
    with pytest.raises(ValidationError, match=r"\(4, 2, 6\) and \(5, 2, 6\)"):
        ModelConfig(d_model=12, vocab_size=31, blocks=(Block(mixer=CROSS), other))


# The source

SEARCH = {"chunk": 8, "nearest": 2, "length": 16}
PURGE = 12


def data(prose, **options) -> Retrieved:
    return Retrieved(
        data=File(path=prose),
        **SEARCH | {"store": 60, "gram": 3, "apart": 9000, "purge": PURGE} | options,
    )


def test_similarity_is_the_cosine_of_weighted_ngrams():
    rng = np.random.default_rng(0)
    keys, texts = rng.integers(3, size=(40, 9)), rng.integers(4, size=(5, 9))
    search = NGrams(keys, 2)

    def pairs(row):
        return {(int(a), int(b)) for a, b in pairwise(row)}

    have = [pairs(key) for key in keys]
    rarity = {p: np.log(40 / sum(p in one for one in have)) for one in have for p in one}
    lengths = [np.sqrt(sum(rarity[p] ** 2 for p in one)) for one in have]
    want = [
        [sum(rarity[p] ** 2 for p in pairs(text) & one) / max(length, 1e-30)
         for one, length in zip(have, lengths, strict=True)]
        for text in texts
    ]  # fmt: skip
    np.testing.assert_allclose(search.similarity(texts), want, atol=1e-5)
    lists = sum(sum(p in one for one in have) for text in texts for p in pairs(text))
    assert search.flops(texts) == 2 * lists


def test_neighbours_are_the_most_similar_passages_that_are_not_left_out(prose):
    source = data(prose).open()
    batch = source.batch(3, 0, 4, 32)
    starts, n = source.inner.starts(3, 0, 4, 32), len(source.train)
    passages = source.train.take((source.places[:, None] + np.arange(16)) % n)
    around = source.train.take((source.places[:, None] + np.arange(1 - PURGE, 15 + PURGE)) % n)
    similar = source.search.similarity(batch.tokens[:, :32].reshape(16, 8))
    for row, start in enumerate(starts):
        distance = [
            min(abs((p + i - start - j + n // 2) % n - n // 2) for i in (0, 15) for j in (0, 32))
            for p in source.places
        ]
        copied = shared(around.astype(int), [batch.tokens[row : row + 1]], PURGE)
        allowed = (np.array(distance) > 9000) & ~copied.any(1)
        assert not allowed.all()
        for chunk in range(4):
            scores = np.where(allowed, similar[row * 4 + chunk], -1)
            best = np.argsort(-scores, kind="stable")[:2]
            found = batch.neighbours[row].reshape(4, 2, 16)[chunk]
            assert (found == passages[best]).all()


def test_a_search_is_charged_for_the_lists_that_it_reads_and_a_random_choice_for_nothing(prose):
    source, batch = data(prose).open(), data(prose).open().held_out(200, 20)
    chunks = batch.tokens[:, :16].reshape(-1, 8)
    assert source.search_flops(batch) == source.search.flops(chunks) > 0
    assert data(prose, random=True).open().search_flops(batch) == 0


def test_a_plain_run_of_equal_flops_pays_for_the_reading_and_the_search(monkeypatch):
    monkeypatch.setattr(retrieve, "search_flops", lambda data, tokens: 100_000 * tokens)
    arms = {cell.labels["arm"]: cell.run for cell in retrieve.retro_cells("dense", 1, "kjv")}
    run, plain = arms["neighbours"], arms["equal FLOPs"]
    step = training_flops(arms["equal tokens"])["executed"] / run.budget.steps
    paid = training_flops(run)["executed"] + 100_000 * run.budget.tokens
    assert abs(training_flops(plain)["executed"] - paid) <= step / 2
    assert plain.budget.steps > run.budget.steps == arms["equal tokens"].budget.steps


def test_rows_are_those_of_the_text_alone_and_a_batch_is_a_function_of_seed_and_step(prose):
    source, plain = data(prose).open(), File(path=prose).open()
    for random in (False, True):
        source = data(prose, random=random).open()
        one, again, other = (source.batch(2, seed, 3, 20) for seed in (5, 5, 6))
        assert (one.tokens == plain.batch(2, 5, 3, 20).tokens).all()
        assert (one.neighbours == again.neighbours).all()
        assert (one.neighbours != other.neighbours).any()
        assert one.neighbours.shape == (3, 2 * 2 * 16)
        assert one.neighbours.dtype == np.int32
        held = source.held_out(100, 20)
        assert (held.tokens == plain.held_out(100, 20).tokens).all()
        assert (held.neighbours == source.held_out(100, 20).neighbours).all()


def test_a_near_copy_of_a_row_is_none_of_its_neighbours(tmp_path):
    """A text that repeats itself: without the purge, a row's own words are found elsewhere."""
    rng = np.random.default_rng(0)
    part = bytes(rng.integers(97, 123, size=4000).astype(np.uint8))
    path = tmp_path / "twice.txt"
    path.write_bytes(part * 4)

    def copied(purge):
        source = Retrieved(
            data=File(path=str(path)), store=800, apart=0, purge=purge, **SEARCH
        ).open()
        batch = source.batch(0, 0, 8, 32)
        beside = batch.neighbours.reshape(8, -1, 16)
        both = zip(beside, batch.tokens, strict=True)
        return sum(shared(found, [row[None]], PURGE).any() for found, row in both)

    assert copied(None) > 4
    assert copied(PURGE) == 0


def test_what_cannot_be_retrieved_is_refused(prose):
    with pytest.raises(ValidationError, match="chunk=8 must be at least gram=9"):
        data(prose, gram=9)
    with pytest.raises(ValidationError, match="a mixture have no neighbours"):
        Mixture(parts=(Part(data=data(prose)),))
    with pytest.raises(UserError, match="zipf_facts data have none"):
        Retrieved(data=ZipfFacts(facts=8, symbols=4, alpha=0.5), store=4).open()
    with pytest.raises(UserError, match="store=99999 passages of length=16 must fit"):
        data(prose, store=99_999).open()
    with pytest.raises(UserError, match="lower apart=10000000"):
        data(prose, apart=10**7).open().batch(0, 0, 2, 32)
    with pytest.raises(ValidationError, match=r"reads None, retrieved data have \(8, 2, 16\)"):
        run(prose, None)
    with pytest.raises(ValidationError, match=r"reads \(4, 2, 6\), retrieved data have"):
        run(prose, CROSS)


# Training

READS = ChunkedCrossAttention(n_heads=2, **SEARCH)


def run(prose, cross, **options) -> Run:
    config = model(cross).model_copy(update={"vocab_size": 256})
    return Run(
        model=config,
        data=data(prose, **options),
        optim=AdamW(lr=0.01, warmup_steps=2),
        budget=Budget(steps=10, batch=4, seq_len=32, eval_tokens=320),
    )


def test_a_run_trains_is_charged_and_judged_with_its_neighbours(prose, tmp_path):
    spec = run(prose, READS)
    ((record, weights),) = train([spec])
    assert record.status == "ok"
    forward = spec.model.cost(32, 4).flops
    update = training_flops(spec)["executed"] - 10 * 3 * forward
    assert record.flops["executed"] == 10 * 3 * forward + update
    assert record.tokens == 10 * 4 * 32
    Store(tmp_path).save(record, weights)
    batch = spec.splits[0].draw(spec.data.open())
    found = judge(Checkpoint.load(spec.key, tmp_path), batch)
    np.testing.assert_allclose(found.nats.mean(), record.metrics["loss"].value, rtol=1e-5)
    beside = np.roll(batch.neighbours, 1, axis=0)
    other = judge(Checkpoint.load(spec.key, tmp_path), batch._replace(neighbours=beside))
    assert (other.nats[:, 7:] != found.nats[:, 7:]).any()
    assert (other.nats[:, :7] == found.nats[:, :7]).all()


@pytest.mark.slow
def test_random_neighbours_gain_nothing(prose, tmp_path):
    """On a plain run of as many tokens, in a 90 % interval over held-out sequences."""
    budget = Budget(steps=200, batch=8, seq_len=32, eval_tokens=6400)
    control = run(prose, READS, random=True).model_copy(update={"budget": budget})
    plain = control.model_copy(update={"model": model(None).model_copy(update={"vocab_size": 256}),
                                       "data": control.data.data})  # fmt: skip
    losses = []
    for spec in (control, plain):
        for record, weights in train([spec]):
            Store(tmp_path).save(record, weights)
        batch = spec.splits[0].draw(spec.data.open())
        losses.append(judge(Checkpoint.load(spec.key, tmp_path), batch).loss)
    gain = losses[1] - losses[0]
    assert gain.mean() < 1.645 * gain.std(ddof=1) / len(gain) ** 0.5


def test_a_training_step_can_be_compiled_from_shapes_alone(prose):
    spec = run(prose, READS)
    program = Program(spec.model, spec.optim.compiled)
    *_, batches, _ = program.shapes(4, 32)
    drawn = spec.data.open().batch(0, 0, 4, 32)
    assert jax.tree.map(lambda x: x.shape[2:], batches) == jax.tree.map(lambda x: x.shape, drawn)
    jax.eval_shape(program.advance, *program.shapes(4, 32))
