"""Tasks: right where a solver says so, held-out examples apart, chance and optimum as stated."""

import json
import math
import random
import re
from collections import Counter
from itertools import islice
from pathlib import Path

import fuzz
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from sources import refusal

from isoflop.models.errors import UserError
from isoflop.models.families import zoo
from isoflop.sim.data import AnyData, Batch, Corpus, Markov, Mixture, Part, ZipfFacts
from isoflop.sim.data.source import drawn, judged_on
from isoflop.sim.data.tasks.base import HELD_OUT_MIN, Task, fingerprints
from isoflop.sim.data.tasks.classify import Topic
from isoflop.sim.data.tasks.copying import Compression, SelectiveCopying, StringCopying
from isoflop.sim.data.tasks.dyck import BoundedDyck
from isoflop.sim.data.tasks.mad import FuzzyRecall, InContextRecall, Memorisation, NoisyRecall
from isoflop.sim.data.tasks.recall import MQAR, InductionHeads
from isoflop.sim.data.tasks.state import ModularCounting, Parity, WordProblem, elements
from isoflop.sim.data.tasks.text import Needle, Phonebook
from isoflop.sim.optim import AdamW
from isoflop.sim.records.metrics import measured
from isoflop.sim.spec import Budget, Eval, Run
from isoflop.sim.train.program import Program
from isoflop.sim.userfile import load

SEQ_LEN = 64  # holds every task below
pytestmark = pytest.mark.usefixtures("shared_cache")


def mqar(task, seen):
    key = seen[-1]
    return seen[2 * [seen[2 * i] for i in range(task.pairs)].index(key) + 1]


def induction(task, seen):
    return seen[seen.index(task.symbols) + 1]


def counting(task, seen):
    return sum(seen) % task.modulus


def word_problem(task, seen):
    state, group = list(range(5)), elements(task.group).tolist()
    for number in seen:
        move = group[number]
        state = [move[point] for point in state if point < len(move)]
    return group.index(state)


def pair_recall(task, seen):
    value = seen.index(seen[-1]) + 1
    return seen[value]


def fuzzy_recall(task, seen):
    """By the text: `key = value` of which the last is begun."""
    values = {}
    for line in re.findall(r"((?: k\d+)+) =((?: v\d+)*)", words(task, seen)):
        known, values[line[0]] = values.get(line[0], line[1]), line[1]
    begun = line[1].split()
    return task.key_vocab + int(known.split()[len(begun)][1:])


def words(task, seen):
    k, v = task.key_vocab, task.value_vocab
    names = [*(f"k{i}" for i in range(k)), *(f"v{i}" for i in range(v)), "="]
    return "".join(f" {names[token]}" for token in seen)


def memorisation(task, seen):
    return task.partner[seen[-1]]


def string_copying(task, seen):
    middle = seen.index(task.letters)
    return seen[len(seen) - middle - 1]


def selective_copying(task, seen):
    middle = seen.index(task.symbols + 1)
    kept = [token for token in seen[:middle] if token < task.symbols]
    return kept[len(seen) - middle - 1]


def compression(task, seen):
    return seen[seen[-1] - task.symbols - 1]


def bounded_dyck(task, seen):
    stack = []
    for token in seen:
        if token < task.types:
            stack.append(token)
        else:
            assert stack.pop() == token - task.types
        assert len(stack) <= task.depth
    return stack[-1] + task.types


def topic(task, seen):
    counts = Counter(word % task.classes for word in seen)
    return task.classes * task.words + counts.most_common(1)[0][0]


def line_in_text(task, seen):
    """The digit after what stands between the last line's beginning and here."""
    text = bytes(seen)
    question = text[text.rindex(b"\n") :]
    return text[text.index(question) + len(question)]


