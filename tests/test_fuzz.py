"""Whatever is wrong with a spec or a command line is told in one line: never a traceback or a hang.

A failing case is repeated by its seed: `fuzz.mutated(spec, random.Random(seed))`.
"""

from __future__ import annotations

import functools
import os
import random
from pathlib import Path

import fakes
import fuzz
import pytest
from pydantic import ValidationError

from isoflop import experiments
from isoflop.experiments.cli.main import main
from isoflop.models.errors import UserError
from isoflop.models.families import zoo
from isoflop.models.families.matching import uniform, with_experts
from isoflop.models.lm import ModelConfig
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.moe import Moe
from isoflop.sim.data import File, HierarchyGrammar, Markov, ZipfFacts
from isoflop.sim.grid.estimate import plan
from isoflop.sim.records.store import Store, brief
from isoflop.sim.spec import Cell, Run
from isoflop.sim.train import loop

SPECS = 1200, 300  # in all, and of them by default; `make test-slow` takes the others
LANGUAGES = (
    ZipfFacts(facts=100, symbols=16, alpha=0.5),
    HierarchyGrammar(symbols=6, rules=3, branching=2, depth=4),
    Markov(symbols=5, order=2),
)


def seeds_of(total: int, default: int):
    others = pytest.param(range(default, total), marks=pytest.mark.slow)
    return pytest.mark.parametrize("seeds", [range(default), others], ids=["first", "others"])


def capped() -> ModelConfig:
    def experts(size):
        return Moe(n_experts=4, top_k=2, d_expert=size, capacity_factor=1.5, n_shared=1)

    return uniform(32, 1, 256, with_experts(32, Attention(n_heads=2), experts))


@pytest.fixture
def specs(tmp_path, own_cache) -> list[dict]:
    """A small run of every family, as plain JSON values, on each kind of data in turn."""
    file = tmp_path / "text.txt"
    file.write_text("A line of text.\n" * 4000)
    kinds = [*LANGUAGES, File(path=str(file))]
    models = [make(32, 1) for make in zoo.FAMILIES.values()] + [capped()]
    return [
        fakes.run(model=model, data=kinds[i % len(kinds)]).model_dump(mode="json")
        for i, model in enumerate(models)
    ]


def outcome(spec: dict, store: Store) -> str:
    """What became of a spec; raises what no user should see."""
    try:
        run = Run.model_validate(spec)
    except ValidationError as error:
        return one_line("refused", brief(error))
    assert len(run.key) == 16
    assert Run.model_validate_json(run.model_dump_json()) == run
    if run.data.kind == "hugging_face":
        return "a run"
    try:
        plan([Cell(run=run)], store)
    except UserError as error:
        return one_line("its data cannot serve", str(error))
    return "planned"


def one_line(found: str, told: str) -> str:
    assert told
    assert "\n" not in told
    return found


@seeds_of(*SPECS)
def test_a_spec_with_something_wrong_is_a_run_or_refused_in_one_line(seeds, specs, tmp_path):
    """Nothing is compiled, and nothing takes seconds."""
    found = []
    for seed in seeds:
        chance = random.Random(seed)
        spec = fuzz.mutated(chance.choice(specs), chance)
        try:
            with fuzz.seconds(10):
                found.append(outcome(spec, Store(tmp_path)))
        except Exception as error:
            raise AssertionError(f"seed {seed}: {spec!r:.2000}") from error
    assert found.count("refused") > len(seeds) / 3  # the generator is neither harmless
    assert found.count("planned") > len(seeds) / 20  # nor all nonsense


