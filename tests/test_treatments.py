"""Formats, masks and removed parts do what they say and cost what they say; none does nothing."""

import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isoflop.experiments import Unknown, compress
from isoflop.experiments.claims import compression
from isoflop.experiments.cli import treat
from isoflop.models.base import Embedding, Init, Matrix
from isoflop.models.errors import UserError
from isoflop.models.families import zoo
from isoflop.models.families.matching import with_experts
from isoflop.models.lm import ModelConfig
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.moe import Moe
from isoflop.sim.compare.effective import Change, Effective, effective, interaction
from isoflop.sim.compare.precision import hardness, post_training
from isoflop.sim.cost.flops import step_flops
from isoflop.sim.data import Markov
from isoflop.sim.evaluate.checkpoint import Checkpoint
from isoflop.sim.laws.forms import Chinchilla
from isoflop.sim.optim import AdamW
from isoflop.sim.records.store import Store
from isoflop.sim.spec import Budget, Run
from isoflop.sim.train.loop import train
from isoflop.sim.treatments import (
    Activations,
    Distil,
    Prune,
    Remove,
    Retrain,
    States,
    Subject,
    Weights,
    apply,
)
from isoflop.sim.treatments.base import judge, parallel
from isoflop.sim.treatments.formats import BITS, Format, rounded, stored_bits, through
from isoflop.sim.treatments.matmuls import second_moments, visiting
from isoflop.sim.treatments.quantise import with_feedback
from isoflop.sim.treatments.retrain import _itself, _low_rank, _train

CASES = Path(__file__).parent / "cases"
INTEGERS = ("int8", "int4", "int3", "int2")