TASKS = [  # with what finds each answer from the tokens before it, by the task's definition
    (MQAR(pairs=6, vocab=40, length=60), mqar),
    (MQAR(pairs=4, vocab=300, length=64, shortest=16, noise="filler", power=0.5), mqar),
    (InductionHeads(length=40, shortest=5), induction),
    (Parity(length=40, shortest=3), counting),
    (Parity(length=24, asked="last"), counting),
    (ModularCounting(modulus=5, length=30), counting),
    (WordProblem(group="S3", length=30, shortest=10), word_problem),
    (WordProblem(group="S5", length=16, moved=2), word_problem),
    (WordProblem(group="A5", length=20, asked="last"), word_problem),
    (InContextRecall(length=50, shortest=20), pair_recall),
    (NoisyRecall(length=64, keys=6, noise=0.3, noise_tokens=9), pair_recall),
    (FuzzyRecall(length=60, keys=4, shortest=40), fuzzy_recall),
    (FuzzyRecall(length=64, keys=3, key_vocab=5, key_tokens=2, value_tokens=1), fuzzy_recall),
    (Memorisation(facts=40, length=20), memorisation),
    (StringCopying(length=20, shortest=5), string_copying),
    (SelectiveCopying(length=40, copied=8, shortest=20), selective_copying),
    (Compression(length=20, asked=6, shortest=8), compression),
    (BoundedDyck(length=40, shortest=9), bounded_dyck),
    (BoundedDyck(types=3, depth=2, length=30), bounded_dyck),
    (Topic(classes=3, words=6, length=21, shortest=5), topic),
    (Needle(length=64, digits=3), line_in_text),
    (Needle(length=64, digits=1, depth=0.9, shortest=60, corpus="sympy"), line_in_text),
    (Phonebook(length=64, digits=2, entries=4), line_in_text),
]
each_task = pytest.mark.parametrize(
    ("task", "solve"), TASKS, ids=[f"{task.kind}-{i}" for i, (task, _) in enumerate(TASKS)]
)


