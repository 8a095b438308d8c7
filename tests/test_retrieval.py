"""Retrieval finds what is nearest, changes nothing at λ = 0, leaks nothing, and is charged."""

import json
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isoflop.experiments.claims import account_methods
from isoflop.figures import retrieve
from isoflop.models.base import Init
from isoflop.models.errors import UserError
from isoflop.models.families import zoo
from isoflop.models.lm import Block, ModelConfig
from isoflop.models.mixers.mlp import SwiGLU
from isoflop.sim.compare.retrieval import by_store
from isoflop.sim.cost.jaxpr import executed_flops
from isoflop.sim.data import ContextFacts, FactTable, File, ZipfFacts
from isoflop.sim.data.source import drawn
from isoflop.sim.evaluate.checkpoint import Checkpoint
from isoflop.sim.optim import AdamW
from isoflop.sim.records.store import Store, write_table
from isoflop.sim.spec import Budget, Eval, Run
from isoflop.sim.train.loop import train
from isoflop.sim.treatments import (
    Activations,
    Cascade,
    Neighbours,
    Passages,
    Subject,
    Weights,
    apply,
)
from isoflop.sim.treatments.base import judge
from isoflop.sim.treatments.neighbours import SHARES, _hidden, nearest, stored
from isoflop.sim.treatments.passages import _counts
from isoflop.sim.treatments.splits import Shelf, judged, second, shared

FACTS = {"facts": 64, "symbols": 16, "alpha": 0.5}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, prose):
    """A runs directory; a run on text, and one on facts that were never the same twice."""
    block = Block(channel=SwiGLU(d_ff=48))
    text = Run(
        model=ModelConfig(d_model=16, vocab_size=256, blocks=(block,)),
        data=File(path=prose),
        optim=AdamW(lr=0.02, warmup_steps=5),
        budget=Budget(steps=50, batch=8, seq_len=24, eval_tokens=1920),
    )
    facts = Run(
        model=ModelConfig(d_model=16, vocab_size=80, blocks=(block,)),
        data=ContextFacts(fresh=1.0, **FACTS),
        optim=AdamW(lr=0.02, warmup_steps=20),
        budget=Budget(steps=600, batch=128, seq_len=2, eval_tokens=8192),
        evals=(Eval(name="drawn", data=ZipfFacts(seed=1, **FACTS), tokens=16_384),),
    )
    root = tmp_path_factory.mktemp("runs")
    for run in (text, facts):
        for record, weights in train([run]):
            Store(root).save(record, weights)
    return root, text, facts


@pytest.fixture(scope="module")
def recurrent(runs) -> Subject:
    """A model that remembers, not trained."""
    plain = subject(runs)
    model = zoo.FAMILIES["linear"](16, 1)
    params = jax.tree.map(jnp.asarray, nnx.state(model.build(init=Init(0))))
    return plain.to(model=model, params=params)


def logits(subject: Subject, tokens) -> np.ndarray:
    return np.asarray(_jitted(subject.logits)(subject.model, subject.reads, tokens))


_jitted = cache(partial(jax.jit, static_argnums=0))


def subject(runs) -> Subject:
    root, text, _ = runs
    return Subject.of(Checkpoint.load(text.key, root))


def test_the_search_is_exact_also_where_the_store_is_smaller_than_what_is_asked_for():
    rng = np.random.default_rng(0)
    keys, queries = rng.standard_normal((5000, 6)), rng.standard_normal((7, 6))
    values = rng.integers(99, size=5000)
    keys, queries = keys.astype(np.float32), queries.astype(np.float32)
    far, found = nearest(stored(keys, values), jnp.asarray(queries), 5)
    apart = ((queries[:, None].astype(float) - keys[None]) ** 2).sum(-1)
    order = np.argsort(apart, axis=1)[:, :5]
    assert np.allclose(far, np.take_along_axis(apart, order, 1), atol=1e-5)
    assert np.array_equal(found, values[order])
    far, _ = nearest(stored(keys[:3], values[:3]), jnp.asarray(queries), 5)
    assert np.isfinite(far).sum(-1).tolist() == [3] * 7
    near = stored(keys, values)._replace(radius=np.float32(1.0))
    far, _ = nearest(near, jnp.asarray(queries), 5)
    assert np.array_equal(np.isfinite(far), np.take_along_axis(apart, order, 1) <= 1.0)