def model() -> ModelConfig:
    """Attention over experts, then a recurrence over an MLP."""
    expert = with_experts(16, Attention(n_heads=2), lambda d: Moe(n_experts=4, top_k=2, d_expert=d))
    recurrent = zoo.FAMILIES["linear"](16, 1, 13).blocks[0]
    return ModelConfig(d_model=16, vocab_size=13, blocks=(expert, recurrent))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A runs directory with one trained run, and the run."""
    run = Run(
        model=model(),
        data=Markov(symbols=13, order=1),
        optim=AdamW(lr=0.02, warmup_steps=5),
        budget=Budget(steps=60, batch=8, seq_len=16, eval_tokens=1024),
    )
    root = tmp_path_factory.mktemp("runs")
    for record, weights in train([run]):
        Store(root).save(record, weights)
    return root, run


def subject(runs) -> Subject:
    root, run = runs
    return Subject.of(Checkpoint.load(run.key, root))


@pytest.mark.parametrize("format", [*INTEGERS, "fp8"])
def test_integers_and_scales_are_those_of_qwix(format):
    case = np.load(CASES / "qwix.npz")
    q, scale = rounded(jnp.asarray(case["x"]), format, axis=0, group=32)
    shape = case["x"].shape
    theirs = case[f"{format}_q"].T.reshape(shape[1], -1, 32)
    assert np.array_equal(np.asarray(scale)[..., 0], case[f"{format}_scale"].T)
    assert np.array_equal(np.asarray(q), theirs)


def test_fixed_points_are_moved_once_and_a_short_last_group_has_a_scale_of_its_own():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 10)), jnp.float32)
    once = through(x, "int4", -1, 4, fixed_points=True)
    twice = through(once, "int4", -1, 4, fixed_points=True)
    assert np.allclose(once, twice, rtol=1e-6, atol=0)
    alone = through(x[:, 8:], "int4", -1, 4)
    assert np.array_equal(through(x, "int4", -1, 4)[:, 8:], alone)


def test_none_of_a_treatment_is_the_plain_run_bit_for_bit(runs):
    root, run = runs
    none = (
        States(format="fp32"), Prune(sparsity=0), Weights(format="fp32"),
        Activations(format="fp32"),
    )  # fmt: skip
    found = apply(run.key, none, root)
    assert found.metrics == found.plain
    assert found.change.value == 0.0
    assert found.ledger == found.plain_ledger
    loss = Store(root).load(run.key).loss
    assert found.plain["loss"].value == pytest.approx(loss, abs=1e-6)


def test_fewer_bits_cost_more_and_eight_next_to_nothing(runs):
    root, run = runs
    rise = {f: apply(run.key, (Weights(format=f),), root).change.value for f in INTEGERS}
    loss = Store(root).load(run.key).loss
    assert abs(rise["int8"]) < 1e-3 * loss
    assert rise["int8"] < rise["int4"] < rise["int3"] < rise["int2"]


def test_bytes_are_those_of_numbers_and_scales(runs):
    plain = subject(runs)
    treated = Weights(format="int4", group=8).apply(plain)
    leaves = plain.leaves
    vectors = sum(leaf.variable.size for leaf in leaves if leaf.sums is None)
    numbers = sum(leaf.variable.size for leaf in leaves if leaf.sums is not None)
    groups = sum(
        leaf.variable.size // leaf.variable.shape[leaf.sums]
        * -(-leaf.variable.shape[leaf.sums] // 8)
        for leaf in leaves
        if leaf.sums is not None
    )  # fmt: skip
    state = 32 * plain.model.state_size(16)
    bits = 32 * vectors + 4 * numbers + 32 * groups + state
    assert treated.ledger.resident_bytes == bits / 8
    assert plain.ledger.resident_bytes == 4 * (vectors + numbers) + state / 8


def test_a_decoded_token_reads_what_it_touches(runs):
    plain = subject(runs)
    state = 4 * plain.model.state_size(16)
    touched = 4 * plain.model.touched_params(1)
    assert plain.ledger.read_bytes == pytest.approx(touched + state)


def test_a_mask_costs_a_bit_for_each_weight_and_no_flops(runs):
    plain = subject(runs)
    treated = Prune(sparsity=0.5).apply(plain)
    assert treated.ledger.step_flops == plain.ledger.step_flops
    for leaf in treated.leaves:
        if leaf.path in treated.kept:
            zeros = int((np.asarray(leaf.variable[...]) == 0).sum())
            experts = leaf.variable.size // np.prod(leaf.variable.shape[-2:])
            each = round(0.5 * leaf.variable.size / experts)
            assert zeros == experts * each
            assert treated._bits(leaf) == leaf.variable.size + 32 * (leaf.variable.size - zeros)
    both = Weights(format="int8").apply(treated)
    assert all(
        (np.asarray(b.variable[...]) == 0)[np.asarray(a.variable[...]) == 0].all()
        for a, b in zip(treated.leaves, both.leaves, strict=True)
        if a.path in treated.kept
    )


def test_two_of_four_neighbours_stay(runs):
    treated = Prune(pattern="2:4", method="wanda").apply(_in_fours(subject(runs)))
    for leaf in treated.leaves:
        if leaf.path in treated.kept:
            w = np.asarray(leaf.variable[...])
            fours = w.reshape(*w.shape[:-2], w.shape[-2] // 4, 4, w.shape[-1])
            assert ((fours != 0).sum(-2) == 2).all()


def _in_fours(plain: Subject) -> Subject:
    """The same with MLPs of a width that is a multiple of four."""
    blocks = tuple(
        block.model_copy(
            update={"channel": block.channel.model_copy(update={"d_expert": 8})}
            if isinstance(block.channel, Moe)
            else {"channel": block.channel.model_copy(update={"d_ff": 24})}
        )
        for block in plain.model.blocks
    )
    config = plain.model.model_copy(update={"blocks": blocks})
    return plain.to(model=config, params=nnx.state(config.build(init=Init(0))))


def test_decoding_with_an_untouched_state_is_the_parallel_form(runs):
    plain = subject(runs)
    treated = States(format="bf16").apply(plain)
    tokens = jnp.asarray(np.random.default_rng(0).integers(13, size=(2, 16)), jnp.int32)
    exact = parallel(plain.model, plain.params, tokens)
    found = treated.logits(plain.model, plain.params, tokens)
    assert 1e-6 < float(jnp.abs(found - exact).max()) < 0.1
    coarse = States(format="int2").apply(plain).logits(plain.model, plain.params, tokens)
    assert float(jnp.abs(coarse - exact).max()) > float(jnp.abs(found - exact).max())


@pytest.mark.parametrize(
    "name",
    ["moe", "lstm", *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in zoo.FAMILIES if name not in ("moe", "lstm")
    )],
)  # fmt: skip
def test_every_matrix_is_found_in_the_jaxpr_and_the_outputs_stay(name):
    config = zoo.FAMILIES[name](32, 1)
    params = jax.tree.map(jnp.asarray, nnx.state(config.build(init=Init(0))))
    tokens = jnp.asarray(np.random.default_rng(0).integers(256, size=(1, 20)), jnp.int32)
    seen = set()

    def see(matmul):
        seen.add(matmul.leaf)
        return matmul.x

    found = jax.jit(visiting(lambda p, t: parallel(config, p, t), see))(params, tokens)
    assert np.allclose(
        found, jax.jit(parallel, static_argnums=0)(config, params, tokens), atol=1e-5
    )
    variables = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, nnx.Variable))
    matrices = {i for i, v in enumerate(variables) if isinstance(v, Matrix)}
    assert matrices <= seen
    tied = {i for i, v in enumerate(variables) if isinstance(v, Embedding)}
    assert not seen & tied  # looked up, not multiplied


def test_error_feedback_moves_a_layers_output_less_than_rounding_to_nearest():
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((24, 24))
    x, w = rng.standard_normal((400, 24)) @ mixing, rng.standard_normal((24, 10))
    fed = with_feedback(w, x.T @ x / len(x), "int3", 8)
    nearest = np.asarray(through(jnp.asarray(w, jnp.float32), "int3", 0, 8), np.float64)
    assert np.linalg.norm(x @ fed - x @ w) < 0.8 * np.linalg.norm(x @ nearest - x @ w)


def test_moments_are_those_of_what_weights_multiply():
    params = {"w": jnp.ones((3, 2))}
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 5, 3)), jnp.float32)
    found = second_moments(lambda p, x: jax.jit(lambda w: (2 * x) @ w.astype("float32"))(p["w"]),
                           params, x)  # fmt: skip
    flat = 2 * np.asarray(x, np.float64).reshape(-1, 3)
    assert np.allclose(found[0][0], flat.T @ flat / 20)


@pytest.mark.parametrize("what", ["layers", "channels", "experts", "heads"])
def test_what_is_removed_leaves_a_smaller_model_that_costs_what_it_costs(runs, what):
    plain = subject(runs)
    treated = Remove(what=what, share=0.5, calibration=4).apply(plain)
    sizes = sum(leaf.variable.size for leaf in treated.leaves)
    assert sizes == treated.model.cost(1).params < plain.model.cost(1).params
    tokens = jnp.zeros((1, 5), jnp.int32)
    assert np.isfinite(treated.logits(treated.model, treated.params, tokens)).all()
    if what == "layers":
        assert len(treated.model.blocks) == 1


def test_what_is_removed_must_be_there_and_come_first(runs):
    with pytest.raises(UserError, match="at least one part"):
        Remove(what="heads", share=0.1).apply(subject(runs))
    with pytest.raises(UserError, match="give Remove first"):
        Remove(what="layers", share=0.5).apply(Weights(format="int8").apply(subject(runs)))
    with pytest.raises(UserError, match="States before"):
        States(format="int8").apply(Activations(format="int8").apply(subject(runs)))


def test_what_was_applied_once_is_read_and_not_computed(runs, monkeypatch):
    root, run = runs
    first = apply(run.key, (Weights(format="int3", group=4),), root)
    monkeypatch.setattr(Weights, "apply", None)
    assert apply(run.key, (Weights(format="int3", group=4),), root) == first


@pytest.mark.slow
def test_no_steps_of_retraining_are_the_parent_and_low_rank_changes_begin_there(runs):
    root, run = runs
    assert apply(run.key, (Retrain(steps=0),), root).change.value == 0.0
    plain = subject(runs)
    pairs, view = _low_rank(plain.params, 2, 0)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), view(pairs), plain.params)
    assert all(jax.tree.leaves(same))
    treated = Retrain(steps=3, lora_rank=2).apply(plain)
    for before, after in zip(plain.leaves, treated.leaves, strict=True):
        change = np.asarray(after.value - before.value, np.float64)
        if isinstance(before.variable, Matrix):
            assert np.abs(change).max() > 0
            assert np.linalg.matrix_rank(change, tol=1e-5).max() <= 2
        else:
            assert (change == 0).all()


def test_retraining_learns_keeps_masks_and_is_charged(runs):
    plain = subject(runs)
    pruned = Prune(sparsity=0.5).apply(plain)
    healed = Retrain(steps=30).apply(pruned)
    batch = _held_out(plain)
    losses = [judge(one, batch)[0].mean() for one in (plain, pruned, healed)]
    assert losses[1] > losses[0] + 1e-3
    assert losses[2] < losses[1]
    for before, after in zip(pruned.leaves, healed.leaves, strict=True):
        if before.path in pruned.kept:
            assert (np.asarray(after.value)[np.asarray(before.value) == 0] == 0).all()
    step = step_flops(plain.model, 16, 8)["executed"]
    assert healed.ledger.train_flops == plain.ledger.train_flops + 30 * step


def test_training_that_knows_its_rounding_loses_less_by_it(runs):
    plain, batch = subject(runs), _held_out(subject(runs))
    nearest = Weights(format="int2", group=8).apply(plain)
    aware = Retrain(steps=30, weights="int2", group=8).apply(plain)
    assert judge(aware, batch)[0].mean() < judge(nearest, batch)[0].mean()
    again = Weights(format="int2", group=8).apply(aware)  # what it is stored as
    assert aware.ledger == again.ledger.model_copy(update={"train_flops": aware.ledger.train_flops})


def test_an_oracle_teaches_faster_than_data_and_nothing_beats_the_entropy(runs):
    plain, batch = subject(runs), _held_out(subject(runs))
    student = zoo.FAMILIES["linear"](16, 1, 13)
    losses = {
        share: judge(
            Distil(student=student, steps=40, share=share, teacher="oracle").apply(plain), batch
        )[0]
        for share in (0.0, 1.0)
    }
    gain = (losses[0.0] - losses[1.0]).mean(-1)
    assert gain.mean() > 2 * gain.std() / len(gain) ** 0.5
    floor = plain.run.data.open().floor(16)
    error = losses[1.0].mean(-1).std() / len(gain) ** 0.5
    assert losses[1.0].mean() > floor - 3 * error


def test_a_student_with_no_share_of_a_teacher_is_one_of_data_alone_to_the_last_bit(runs):
    plain, student = subject(runs), zoo.FAMILIES["linear"](16, 1, 13)
    taught = Distil(student=student, steps=3, share=0.0, seed=1).apply(plain)
    fresh = jax.tree.map(jnp.asarray, nnx.state(student.build(init=Init(1))))
    alone = _train(plain, student, fresh, _itself, plain.run.data, 3, 1.0, seed=1)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), taught.params, alone)
    assert all(jax.tree.leaves(same))
    assert taught.ledger.teacher_flops == 0


def test_a_teacher_is_charged_and_must_speak_the_students_tokens(runs):
    plain = subject(runs)
    student = zoo.FAMILIES["linear"](16, 1, 13)
    taught = Distil(student=student, steps=2).apply(plain)
    own = 2 * step_flops(student, 16, 8)["executed"]
    assert taught.ledger.train_flops == own + taught.ledger.teacher_flops
    assert taught.ledger.teacher_flops == plain.train_flops + 2 * (
        step_flops(plain.model, 16, 8)["executed"]) // 3  # fmt: skip
    with pytest.raises(UserError, match="teacher's 13 tokens"):
        Distil(student=zoo.FAMILIES["linear"](16, 1, 20), steps=2).apply(plain)


def _held_out(plain: Subject):
    return plain.run.splits[0].draw(plain.run.data.open())


LAW = Chinchilla(E=1.2, A=20.0, B=150.0, alpha=0.30, beta=0.32)


def _change(ratio: float, n: float = 4e5, d: float = 1.6e7, noise: float = 0.0) -> Change:
    loss = float(LAW(n, d)) * np.exp(noise)
    treated = loss * float(LAW(n * ratio, d)) / float(LAW(n, d))
    return Change(n, d, loss, treated - loss, 1e-3 * loss)


@pytest.mark.parametrize("ratio", [1.0, 0.7, 1.5])
def test_an_effective_size_is_the_one_that_was_put_in(ratio):
    draws = Chinchilla(*(np.full(50, v) for v in LAW.params().values()))
    found = effective([_change(ratio, noise=0.02)], LAW, draws, (1e5, 1.6e6))
    assert found.ratio == pytest.approx(ratio, rel=1e-6)
    assert found.low < ratio < found.high


def test_an_effective_size_outside_the_trained_sizes_is_refused_with_its_side():
    found = effective([_change(0.1)], LAW, None, (1e5, 1.6e6))
    assert "below 0.25" in found.reason
    found = effective([_change(8.0)], LAW, None, (1e5, 1.6e6))
    assert "above 4" in found.reason
    draws = Chinchilla(*(np.full(50, v) for v in LAW.params().values()))
    assert "below 0.25" in effective([_change(0.1)], LAW, draws, (1e5, 1.6e6)).reason
    with pytest.raises(UserError, match="one cell"):
        effective([_change(1.0), _change(1.0, n=2e5)], LAW, None, (1e5, 1.6e6))


def test_a_change_within_its_noise_at_the_largest_size_is_told_from_one_by_nothing():
    draws = Chinchilla(*(np.full(50, v) for v in LAW.params().values()))
    found = effective([_change(1.0001, n=1.6e6)], LAW, draws, (1e5, 1.6e6))
    assert found.ratio == 1.0
    assert 0.9 < found.low < 1.0
    assert found.high == np.inf
    assert not found.resolved
    nothing = Change(1.6e6, 1.6e7, 2.0, 0.0, 0.0)
    assert effective([nothing], LAW, draws, (1e5, 1.6e6)) == Effective(1.0, 1.0, 1.0)


def test_the_commands_formats_are_those_there_are():
    assert get_args(treat.Formats) == get_args(Format) == tuple(BITS)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("ratio", [1.0, 0.7, 1.5])
def test_intervals_of_effective_sizes_cover_the_truth(seeds, ratio):
    """Nominal 90 % over 80 worlds: .85 to .98, within what 80 draws resolve."""
    rng = np.random.default_rng(1)
    worlds = [_covers(rng, seeds, ratio) for _ in range(80)]
    assert 0.82 <= np.mean(worlds) <= 1.0


def _covers(rng, seeds: int, ratio: float) -> bool:
    """One grid of 5 sizes × 4 lengths with 1 % noise, .6 of it shared by a trunk's branches."""
    sizes, tokens = np.geomspace(1e5, 1.6e6, 5), np.geomspace(4e6, 6.4e7, 4)
    rows = []
    for n in sizes:
        for seed in range(seeds):
            trunk = 0.01 * 0.6**0.5 * rng.normal()
            for d in tokens:
                own = 0.01 * 0.4**0.5 * rng.normal()
                rows.append((n, d, seed, f"{n}-{seed}", float(LAW(n, d)) * np.exp(trunk + own)))
    columns = dict(zip(("N", "D", "seed", "run", "loss"), map(list, zip(*rows, strict=True)),
                       strict=True))  # fmt: skip
    fit = Chinchilla.fit(columns, draws=300)
    if not fit.ok:  # as `of_cells` chooses
        fit = Chinchilla.fit(columns, draws=300, asymptote=False)
    n, d, changes = sizes[2], tokens[2], []
    for size, length, seed, _, loss in rows:
        if (size, length) == (n, d):
            moved = float(LAW(n * ratio, d)) / float(LAW(n, d)) * np.exp(1e-3 * rng.normal())
            changes.append(Change(n, d, loss, loss * (moved - 1), 1e-3 * loss, seed))
    found = effective(changes, fit.law, fit.draws, (sizes[0], sizes[-1]))
    return found.low <= ratio <= found.high