MIXER, CHANNEL = ("model", "blocks", 0, "mixer"), ("model", "blocks", 0, "channel")
ONE = {"kind": "gelu", "d_ff": 1}
GRAMMAR = {"kind": "hierarchy_grammar", "symbols": 2, "rules": 1, "branching": 2, "depth": 2}
ABSURD = [
    ((*MIXER, "kind"), [], "kind=[] is not a MixerConfig; use one of attention, "),
    (("data", "kind"), {"a": 1}, "kind={'a': 1} is not a DataConfig; use one of "),
    ((*MIXER, "window"), 10**30, f"window={10**30}: Input should be less than or equal to"),
    (("model", "d_model"), 10**400, "d_model=an integer of 1329 bits: Input should be less"),
    (("model", "d_model"), 10**5000, "d_model=an integer of 16610 bits: Input should be less"),
    (("optim", "lr"), 10**400, "lr=an integer of 1329 bits: Input should be a valid number"),
    (("budget", "seq_len"), 10**9, "seq_len=1000000000: Input should be less than or equal"),
    (("budget", "batch"), 2**25, "batch · seq_len = 33554432 · 16 tokens of one step must be"),
    ((*CHANNEL, "capacity_factor"), 1e9, "capacity_factor=1e+09 must be at most n_experts=4"),
    ((*CHANNEL, "n_shared"), 2**31 - 1, "must be at most 2147483647, as every size"),
    (("seed",), 2**64, "seed=18446744073709551616: Input should be less than or equal to"),
    (("model", "blocks"), [{"channel": ONE}] * 5000, "and at most 4096; got 5000"),
    (("model", "vocab_size"), 2**31 - 1, None),
    (("data",), GRAMMAR | {"symbols": 10**9, "branching": 10**9}, "branching=1000000000: "),
    (("data",), GRAMMAR | {"symbols": 4000, "rules": 4000}, "symbols in the rules must be at most"),
    (("data", "facts"), 10**12, "facts=1000000000000: Input should be less than or equal to"),
    (("data",), {"kind": "markov", "symbols": 2, "order": 10**9}, "order=1000000000: Input"),
]


@pytest.mark.parametrize(("path", "value", "told"), ABSURD, ids=range(len(ABSURD)))
def test_absurd_values_are_refused_at_validation_in_one_line(path, value, told):
    """In time, and from JSON too, as far as JSON can say them. A large one that can be is not."""
    spec = fakes.run(model=capped(), data=LANGUAGES[0]).model_dump(mode="json")
    *inside, last = path
    place = spec
    for key in inside:
        place = place[key]
    place[last] = value
    with fuzz.seconds(5):
        if told is None:
            assert Run.model_validate(spec).model.vocab_size == value
            return
        with pytest.raises(ValidationError) as caught:
            Run.model_validate(spec)
    assert told in brief(caught.value)
    assert "\n" not in brief(caught.value)
    assert len(brief(caught.value)) < 600


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (
            ["report", "known_entropy", "--seeds", str(2**31)],
            "seeds=2147483648 must be at most 1000",
        ),
        (["run", "known_entropy", "--dry-run", "--width", "0"], "width=0 must be at least 1"),
        (
            ["run", "known_entropy", "--dry-run", "--facts", "1" + "0" * 400],
            "facts=an integer of 1329 bits",
        ),
        (["compile", "dense", "--depth", "1000000000"], "depth=1000000000 (of width=768) must be"),
    ],
)
def test_what_the_fuzz_found_is_refused_in_time(args, told, capsys):
    with fuzz.seconds(20):
        assert main(args) == 2
    assert told in capsys.readouterr().err


COMMANDS = 300, 90


@seeds_of(*COMMANDS)
def test_a_command_line_with_something_wrong_is_told_in_one_line(
    seeds, tmp_path, own_cache, monkeypatch, capsys
):
    """By the entry function itself, in this process; nothing is trained or measured."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "train", None)
    monkeypatch.setattr(experiments, "discover", functools.cache(experiments.discover))
    for name in ("XLA_FLAGS", "JAX_PLATFORMS"):  # which commands set for the process
        monkeypatch.setenv(name, os.environ.get(name, ""))
    Path("small.csv").write_text("N,D,loss\n1,2,3\n")
    Path("records.jsonl").write_text("{}\n")
    codes = []
    for seed in seeds:
        args = fuzz.command(random.Random(seed))
        try:
            with fuzz.seconds(20):
                codes.append(main(args))
        except SystemExit as end:  # of --help
            codes.append(end.code)
        except Exception as error:
            raise AssertionError(f"seed {seed}: isoflop {args!r:.500}") from error
        told = capsys.readouterr().err
        if codes[-1] == 2:
            assert (told.count("\n"), told[:7]) == (1, "error: "), (seed, args, told[:500])
        assert len(told) < 2100
    assert set(codes) == {0, 2}
    assert codes.count(0) > len(seeds) / 30