def test_a_search_is_in_the_ledger_to_the_flop_and_the_byte(runs):
    plain = subject(runs)
    treated = Neighbours(store=512, share=0.3, temperature=1.0).apply(plain)
    count, width = 512, plain.model.d_model
    token = jnp.zeros((1, 1), jnp.int32)
    reads = jax.tree.map(jnp.asarray, treated.reads)
    counted, own = (
        sum(executed_flops(partial(one.logits, one.model), read, token))
        for one, read in ((treated, reads), (plain, plain.params))
    )
    assert treated.ledger.step_flops - plain.ledger.step_flops == counted - own
    store = 4 * count * (width + 2)
    assert treated.ledger.store_bytes == store
    assert treated.ledger.read_bytes == plain.ledger.read_bytes + store
    assert treated.ledger.resident_bytes == plain.ledger.resident_bytes
    sequences = 24  # three batches
    made = plain.model.cost(24, sequences).flops
    assert treated.ledger.train_flops == plain.ledger.train_flops + made


def test_without_a_share_retrieval_is_the_plain_run_bit_for_bit(runs):
    root, text, _ = runs
    found = apply(text.key, (Neighbours(store=512, share=0.0),), root)
    assert found.metrics == found.plain
    assert found.ledger == found.plain_ledger


def test_a_mixture_is_that_of_the_paper(recurrent):
    plain = recurrent
    treated = Neighbours(store=300, share=0.25, temperature=2.0, nearest=8).apply(plain)
    tokens = jnp.asarray(plain.run.data.open().batch(50, 0, 2, 24).tokens[:, :-1])
    log_p = logits(treated, tokens)
    assert np.allclose(jax.nn.logsumexp(log_p, -1), 0, atol=1e-5)
    (store,) = treated.memory
    keys = np.asarray(store.keys, float).reshape(-1, 16)[:300]
    own = np.asarray(jax.nn.softmax(logits(plain, tokens), -1), float)
    hidden = np.asarray(_hidden(plain.model, plain.params, tokens), float)
    for row, place in ((0, 3), (1, 20)):
        query = hidden[row, place]
        apart = ((keys - query) ** 2).sum(-1)
        best = np.argsort(apart)[:8]
        weight = np.exp(-(apart[best] - apart[best].min()) / 2.0)
        near = np.zeros(256)
        np.add.at(near, store.values[best], weight / weight.sum())
        mixed = 0.75 * own[row, place] + 0.25 * near
        assert np.allclose(np.exp(log_p[row, place]), mixed, atol=1e-4)


def test_what_is_chosen_is_chosen_on_text_that_is_not_judged(runs):
    _, text, _ = runs
    other, (own,) = second(text), judged(text)
    assert len(other.tokens) >= 2
    assert not shared(other.tokens, [own], 13).any()
    fresh = text.model_copy(update={"data": ZipfFacts(**FACTS)})
    assert second(fresh).tokens.shape == (80, 25)


def test_the_share_is_that_of_least_loss_on_the_second_split(runs):
    plain, batch = subject(runs), second(runs[1])
    how = {"store": 2000, "temperature": 2.0, "nearest": 8}
    losses = {
        share: judge(Neighbours(share=share, **how).apply(plain), batch)[0].mean(dtype=float)
        for share in SHARES
    }
    assert Neighbours(**how).apply(plain).chosen["share"] == min(losses, key=losses.get)


def test_a_store_is_the_text_from_its_first_batch_on(runs):
    plain = subject(runs)
    batch = drawn(plain.run.data.open(), 2, plain.run.seed, 8, 24)
    how = {"first": 2, "purge": None}
    (store,) = Neighbours(store=150, share=0.5, temperature=1.0, **how).apply(plain).memory
    assert np.array_equal(np.asarray(store.values)[:150], batch.targets.ravel()[:150])
    (store,) = Passages(store=9, stride=6, **how).apply(plain).memory
    assert np.array_equal(store.text[:3], [batch.tokens[0, i : i + 12] for i in (0, 6, 12)])


def test_a_shelf_ends_with_the_text(runs):
    shelf = Shelf(subject(runs).run, None, 0, None, 1, "store=1")
    shelf.rows = 10
    assert [shelf.draw()[1].any(1).sum() for _ in range(2)] == [8, 2]
    with pytest.raises(UserError, match="store=1 is more than there is of the 240 tokens"):
        shelf.draw()


def test_near_copies_are_known_token_by_token():
    rows = np.arange(40).reshape(2, 20)
    text = np.concatenate([np.full((1, 5), 99), rows[:1, 8:14], np.full((1, 5), 98)], 1)
    found = shared(rows, [text], 6)
    assert np.flatnonzero(found[0]).tolist() == list(range(8, 14))
    assert not found[1].any()
    assert not shared(rows, [text], 7).any()


def test_what_is_judged_is_purged_from_a_store_that_holds_it(runs):
    plain = subject(runs)
    (own,) = judged(plain.run)
    shelf = Shelf(plain.run, None, 0, 13, 1, "store=1")
    batch = shelf.source.batch(0, 0, 8, 24)
    batch.tokens[2:4] = own[:2]
    shelf.source.batch = lambda *_: batch
    allowed = shelf.draw()[1]
    assert not allowed[2:4].any()
    assert allowed[[0, 1, 4, 5, 6, 7]].mean() > 0.9
    shelf.purge = None
    assert shelf.draw()[1].all()