def _together(rng, seeds: int, extra: float) -> list[list[Change]]:
    """Treatments that leave .8 and .7, and .8 · .7 · `extra` together, with noise of their own."""
    return [
        [replace(_change(ratio, noise=0.01 * rng.normal()), seed=seed) for seed in range(seeds)
         for ratio in [one * np.exp(0.02 * rng.normal())]]
        for one in (0.8 * 0.7 * extra, 0.8, 0.7)
    ]  # fmt: skip


@pytest.mark.slow
def test_an_interaction_is_the_one_that_was_put_in_as_often_as_it_says():
    rng, held = np.random.default_rng(0), 0
    draws = Chinchilla(*(np.full(40, v) for v in LAW.params().values()))
    for _ in range(60):
        whole, *parts = _together(rng, 3, 1.1)
        found = interaction(whole, parts, LAW, draws, (1e5, 1.6e6))
        held += found.low <= 1.1 <= found.high
    assert 0.8 <= held / 60 <= 0.98


@pytest.mark.parametrize("extra", [1.0, 1.2])
def test_an_interaction_is_over_the_product_of_what_is_left(extra):
    draws = Chinchilla(*(np.full(8, v) for v in LAW.params().values()))
    exact = [[_change(one), replace(_change(one, noise=0.01), seed=1)]
             for one in (0.56 * extra, 0.8, 0.7)]  # fmt: skip
    found = interaction(exact[0], exact[1:], LAW, draws, (1e5, 1.6e6))
    assert [found.low, found.ratio, found.high] == pytest.approx([extra] * 3, rel=1e-9)