def examples(task, rows=1000):
    """So many of the training split, in batches."""
    source = task.open()
    parts = [drawn(source, i, 0, 100, SEQ_LEN) for i in range(rows // 100)]
    return Batch(*(None if p[0] is None else np.concatenate(p) for p in zip(*parts, strict=True)))


def test_every_kind_of_task_is_tested():
    def kinds(base):
        for sub in base.__subclasses__():
            yield from kinds(sub)
            kind = sub.model_fields["kind"]
            if sub.__module__.startswith("isoflop.") and not kind.is_required():
                yield kind.default

    assert {task.kind for task, _ in TASKS} == {*kinds(Task)}


@each_task
def test_a_solver_reaches_the_optimum_on_a_thousand_examples(task, solve):
    batch = examples(task)
    right = count = 0
    for row, place in np.argwhere(batch.weights > 0):
        found = solve(task, batch.tokens[row, : place + 1].tolist())
        right += found == batch.targets[row, place]
        count += 1
    assert count >= 1000
    source = task.open()
    assert (right / count, source.entropy) == (source.optimum, 0)
    assert (batch.weights > 0).any(axis=1).all()


@each_task
def test_a_task_is_a_pure_function_of_seed_and_step(task, solve):
    source = task.open()
    first, again = source.batch(3, 1, 8, SEQ_LEN), task.open().batch(3, 1, 8, SEQ_LEN)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for other in (source.batch(4, 1, 8, SEQ_LEN), source.batch(3, 2, 8, SEQ_LEN)):
        assert not np.array_equal(first.tokens, other.tokens)
    one, same = (t.held_out(640, SEQ_LEN) for t in (source, task.open()))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    assert source.digest == task.open().digest
    assert 0 <= first.tokens.min() <= first.tokens.max() < task.vocab_size


def whole(batch):
    """What is seen of each example before its last answer."""
    ends = [np.flatnonzero(row)[-1] + 1 for row in batch.weights]
    return [tuple(row[:end]) for row, end in zip(batch.tokens.tolist(), ends, strict=True)]


@each_task
def test_no_held_out_example_is_in_training_and_none_is_there_twice(task, solve):
    source = task.open()
    held_out = judged_on(source, 400 * SEQ_LEN, SEQ_LEN)
    apart = whole(held_out)
    assert len(apart) == len(set(apart))
    assert HELD_OUT_MIN <= len(apart) <= 400
    assert not {*apart} & {*whole(examples(task, 3000))}


def test_a_small_space_of_examples_is_split_too():
    """2^10 strings: those that are held out are all found, and training has all others."""
    task = Parity(length=10)
    apart = {*whole(task.open().held_out(10**5, 10))}
    trained = {*whole(task.open().batch(0, 0, 20_000, 10))}
    assert len(apart | trained) == 2**10
    assert not apart & trained
    assert 25 < len(apart) < 80


def test_what_one_setting_holds_out_no_other_trains_on():
    """The split is of tokens, whatever the dials: longer windows, mixed lengths, another seed."""
    apart = {*whole(Parity(length=12).open().held_out(10**4, 12))}
    other = Parity(length=14, shortest=3, loss="all").open()
    batch = other.batch(7, 5, 40_000, 20)
    ends = batch.weights.astype(bool).sum(axis=1)
    strings = {
        tuple(row[:13]) for row, n in zip(batch.tokens.tolist(), ends, strict=True) if n == 12
    }
    assert len(strings) > 1000
    assert not apart & strings


def test_a_task_with_too_few_examples_is_refused():
    told = refusal(Parity(length=6).open().held_out, 1000, 6)
    assert re.match(r"parity has \d different examples of its held-out split among", told)
    assert "needs 32; make them longer" in told


@each_task
def test_answers_are_equally_likely_so_chance_is_one_in_their_number(task, solve):
    batch = examples(task, 2000)
    given = batch.targets[batch.weights > 0]
    assert {*np.unique(given)} <= {*task.answers}
    source = task.open()
    assert source.chance == 1 / len(task.answers)
    share = np.bincount(given - task.answers[0], minlength=len(task.answers)) / len(given)
    rows = (batch.weights > 0).sum(axis=1)  # answers of one example may depend on each other
    error = (share - source.chance) / math.sqrt(source.chance * (rows**2).sum()) * len(given)
    assert np.abs(error).max() < 5


@pytest.fixture(scope="module")
def untrained():
    """Three models, their parameters and their logits."""
    program = Program(zoo.dense(16, 1, 320), AdamW(lr=0.01))
    predict = jax.jit(jax.vmap(lambda p, t: program.predict(p, t)[0], in_axes=(0, None)))
    params = program.init([0, 1, 2])[0]
    return program, params, lambda tokens: np.asarray(predict(params, tokens))


@each_task
def test_an_untrained_model_is_right_by_chance(task, solve, untrained):
    batch = examples(task, 300)
    answers = np.array(task.answers)
    logits = untrained[2](batch.tokens[:, :-1])[..., answers]
    hits = (answers[logits.argmax(axis=-1)] == batch.targets) * batch.weights
    chance, rows = task.open().chance, batch.weights.sum(axis=1)
    error = (hits.sum(axis=-1) - chance * rows).sum(axis=1) / rows.sum()  # by model
    spread = math.sqrt(chance * (1 - chance) * (rows**2).sum()) / rows.sum()
    assert np.abs(error).max() < 4 * spread


def test_lengths_are_equally_likely_and_padding_counts_nothing():
    batch = Parity(length=40, shortest=3).open().batch(0, 0, 4000, SEQ_LEN)
    length = batch.weights.sum(axis=1).astype(int)
    share = np.bincount(length, minlength=41)[3:] / 4000
    assert np.abs(share - 1 / 38).max() < 5 * math.sqrt(1 / 38 / 4000)
    assert (length.min(), length.max()) == (3, 40)
    padding = np.arange(SEQ_LEN) >= length[:, None]
    assert not batch.weights[padding].any()
    assert not batch.tokens[:, :-1][padding].any()
    assert not batch.labels[padding].any()


def test_all_tokens_up_to_the_last_answer_count_where_it_is_asked_for():
    dials = {"pairs": 4, "vocab": 64, "length": 40}
    answers, every = (MQAR(loss=loss, **dials).open() for loss in ("answers", "all"))
    one, other = (source.batch(0, 0, 8, SEQ_LEN) for source in (answers, every))
    np.testing.assert_array_equal(one.tokens, other.tokens)
    for asked, counted in zip(one.weights, other.weights, strict=True):
        end = np.flatnonzero(asked)[-1] + 1
        assert counted[:end].all()
        assert not counted[end:].any()
    assert (every.chance, every.optimum, every.entropy) == (None, None, None)


def test_gaps_of_mqar_follow_the_power_law():
    """The first key drawn is asked for at slot i with p ∝ i^(power − 1), by frequencies."""
    task = MQAR(pairs=1, vocab=64, length=22, power=0.3)
    batch = task.open().batch(0, 0, 20_000, 21)
    slot = (np.argmax(batch.weights, axis=1) - 2) // 2
    p = np.arange(1, 11) ** -0.7
    p /= p.sum()
    error = (np.bincount(slot, minlength=10) / 20_000 - p) / np.sqrt(p / 20_000)
    assert np.abs(error).max() < 4.5


def test_a_group_is_a_group_and_moves_are_those_asked_for():
    for group, order in {"S3": 6, "S4": 24, "S5": 120, "A4": 12, "A5": 60}.items():
        assert len(elements(group)) == order
    batch = WordProblem(group="S5", length=12, moved=2).open().batch(0, 0, 200, 12)
    group = elements("S5")
    moved = (group[batch.tokens[:, 1:12]] != np.arange(5)).sum(axis=-1)
    assert {*np.unique(moved)} == {0, 2}
    assert len(np.unique(batch.tokens[:, 0])) > 60


def test_lines_stand_in_text_of_their_own_split_where_depth_says():
    """At the end of it, so that text alone comes first; at its beginning; a book in one piece."""
    late = Needle(length=140, digits=3, depth=1, entries=2).open()
    train, held_out = (pieces.tobytes() for pieces in late.text.text)
    for batch, text in ((late.batch(0, 0, 50, 139), train), (late.held_out(7000, 139), held_out)):
        lines = [bytes(row.astype(np.uint8)) for row in batch.tokens]
        before = [line[: line.index(b"\nThe number of ")] for line in lines]
        assert all(piece in text for piece in before)
        assert max(map(len, before)) > 20
        asked = [line[line.rindex(b"\n") : -3] for line in lines]
        places = {line.index(a) for line, a in zip(lines, asked, strict=True)}
        assert places <= {52, 82}  # after all 52 bytes of text, and perhaps the other line
    early = Phonebook(length=140, digits=3, depth=0, entries=5).open().batch(0, 0, 20, 139)
    for row in early.tokens:
        assert re.match(rb"(\n[a-z]{6}: \d{3}){5}", bytes(row.astype(np.uint8)))


REFUSED = [
    (lambda: MQAR(pairs=20, length=64), "pairs=20 take 4·pairs=80 tokens"),
    (lambda: MQAR(pairs=8, length=64, shortest=16), "of an example, which has 16"),
    (lambda: MQAR(pairs=16, vocab=32), "vocab=32 has 15"),
    (lambda: Parity(length=3, shortest=9), "shortest=9 must be at most length=3"),
    (lambda: WordProblem(group="A5", moved=2), "moved=2 must be from 3 to 5"),
    (lambda: WordProblem(group="S3", moved=4), "moved=4 must be from 2 to 3"),
    (lambda: ModularCounting(modulus=10**6), "modulus"),
    (lambda: InductionHeads(length=4), "length"),
    (lambda: InContextRecall(noise=0.5), "noise_tokens=0 must both be 0 or neither"),
    (lambda: NoisyRecall(length=5, noise=0.5), "noise=0.5 of 5 tokens leaves no two pairs"),
    (lambda: FuzzyRecall(key_vocab=1, keys=4), "make 3 different keys, and must keys=4 to 4096"),
    (lambda: FuzzyRecall(length=12), "two pairs take up to 14 tokens, and an example has 12"),
    (lambda: Memorisation(facts=1), "facts"),
    (lambda: StringCopying(length=2**20), "length"),
    (lambda: SelectiveCopying(copied=20, shortest=9), "copied=20 tokens must stand among 9"),
    (lambda: Compression(asked=40), "asked=40 places must be at most 32"),
    (lambda: BoundedDyck(types=1), "types"),
    (lambda: Needle(length=30), "question take 62 bytes, and an example has 30; use fewer"),
    (lambda: Phonebook(entries=64), "bytes, and an example has 512"),
    (lambda: Needle(depth=1.5), "depth"),
    (lambda: Mixture(parts=()), "parts"),
    (
        lambda: Mixture(parts=(Part(data=Parity(), share=2**16), Part(data=Parity()))),
        "shares of a mixture add up to 65537",
    ),
]


@pytest.mark.parametrize(("make", "told"), REFUSED, ids=range(len(REFUSED)))
def test_dials_that_do_not_go_together_are_refused(make, told):
    with pytest.raises(ValidationError) as caught:
        make()
    (error,) = caught.value.errors()
    assert "\n" not in error["msg"]
    assert told in error["msg"] or told in str(error["loc"])


def run(data, vocab=64, seq_len=SEQ_LEN, **changes):
    return Run(
        model=zoo.dense(32, 1, vocab),
        data=data,
        optim=AdamW(lr=0.01, warmup_steps=1),
        budget=Budget(steps=8, batch=4, seq_len=seq_len, eval_tokens=640),
        **changes,
    )


def test_a_run_refuses_a_task_that_does_not_fit_it_by_name():
    with pytest.raises(ValidationError, match=r"must cover the data's 120 tokens \(word_problem\)"):
        run(WordProblem())
    with pytest.raises(ValidationError, match="seq_len=64 must be at least 99, which mqar of len"):
        run(MQAR(vocab=64, length=100))
    far = Eval(name="far", data=Parity(length=240))
    with pytest.raises(ValidationError, match="seq_len=64 must be at least 240, which parity"):
        run(Parity(), evals=(far,))
    found = run(Parity(), evals=(far.model_copy(update={"seq_len": 240}),))
    assert Run.model_validate_json(found.model_dump_json()) == found
    mixed = Mixture(parts=(Part(data=Markov(symbols=4)), Part(data=Parity(length=99))))
    with pytest.raises(ValidationError, match="seq_len=64 must be at least 99"):
        run(mixed)


@each_task
def test_a_task_survives_json_by_its_kind(task, solve):
    adapter = TypeAdapter(AnyData)
    assert adapter.validate_json(adapter.dump_json(task)) == task


@pytest.mark.parametrize("kind", sorted({task.kind for task, _ in TASKS}))
def test_random_dials_work_or_are_refused_in_one_line(kind):
    base = [task for task, _ in TASKS if task.kind == kind]
    adapter, outcomes = TypeAdapter(AnyData), []
    for seed in range(60):
        chance = random.Random(f"{kind} {seed}")
        dials = json.loads(chance.choice(base).model_dump_json())
        small = chance.random() < 0.7
        for name in chance.sample(sorted(dials), k=min(len(dials), chance.choice((1, 2, 3)))):
            if name != "kind":
                dials[name] = (
                    1 + chance.randrange(2 ** chance.randrange(1, 7))
                    if small
                    else chance.choice(fuzz.VALUES)
                )
        try:
            with fuzz.seconds(10):
                task = adapter.validate_python(dials)
                source = task.open()
                drawn(source, 0, 0, 4, SEQ_LEN)
                judged_on(source, 20 * SEQ_LEN, SEQ_LEN)
            outcomes.append("works")
            told = []
        except ValidationError as error:
            outcomes.append("refused")
            told = [one["msg"] for one in error.errors()]
        except UserError as error:
            outcomes.append("refused")
            told = [str(error)]
        except Exception as error:
            raise AssertionError(f"seed {seed}: {dials!r:.500}") from error
        assert not any("\n" in one for one in told), (seed, told)
    assert min(outcomes.count("works"), outcomes.count("refused")) > 2


def test_labels_are_the_targets_and_next_tokens_are_theirs_by_default(untrained):
    program, params, predict = untrained
    batch = Parity(length=SEQ_LEN).open().batch(0, 0, 300, SEQ_LEN)
    logits = predict(batch.tokens[:, :-1])[0]
    nats = -jax.nn.log_softmax(logits)[np.arange(300)[:, None], np.arange(SEQ_LEN), batch.labels]
    one = jax.tree.map(lambda leaf: leaf[0], params)
    loss = jax.jit(lambda batch: program.loss(one, batch)[1])
    shifted = batch._replace(labels=batch.tokens[:, 1:])
    assert loss(shifted) == loss(shifted._replace(labels=None)) != loss(batch)
    np.testing.assert_allclose(loss(batch), nats.mean(), rtol=1e-5)
    lane = jax.tree.map(lambda leaf: leaf[:1], params)
    judged, _ = jax.jit(program.evaluate)(lane, jax.tree.map(lambda x: jnp.array(x)[None], batch))
    np.testing.assert_allclose(judged.nats[0, 0], nats, rtol=1e-4)
    np.testing.assert_array_equal(judged.correct[0, 0], logits.argmax(axis=-1) == batch.labels)


def test_exact_is_the_share_of_sequences_without_a_wrong_answer():
    weights = np.array([[0, 1, 2], [1, 1, 0], [0, 0, 0], [0, 1, 0]], np.float32)
    correct = np.array([[0, 1, 1], [1, 0, 1], [0, 0, 0], [0, 1, 0]], bool)
    loss, nats = np.zeros(4, np.float32), np.zeros((4, 3), np.float32)
    found = measured(loss, nats, correct, weights, None)["exact"]
    assert (found.value, found.count) == (pytest.approx(2 / 3), 3)
    assert found.se == pytest.approx(math.sqrt(2 / 9 / 2))
    assert "exact" not in measured(loss, nats, correct, None, None)


TEXT = Corpus(name="kjv")


def mixture(*parts):
    return Mixture(parts=tuple(Part(data=data, share=share) for data, share in parts))


def test_a_mixture_has_its_parts_sequences_in_their_proportions_and_order(shared_cache):
    """Whatever the batch, each part's rows are those of its own stream, none twice or missing."""
    source = mixture((TEXT, 3), (Markov(symbols=4), 1)).open()
    rows = [
        np.concatenate([source.batch(i, 5, n, 16).tokens for i in range(48 // n)]) for n in (3, 8)
    ]
    text = [found[found.max(axis=1) >= 4] for found in rows]
    np.testing.assert_array_equal(*text)
    assert len(text[0]) == 36
    alone = TEXT.open()
    own = int(np.random.SeedSequence([5, 0]).generate_state(1, np.uint64)[0] >> 1)
    np.testing.assert_array_equal(text[0], alone.batch(0, own, 36, 16).tokens)
    for found in rows:
        other = found[found.max(axis=1) < 4]
        assert len(np.unique(other, axis=0)) == 12


def test_a_mixture_is_pure_and_has_a_digest_of_its_parts():
    parts = (Parity(), 2), (MQAR(), 1), (Parity(), 1)
    source = mixture(*parts).open()
    first, again = source.batch(3, 1, 8, 64), mixture(*parts).open().batch(3, 1, 8, 64)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    every = np.concatenate([source.batch(i, 1, 8, 64).tokens for i in range(4)])
    assert len(np.unique(every, axis=0)) == 32  # equal parts have streams of their own
    digests = {mixture(*islice(parts, n)).open().digest for n in (1, 2, 3)}
    assert len(digests | {source.digest}) == 3


def test_a_mixture_holds_out_in_the_same_proportions_until_a_part_runs_out():
    small = Parity(length=10)
    held = len(small.open().held_out(10**5, 10).tokens)
    found = mixture((small, 1), (Parity(length=40), 2)).open().held_out(10**5, 40)
    short = found.weights.sum(axis=1) == 10
    assert short.sum() == held
    assert abs(len(short) - 3 * held) <= 2
    few = mixture((small, 1), (Parity(length=40), 2)).open().held_out(12 * 40, 40)
    assert (few.weights.sum(axis=1) == 10).sum() == 4


def test_a_mixture_counts_all_targets_of_a_part_without_weights():
    source = mixture((Markov(symbols=4), 1), (Parity(length=9), 1)).open()
    batch = drawn(source, 0, 0, 6, 16)
    assert sorted(batch.weights.sum(axis=1)) == [9, 9, 9, 16, 16, 16]
    for tokens, labels in zip(batch.tokens, batch.labels, strict=True):
        if tokens.max() > 1:
            np.testing.assert_array_equal(labels, tokens[1:])
    plain = mixture((Markov(symbols=4), 1), (ZipfFacts(facts=9, symbols=4, alpha=1), 1)).open()
    assert plain.batch(0, 0, 4, 16).weights is None
    # all batches of a source have one form, those without an answer in them too
    rare = mixture((Markov(symbols=4), 9), (Parity(length=9), 1)).open()
    assert [rare.batch(i, 0, 2, 16).weights is None for i in range(5)] == [False] * 5


def test_a_mixture_knows_what_its_parts_know(shared_cache):
    languages = Markov(symbols=4), ZipfFacts(facts=9, symbols=4, alpha=1)
    one, other = (language.open() for language in languages)
    source = mixture((languages[0], 3), (languages[1], 1)).open()
    assert source.entropy == pytest.approx((3 * one.entropy + other.entropy) / 4)
    assert source.floor(8) == pytest.approx((3 * one.floor(8) + other.floor(8)) / 4)
    assert (source.train_tokens, source.unique_tokens(10**6), source.bytes_per_token) == (None,) * 3
    both = mixture((Parity(), 1), (Parity(length=9), 3)).open()
    assert (both.entropy, both.chance, both.optimum) == (0, 0.5, 1)
    assert mixture((Parity(), 1), (MQAR(), 3)).open().chance is None
    assert mixture((Parity(), 1), (languages[0], 3)).open().entropy is None
    text = mixture((TEXT, 1), (languages[0], 1)).open()
    assert text.train_tokens == 2 * TEXT.open().train_tokens
    assert text.unique_tokens(1000) == 1000
    assert text.bytes_per_token is None
    assert mixture((TEXT, 1), (TEXT, 1)).open().bytes_per_token == 1


def test_parts_of_a_mixture_have_one_tokenizer(shared_cache, prose):
    from isoflop.sim.data import File

    parts = (File(path=prose, bpe_vocab=300), 1), (TEXT, 1)
    told = refusal(mixture(*parts).open)
    assert "must have one tokenizer, and file, corpus have several" in told


def test_marks_are_of_what_stands_before_the_last_answer_alone():
    tokens = np.array([[1, 2, 3, 4], [1, 2, 9, 9], [1, 5, 3, 4]], np.int32)
    weights = np.array([[0, 1, 0]] * 3, np.float32)
    one, same, other = fingerprints(Batch(tokens, weights))
    assert one == same != other
    longer = Batch(np.pad(tokens, [(0, 0), (0, 9)]), np.pad(weights, [(0, 0), (0, 9)]))
    np.testing.assert_array_equal(fingerprints(longer), [one, same, other])


def own_task(tmp_path):
    """The file that sim/README.md shows."""
    text = (Path(__file__).parent.parent / "sim" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r'^```python\n(""".*?: reverse\.py\..*?)^```', text, re.M | re.S)
    path = tmp_path / "reverse.py"
    path.write_text(code, encoding="utf-8")
    return load(path).Reverse


def test_a_task_of_ones_own_is_one_class_in_a_file(tmp_path):
    task = own_task(tmp_path)(length=9, shortest=4)
    batch = drawn(task.open(), 0, 0, 500, 24)
    for row, place in np.argwhere(batch.weights > 0):
        seen = batch.tokens[row].tolist()
        middle = seen.index(26)
        assert batch.targets[row, place] == seen[2 * middle - place - 1]
    assert {*batch.weights.sum(axis=1)} == {4, 5, 6, 7, 8, 9}
    found = run(task, vocab=27)
    assert Run.model_validate_json(found.model_dump_json()) == found
    apart = whole(judged_on(task.open(), 9 * 200, 24))
    assert len({*apart}) == len(apart) >= 32
    assert not {*apart} & {*whole(task.open().batch(1, 0, 3000, 24))}
    with pytest.raises(ValidationError, match="seq_len=64 must be at least 80, which reverse of"):
        run(type(task)(length=40), vocab=27)