def test_a_store_beyond_the_text_is_refused(runs):
    with pytest.raises(UserError, match=r"store=\d+ is more than there is of the [\d,]+ tokens"):
        Neighbours(store=200_000, share=0.5, temperature=1.0).apply(subject(runs))


def test_retrieval_comes_last(runs):
    treated = Neighbours(store=64, share=0.5, temperature=1.0).apply(subject(runs))
    with pytest.raises(UserError, match="weights are treated before"):
        Weights(format="int8").apply(treated)
    with pytest.raises(UserError, match="give them before passages and cascade"):
        Neighbours(store=64, share=0.5).apply(treated)
    with pytest.raises(UserError, match="states and activations too"):
        Activations(format="int8").apply(treated)


def test_a_random_store_is_worth_nothing(runs):
    root, text, _ = runs
    found = apply(text.key, (Neighbours(store=2000, shuffled=True),), root)
    assert abs(found.change.value) <= 3 * (found.change.se or 0) + 1e-12
    real = apply(text.key, (Neighbours(store=2000),), root)
    assert 0 < real.chosen["share"] < 1
    assert real.change.value < -2 * real.change.se


def test_facts_that_were_drawn_after_training_cost_what_is_not_covered(runs):
    """L(n) = (H + (1 − coverage)·log symbols) / 2 for each token, at five sizes."""
    root, _, run = runs
    table = FactTable(seed=1, **FACTS)
    language, unknown = table.language.open(), np.log(table.symbols)
    for count in (1, 4, 12, 32, 64):
        one = Neighbours(store=count, share=1 - 1e-6, temperature=1.0, nearest=1, radius=1e-3,
                         data=table)  # fmt: skip
        found = apply(run.key, (one,), root)
        law = language.entropy + (1 - table.coverage(count)) * unknown / 2
        measured = found.metrics["drawn.loss"]
        assert abs(measured.value - law) < 1.645 * measured.se
        assert found.change.value > 0  # what the table says is wrong of the run's own facts


def test_a_table_of_facts_is_the_language_s():
    table = FactTable(seed=3, **FACTS)
    batch = table.open().batch(0, 0, 4, 8)
    symbol = ZipfFacts(seed=3, **FACTS).open().symbol
    assert np.array_equal(batch.tokens[:, 0:8:2].ravel(), np.arange(16))
    assert np.array_equal(batch.tokens[:, 1:8:2].ravel(), symbol[:16])
    assert np.array_equal(batch.weights[0], [1, 0] * 4)
    assert table.coverage(64) == pytest.approx(1)
    assert table.coverage(1) == pytest.approx(table.language.open().p[0])
    with pytest.raises(UserError, match="seq_len=3 must be even"):
        table.check(3)


def test_passages_are_chosen_by_earlier_tokens_alone(recurrent):
    plain = recurrent
    treated = Passages(store=200, stride=6, features=64).apply(plain)
    tokens = jnp.asarray(judged(plain.run)[0][:2, :-1])
    before = logits(treated, tokens)
    assert before.shape == (2, 24, 256)
    for place in (5, 6, 7, 13, 20):
        other = tokens.at[:, place].set((tokens[:, place] + 1) % 256)
        after = logits(treated, other)
        assert np.array_equal(before[:, :place], after[:, :place])
        assert not np.allclose(before[:, place], after[:, place])


@pytest.mark.slow
def test_a_passage_is_the_most_similar_one_and_stands_before_the_sequence(recurrent):
    plain = recurrent
    treated = Passages(store=200, stride=6, features=64).apply(plain)
    (store,) = treated.memory
    assert np.allclose((np.asarray(store.keys) ** 2).sum(-1), 1, atol=1e-5)
    passage = np.asarray(store.text)[17]
    tokens = np.concatenate([np.arange(1), passage[:6], np.arange(17)])[None].astype(np.int32)
    found = logits(treated, jnp.asarray(tokens))
    seen = np.concatenate([passage, tokens[0, :12]])[None]
    exact = logits(plain, jnp.asarray(seen))[:, -6:]
    assert np.allclose(found[:, 6:12], exact, atol=1e-5)


def test_passages_are_charged_for_what_is_read_anew(recurrent):
    plain = recurrent
    treated = Passages(store=200, stride=6, features=64).apply(plain)
    again = sum(plain.model.cost(n).flops for n in (6 + 12, 6 + 12, 6 + 12)) / 24
    more = treated.ledger.step_flops - plain.ledger.step_flops
    assert more == pytest.approx(again + 2 * 3 / 24 * 200 * 64, abs=1)
    assert treated.ledger.store_bytes == 4 * (200 * 64 + 200 * 12 + 64)
    read = treated.ledger.read_bytes - plain.ledger.read_bytes
    assert read == pytest.approx(3 / 24 * 4 * 200 * 64)
    with pytest.raises(UserError, match="at most a third of the training length, 8"):
        Passages(store=200, stride=9).apply(plain)