def test_an_interaction_is_refused_without_seeds_or_outside_the_trained_sizes():
    draws = Chinchilla(*(np.full(40, v) for v in LAW.params().values()))
    one = [_change(0.8)]
    assert "two seeds" in interaction(one, [one, one], LAW, draws, (1e5, 1.6e6)).reason
    two = [*one, replace(one[0], seed=1)]
    assert "outside" in interaction(two, [two, two], LAW, draws, (3.9e5, 1.6e6)).reason
    assert "different seeds" in interaction(two, [one, two], LAW, draws, (1e5, 1.6e6)).reason


def test_a_treated_run_beside_another_treatment_differs_by_their_changes(runs):
    root, run = runs
    one, control = (apply(run.key, (Weights(format=name),), root) for name in ("int2", "int4"))
    beside = one.over(control)
    assert beside.plain == control.metrics
    assert beside.change.value == one.change.value - control.change.value
    assert beside.change.se == pytest.approx(math.hypot(one.change.se, control.change.se))
    assert beside.change.value == pytest.approx(
        one.metrics["loss"].value - control.metrics["loss"].value, abs=1e-6
    )
    assert (beside.ledger, beside.plain_ledger) == (one.ledger, one.plain_ledger)
    with pytest.raises(UserError, match="a control is of the same run"):
        one.over(control.model_copy(update={"run": "f" * 16}))


