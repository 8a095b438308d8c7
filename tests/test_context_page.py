"""What context buys and costs some models: the study, its page and the command."""

import json
import re
import shutil
import subprocess

import jax
import numpy as np
import pytest
import vl_convert
from fakes import record, run
from flax import nnx

from isoflop.experiments.cli.main import main
from isoflop.figures.report import context as page
from isoflop.models.base import Init
from isoflop.models.checkpoints import huggingface as interop
from isoflop.models.lm import Block, ModelConfig
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.mlp import SwiGLU
from isoflop.models.mixers.rnn import MinGru
from isoflop.sim.compare import context_study
from isoflop.sim.data import Corpus
from isoflop.sim.data.tasks.recall import MQAR
from isoflop.sim.evaluate import context, machine
from isoflop.sim.evaluate import probe as timing
from isoflop.sim.records.metrics import Z90, Metric
from isoflop.sim.records.store import Store
from isoflop.sim.spec import Budget, Eval
from isoflop.sim.train.loop import names

BUDGET = Budget(steps=20, batch=4, seq_len=16, eval_tokens=1024)
RNN = ModelConfig(d_model=8, vocab_size=256, blocks=(Block(mixer=MinGru()),))
DENSE = ModelConfig(
    d_model=8, vocab_size=256, blocks=(Block(mixer=Attention(n_heads=2), channel=SwiGLU(d_ff=8)),)
)
RUNS = {
    "rnn": run(model=RNN, data=Corpus(name="kjv"), budget=BUDGET),
    "dense": run(model=DENSE, data=Corpus(name="kjv"), budget=BUDGET),
}
BARE = RUNS["rnn"].model_copy(update={"seed": 7})  # without weights
ODD = DENSE.model_copy(update={"vocab_size": 300})  # without a tokenizer


def weights(model: ModelConfig) -> dict[str, np.ndarray]:
    """Drawn, untrained."""
    drawn = names(nnx.state(model.build(init=Init(0))))
    return {name: np.array(array) for name, array in drawn.items()}


def fake(model: ModelConfig, seq_len: int, batch: int = 1) -> timing.Probe:
    """A program that would take seconds to compile: attention is T², a recurrence T."""
    power = 2 if isinstance(model.blocks[0].mixer, Attention) else 1
    item = timing.Probe(None, None, (), 1.0, 0.0, 1000 * seq_len)
    item.seconds = lambda: 1e-6 * batch**0.5 * (1000 + (seq_len / 100) ** power)
    return item


@pytest.fixture(scope="module")
def folders(tmp_path_factory, shared_cache):
    """Two runs, untrained, one of them as a Hugging Face checkpoint, and what cannot be read."""
    root = tmp_path_factory.mktemp("context")
    store = Store(root / "runs")
    for one in RUNS.values():
        store.save(record(one), weights(one.model))
    store.save(record(BARE), {})
    for name, model in (("published", DENSE), ("odd", ODD)):
        interop.save(root / name, model, weights(model), None, context=16)
    return root


@pytest.fixture(scope="module")
def found(folders):
    """By the command: the page, and what it says as JSON."""
    text = folders / "text"
    text.write_text("In the beginning God created the heaven and the earth. " * 40)
    out = folders / "page.html"
    with pytest.MonkeyPatch.context() as patch:
        for name in context.PROGRAMS:
            patch.setitem(context.PROGRAMS, name, fake)
        patch.setattr(context, "decode", fake)
        patch.setattr(context_study, "REPEATS", (2,))
        patch.setattr(machine, "MATMULS", (8,))
        patch.setattr(machine, "CACHED", 64)
        patch.setattr(machine, "COPIED", (64,))
        models = context_study.load(
            [*(str(folders / "runs" / r.key) for r in RUNS.values()), str(folders / "published")],
            folders / "runs",
        )
        study = context_study.study(
            models, text.read_text(), 400, (1, 2), (1024, 2048, 4096), (1, 8), 3
        )
    page.build(study, out)
    return study, out.read_text(encoding="utf-8"), out


def test_every_model_has_every_part(found):
    study, _, _ = found
    assert [name.split()[0] for name in study.models] == ["mingru", "attention", "published"]
    for rows in (study.positions, study.extrapolation, study.copying, study.throughput):
        assert {row["model"] for row in rows} == set(study.models)
    assert {row["place"] for row in study.positions} == {0, 1, 2, 4, 8}
    assert {(row["family"], row["quantity"]) for row in study.costs} == {
        (name, quantity) for name in study.models for quantity in context.QUANTITIES
    }
    json.dumps(study.json(), allow_nan=False)


