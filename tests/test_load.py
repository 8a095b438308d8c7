"""A trained run is loaded as a published checkpoint is, whatever its mixers."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import record, run
from flax import nnx

import isoflop
from isoflop.experiments import context
from isoflop.experiments.cli.main import main
from isoflop.models.base import Init
from isoflop.models.checkpoints import huggingface as interop
from isoflop.models.errors import UserError
from isoflop.models.generation import Sampling
from isoflop.models.lm import Block, ModelConfig
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.mlp import SwiGLU
from isoflop.models.mixers.rnn import MinGru
from isoflop.sim.data import Corpus
from isoflop.sim.records.store import Store
from isoflop.sim.train.loop import names

BLOCKS = (Block(mixer=MinGru()), Block(mixer=Attention(n_heads=2), channel=SwiGLU(d_ff=8)))
MODEL = ModelConfig(d_model=8, vocab_size=256, blocks=BLOCKS)
PARAMS = nnx.state(MODEL.build(init=Init(0)))


def weights(params):
    return {name: np.array(array) for name, array in names(params).items()}


RUN = run(model=MODEL, data=Corpus(name="kjv"))
FACTS = run(model=MODEL.model_copy(update={"vocab_size": 512}))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, shared_cache):
    """A runs directory with RUN, of a model that no published format has a place for, and FACTS."""
    folder = tmp_path_factory.mktemp("runs")
    Store(folder).save(record(RUN), weights(PARAMS))
    Store(folder).save(record(FACTS), weights(nnx.state(FACTS.model.build(init=Init(0)))))
    return folder


@jax.jit
def forward(params, tokens):
    graph = nnx.split(nnx.eval_shape(lambda: MODEL.build(init=Init(None))))[0]
    return nnx.merge(graph, params)(tokens[None])[0][0]


def continued(prompt: bytes, many: int) -> bytes:
    """The likeliest bytes after a prompt, from the logits of all of them at once."""
    text = np.zeros(100, np.int32)  # zeros that follow change nothing, and all prompts have a shape
    text[: len(prompt)] = list(prompt)
    end = len(prompt) + many
    for i in range(len(prompt), end):
        text[i] = np.argmax(forward(PARAMS, jnp.asarray(text))[i - 1])
    return bytes(text[len(prompt) : end].tolist())


def test_a_run_is_loaded_by_its_folder_or_the_beginning_of_its_key(runs):
    with pytest.raises(UserError, match="no published layout has a place"):
        interop.fitting(MODEL)
    for found in (
        isoflop.load(RUN.key[:8], runs),
        isoflop.load(runs / RUN.key),
        isoflop.load(str(runs / RUN.key)),
    ):
        assert (found.run, found.model, found.context) == (RUN, MODEL, 16)
        for (_, got), (_, want) in zip(
            nnx.to_flat_state(found.params), nnx.to_flat_state(PARAMS), strict=True
        ):
            assert (np.asarray(got[...]) == np.asarray(want[...])).all()


def test_a_run_gives_logits_a_loss_and_what_it_writes_after_unequal_prompts(runs):
    found = isoflop.load(runs / RUN.key)
    prompts = ["In the beginning", "And", "it was so, and the morning and the evening " * 2]
    logits = found.logits(prompts[0])
    np.testing.assert_array_equal(found.logits(found.encode(prompts[0])), logits)
    log = np.asarray(jax.nn.log_softmax(logits[:-1]))
    nats = -log[np.arange(15), list(b"n the beginning")].mean()
    np.testing.assert_allclose(found.loss(prompts[0], 15).nats_per_token, nats, rtol=1e-5)
    want = [continued(prompt.encode(), 7) for prompt in prompts]
    written = found.generate(prompts, 7)
    assert [bytes(row.tolist()) for row in written] == want
    stop = Sampling(stop=(want[0][3],))
    (until,) = found.generate(prompts[:1], 7, stop)
    assert bytes(until.tolist()) == want[0][: want[0].index(want[0][3])]


def test_tokens_that_are_no_text_are_given_and_taken_as_ids(runs):
    found = isoflop.load(FACTS.key, runs)
    with pytest.raises(UserError, match="the zipf_facts data of this run hold tokens without a"):
        found.encode("a")
    assert found.logits([3, 500]).shape == (2, 512)
    assert len(found.generate([[3, 500], [1]], 2)[1]) == 2
    with pytest.raises(UserError, match="token ids must be from 0 to 511, got 3 to 512"):
        found.logits([3, 512])


def test_sample_goes_on_with_prompts_of_a_run_and_of_a_checkpoint_alike(runs, tmp_path, capsys):
    options = ["--runs", str(runs), "--tokens", "4"]
    assert main(["sample", RUN.key, *options]) == 2
    assert "at least one text to go on with" in capsys.readouterr().err
    options += ["--prompt", "In", "the beginning"]
    assert main(["sample", RUN.key, *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["prompt"] for one in found] == ["In", "the beginning"]
    assert found[1]["written"] == continued(b"the beginning", 4).decode(errors="replace")
    assert main(["sample", str(runs / RUN.key), *options, "--stop", "ab"]) == 2
    assert "'ab' must be one token to stop at, and is 2" in capsys.readouterr().err
    assert main(["sample", RUN.key, *options, "--top-k", "3"]) == 2
    assert "top_k needs a temperature above 0" in capsys.readouterr().err
    assert main(["sample", "zzz", *options]) == 2
    assert "0 runs in" in capsys.readouterr().err
    block = Block(mixer=Attention(n_heads=2), channel=SwiGLU(d_ff=8))
    plain = MODEL.model_copy(update={"blocks": (block,)})
    interop.save(tmp_path, plain, weights(nnx.state(plain.build(init=Init(0)))), context=16)
    hot = ["--temperature", "1.5", "--top-k", "5", "--top-p", "0.9", "--seed", "3"]
    assert main(["sample", str(tmp_path), *options, *hot]) == 0
    first = capsys.readouterr().out
    assert first.startswith("In|")
    assert main(["sample", str(tmp_path), *options, *hot]) == 0
    assert capsys.readouterr().out == first


def test_import_and_the_context_experiment_take_a_run(runs, capsys):
    assert main(["import", RUN.key[:8], "--runs", str(runs), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == MODEL.cost(1).params
    (row,) = context.measure(
        families=(), lengths=(16,), quantities=("state_bytes",), checkpoints=(runs / RUN.key,)
    )
    assert (row["family"], row["value"]) == (RUN.key, 4 * MODEL.state_size(16))


def test_weights_of_another_model_are_refused_in_one_line(runs, tmp_path):
    Store(tmp_path).save(record(RUN), {**weights(PARAMS), "head.kernel": np.zeros((8, 9))})
    with pytest.raises(UserError, match=r"head\.kernel is missing, unexpected or of another shape"):
        isoflop.load(RUN.key, tmp_path)
    (tmp_path / RUN.key / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has no weights"):
        isoflop.load(RUN.key, tmp_path)
    (tmp_path / RUN.key / "spec.json").write_text("{}")
    with pytest.raises(UserError, match=r"spec\.json is no run that this code can read"):
        isoflop.load(RUN.key, tmp_path)


def test_importing_the_package_brings_no_jax():
    code = "import isoflop, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