def aware(low, high, n=2e5, family="dense"):
    return {"family": family, "treatment": "retrain 150 int4", "control": "retrain 150", "N": n,
            "D": 1e6, "ratio": 0.9, "low": low, "high": high}  # fmt: skip


@pytest.mark.parametrize(
    ("low", "high", "holds"),
    [(0.8, 1.0, True), (0.6, 0.7, False), (0.95, 1.0, False), (0.5, 1.0, None), (0.8, None, None)],
)
def test_the_verdict_on_int4_follows_the_size_that_has_others_on_both_sides(low, high, holds):
    rows = [aware(0.1, 0.2, 4e5), aware(low, high), aware(0.1, 0.2, 1e5), aware(0.1, 0.2)
            | {"D": 5e5}, aware(0.1, 0.2, family="mamba")]  # fmt: skip
    assert compression.four_bits_leave_most.judge(rows).holds is holds
    plain = [row | {"control": None} for row in rows]
    assert compression.four_bits_leave_most.judge(plain).holds is None


@pytest.mark.parametrize(("power", "holds"), [(0.5, True), (-0.5, False)])
def test_the_verdict_on_rounding_after_longer_training_follows_the_slope(power, holds):
    rng = np.random.default_rng(0)
    rows = [
        {"family": "dense", "treatment": "weights int3", "N": n, "D": d, "se": 1e-5,
         "change": 0.02 * (d / 1e6) ** power * np.exp(0.01 * rng.normal())}
        for n in (1e5, 2e5) for d in (1e6, 2e6, 4e6)
    ]  # fmt: skip
    assert compression.training_makes_rounding_dearer.judge(rows).holds is holds