def test_a_published_checkpoint_reads_as_the_run_that_it_was(found):
    study, _, _ = found
    _, dense, published = study.models
    losses = [
        [row["loss"] for row in study.positions if row["model"] == name]
        for name in (dense, published)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    zero = [row for row in study.differences if row["model"] == dense]
    assert {row["over"] for row in study.differences} == {next(iter(study.models))}
    assert len(zero) == 5


def test_slopes_ratios_and_crossings_are_those_of_the_measurements(found):
    study, text, _ = found
    rnn, dense, _ = study.models
    assert study.slopes["state_bytes"][rnn].value == pytest.approx(0)
    assert study.slopes["state_bytes"][dense].value == pytest.approx(1, abs=0.01)
    crossed = {(one.recurrence, one.quantity): one for one in study.crossings}
    assert crossed[rnn, "state_bytes"].words.startswith("below 1,024 tokens")
    assert crossed[rnn, "prefill_seconds"].words.startswith("below 1,024 tokens")
    assert "over predicted" in text
    assert dict(page.ratios(study.costs))[rnn][3] == "1 to 1"


def test_the_page_says_what_was_found_and_needs_nothing_else(found):
    study, text, _ = found
    for name in study.models:
        assert f"</svg>{name}</td>" in text.replace("\n", "")
    assert all(re.search(rf'<h2 id="{part}">', text) for part in
               ("by-position", "beyond", "recall", "costs", "decoding"))  # fmt: skip
    for sentence in page.finding(study):
        assert sentence.replace("'", "&#39;") in text
    links = re.findall(r'(?:src|href)="([^"]+)"', text[: text.index("<script>")])
    assert links
    assert all(link.startswith("#") for link in links)


def test_every_chart_of_the_page_is_valid(found):
    _, text, _ = found
    charts = json.loads(re.search(r"^const specs = (.*);$", text, re.MULTILINE)[1])
    assert {"position", "beyond-0", "beyond-2", "copying", "throughput", "prefill_seconds"} <= {
        *charts
    }
    for spec in charts.values():
        vl_convert.vegalite_to_vega(spec)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium here")
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_opens_in_a_browser_without_a_word_on_its_console(found, width):
    done = subprocess.run(
        [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
            *(f"--window-size={width},900", "--virtual-time-budget=20000", "--dump-dom"),
            found[2].as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    drawn = done.stdout
    charts = re.findall(r'<div class="chart[^"]*" id="[^"]+"', drawn)
    assert len(charts) >= 9
    assert drawn.count('class="marks"') == len(charts)


def test_answers_of_a_run_are_told_by_their_settings(folders):
    easy, hard = MQAR(pairs=2, length=16), MQAR(pairs=4, length=32)
    evals = (Eval(name="hard", data=hard, seq_len=32, tokens=64),)
    one = run(model=DENSE, data=easy, budget=BUDGET, evals=evals)
    metrics = {
        f"{name}{kind}": Metric(value=0.5, se=0.1, count=9)
        for name in ("", "hard.")
        for kind in ("accuracy", "loss", "exact")
    }
    store = Store(folders / "tasks")
    store.save(record(one, metrics=metrics), weights(DENSE))
    (checkpoint,) = context_study.load([str(folders / "tasks" / one.key)], folders).values()
    first, second = context_study._answers("x", checkpoint)
    assert (first["set"], second["set"], second["seq_len"]) == ("its own", "hard", 32)
    assert second["settings"] == {"pairs": 4, "length": 32}
    assert second["accuracy"] == 0.5
    assert second["accuracy_high"] == pytest.approx(0.5 + Z90 * 0.1)
    assert 0 < second["chance"] < second["optimum"] <= 1


MISTAKES = {
    "has no held-out data of its own; give a text with --text": ["PUBLISHED"],
    "named twice": ["PUBLISHED", "PUBLISHED", "--text", "TEXT"],
    "--times 0 must be at least 1": ["RUN", "--times", "0"],
    "needs 2; give a longer text": ["PUBLISHED", "--text", "TEXT", "--times", "200"],
    "but the held-out split of kjv has": ["RUN", "--times", "1000000"],
    "a state for seq_len=8 takes 8; ask for at least 16": ["PUBLISHED", "--lengths", "8"],
    "has no weights at": ["BARE"],
    "is not the 256 of bytes": ["ODD", "--text", "TEXT"],
    "0 runs in": ["nothing"],
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_compiled(words, folders, capsys, monkeypatch):
    monkeypatch.setattr(jax, "jit", None)
    places = {"PUBLISHED": folders / "published", "TEXT": folders / "text"}
    places |= {"ODD": folders / "odd", "BARE": folders / "runs" / BARE.key}
    places["RUN"] = folders / "runs" / RUNS["rnn"].key
    (folders / "text").write_text("some text, " * 200)
    args = [str(places.get(word, word)) for word in MISTAKES[words]]
    assert main(["context", *args, "--runs", str(folders)]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1


def test_models_and_ways_to_read_them_look_different(found):
    study, text, _ = found
    names = [*study.models, "as trained", "yarn", "window"]
    drawn = [
        re.search(rf'id="mark-{i}"[^>]*><path d="([^"]+)"', text)[1] for i in range(len(names))
    ]
    colours = re.findall(r"--family-\d+: (#\w+);", text)[: len(names)]
    assert len(set(zip(drawn, colours, strict=True))) == len(names)
    assert len(set(colours[: len(study.models)])) == len(study.models)


def test_losses_of_other_sequences_are_told_apart():
    row = {"place": 64, "loss": 2.0, "loss_low": 1.9, "loss_high": 2.1}
    rows = [
        row | {"model": name, "loss": loss} for name, loss in (("a", 2.0), ("b", 3.0), ("c", 1.0))
    ]
    pairs = [{"model": "b", "over": "a"}]
    found = context_study.ContextStudy({}, rows, pairs, [], [], [], [], [], [])
    said = page.finding(found)
    assert said[0].startswith("Late in the context a has the lowest loss, 2")
    assert "b the highest" in said[0]
    assert said[1].startswith("Late in its context (from place 64) c has a loss of 1")
    assert len(said) == 2