def test_a_store_of_passages_weighs_what_is_rare_holds_nothing_judged_and_may_be_shuffled(runs):
    plain = subject(runs)
    how = {"store": 200, "stride": 6, "features": 64, "purge": 8}
    (store,) = Passages(**how).apply(plain).memory
    there = np.asarray(_counts(jnp.asarray(store.text[:, :6]), 4, 64))
    assert np.allclose(store.rarity, np.log(200 / np.maximum(there.sum(0), 1)), atol=1e-5)
    assert not shared(store.text, judged(plain.run), 8).any()
    (mixed,) = Passages(shuffled=True, **how).apply(plain).memory
    assert np.array_equal(mixed.keys, store.keys)
    assert (mixed.text != store.text).any(1).mean() > 0.9
    assert sorted(map(bytes, mixed.text)) == sorted(map(bytes, store.text))


def test_treatments_that_retrieve_survive_json(runs):
    for one in (Neighbours(store=9, data=FactTable(**FACTS)), Passages(store=9),
                Cascade(large="0" * 16, share=0.1)):  # fmt: skip
        assert type(one).model_validate(json.loads(one.model_dump_json())) == one


def table(bend: float = 0.0, worth: float = 2.0, off: float = 0.0) -> list[dict]:
    """Rows as `isoflop run retrieve` writes them, of a family whose gain is a line, or bends."""
    rng, rows = np.random.default_rng(0), []
    for x in range(5):
        gains = 0.01 * x + bend * x**2 + 1e-4 * rng.standard_normal(2)
        rows.append({"part": "text", "family": "dense", "arm": "store", "store": 4**x,
                     "changes": (-gains).tolist(), "held_bytes": 2.0, "ratio": 2 * worth,
                     "low": 1.8 * worth, "high": 2.2 * worth})  # fmt: skip
    return [*rows, {"part": "facts", "loss": 1 + off, "law": 1.0, "se": 0.001}]


def test_a_line_over_the_store_is_told_from_a_bend():
    found = by_store(table(), "dense")
    assert found["slope"][1] < 0.01 / 2 < found["slope"][2]
    assert found["curvature"][1] < 0 < found["curvature"][2]
    assert by_store(table(bend=0.002), "dense")["curvature"][1] > 0
    assert by_store(table()[:2], "dense") == {}


@pytest.mark.parametrize(
    ("rows", "word"),
    [
        (table(), "held"),
        (table(bend=0.002), "refuted"),
        (table(worth=0.1), "refuted"),
        (table(worth=1.0), "not resolved"),
        (table(off=0.05), "refuted"),
        (table(off=0.011), "not resolved"),
    ],
)
def test_the_claim_of_logarithmic_gains_is_judged_by_its_rule(rows, word, tmp_path):
    write_table(tmp_path / "retrieve.jsonl", rows)
    assert account_methods.retrieval_is_logarithmic.verdict(tmp_path).word == word


def test_a_figure_is_drawn_of_stores_controls_and_facts(tmp_path):
    def told(row: dict) -> dict:
        gains = row.get("changes", [0.0])
        more = {"change": float(np.mean(gains)), "se": 0.001, "family": "dense"}
        return more | row | {"arm": row.get("arm", "others"), "coverage": 0.5, "seed": 0,
                             "floor": 0.5, "store": row.get("store", 2)}  # fmt: skip

    rows = [told(row) for row in table()]
    rows.append(rows[0] | {"arm": "random store"})
    rows += [{"part": "trained", "family": "dense", "arm": arm, "change": 0.02, "se": 0.001,
              "changes": [0.01, 0.03]} for arm in retrieve.TRAINED]  # fmt: skip
    assert retrieve.draw([], tmp_path) == []
    assert all(path.is_file() for path in retrieve.draw(rows, tmp_path))
    bent = by_store(table(bend=0.002), "dense")
    said = retrieve.finding([], {"dense": bent, "mamba": bent})
    assert said == "The gain grows faster than the logarithm of the store for dense and mamba"
    said = retrieve.finding(rows, {"dense": by_store(rows, "dense")})
    assert "The gain grows with the logarithm of the store for dense;" in said
    assert "at most 2 of the run's own; training with neighbours costs at equal FLOPs for" in said
    assert "dense; 1 of 1 losses on new facts obey" in said
    assert "changes nothing that is resolved" in retrieve.finding([rows[-4] | {"se": 0.1}], {})
    assert "neighbours pays" in retrieve.finding([rows[-4] | {"change": -0.02}], {})