def test_kinds_of_treatments_are_chosen_by_name_and_sizes_by_number():
    with pytest.raises(Unknown, match="no kind of treatment state; perhaps you meant states"):
        compress.measure(kinds=("state",))
    with pytest.raises(UserError, match="sizes=5 must be between 1 and 4"):
        compress.measure(sizes=5)


def test_bits_of_every_format_are_stated():
    assert stored_bits(64, 2, "int4") == 4 * 64 + 2 * 32
    assert stored_bits(64, 2, "bf16") == 16 * 64
    assert sorted(BITS.values(), reverse=True) == [32, 16, 8, 8, 4, 3, 2]


def test_exponents_of_what_compression_costs_are_those_that_were_put_in():
    rng = np.random.default_rng(0)
    rows = [
        {"family": "dense", "treatment": "weights int3", "N": n, "D": d, "se": 1e-5,
         "change": 0.02 * (d / 1e6) ** 0.5 / (n / 1e5) ** 0.3 * np.exp(0.01 * rng.normal())}
        for n in (1e5, 2e5, 4e5) for d in (1e6, 2e6, 4e6)
    ]  # fmt: skip
    found = hardness(rows, "weights int3")["dense"]
    for name, truth in (("gamma_D", 0.5), ("gamma_N", 0.3)):
        value, low, high = found[name]
        assert low <= truth <= high
        assert value == pytest.approx(truth, abs=0.03)
    rows[0]["change"] = 0.0
    assert hardness(rows, "weights int3") == {}


def test_the_form_of_what_rounding_costs_is_fitted_to_bits_too_or_says_what_lacks():
    """2411.04330, eq. 3."""
    rng = np.random.default_rng(0)
    rows = [
        {"family": "dense", "treatment": f"weights int{bits}", "N": n, "D": d, "se": 1e-5,
         "change": 0.3 * d**0.5 / n**0.35 * np.exp(-bits / 0.6 + 0.01 * rng.normal())}
        for n in (1e5, 2e5, 4e5) for d in (1e6, 2e6, 4e6) for bits in (2, 3, 4)
    ]  # fmt: skip
    found = post_training(rows)["dense"]
    assert (found["status"], found["resolved"], found["unresolved"]) == ("converged", 27, 0)
    for name, truth in (("gamma_D", 0.5), ("gamma_N", 0.35), ("gamma_P", 0.6)):
        value, low, high = found[name]
        assert low <= truth <= high
        assert value == pytest.approx(truth, abs=0.03)
    few = [row for row in rows if row["treatment"] == "weights int2"]
    assert "of 1 format" in post_training(few)["dense"]["reason"]
    flat = [row | {"change": 1.0 + 0.01 * rng.normal()} for row in rows]
    assert "does not fall with bits" in post_training(flat)["dense"]["reason"]
