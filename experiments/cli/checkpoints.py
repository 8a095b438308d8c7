"""Models on the command line, of runs and published: `isoflop import`, `sample` and `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from isoflop.experiments.cli.text import print_json, si, table, visible

WINDOW = 1024  # tokens, where a model says nothing


def import_(
    run: str,
    text: Path | None = None,
    sample: tuple[str, ...] = (),
    seq_len: int | None = None,
    context: int = 8192,
    tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    runs: Path = Path("runs"),
    json: bool = False,
) -> None:
    """Describe a trained model; measure its loss on a text; let it go on with prompts.

    Args:
        run: a run's folder, or its key's beginning in --runs; or the folder of a Hugging Face
            checkpoint: config.json, safetensors, tokenizer.json where tokens are not bytes.
        text: a UTF-8 file to measure the loss on, in windows of --seq-len tokens. What the
            tokenizer puts before a text is context, and counts neither as tokens nor as bytes.
        sample: prompts to go on with.
        seq_len: tokens in a window; also for the FLOPs per token. By default the length that the
            model was trained on: the run's, config.json's max_position_embeddings, or else 1024.
        context: tokens that the decoding state is counted for, and that a sample may reach.
        tokens: to write after each prompt.
        temperature: of the sampling, at least 0; 0 takes the likeliest token.
        seed: of the sampling.
        runs: the runs directory, for a run that is named by its key.
        json: print JSON instead of a table.
    """
    at_least_1(seq_len=WINDOW if seq_len is None else seq_len, context=context, tokens=tokens)
    from isoflop.models.generation import Sampling
    from isoflop.sim.evaluate.checkpoint import Checkpoint, check_seed
    from isoflop.sim.evaluate.text import check_utf8

    Sampling(temperature or None).check(1)
    check_seed(seed)
    for prompt in sample:
        check_utf8(prompt)
    words = None if text is None else read_text(text)
    checkpoint = Checkpoint.load(run, runs)
    window, why = seq_len or checkpoint.context or WINDOW, "--seq-len"
    if seq_len is None:
        where = "the run's seq_len" if checkpoint.run else "config.json's max_position_embeddings"
        why = where if checkpoint.context else f"the default, without {where}"
    found = describe(checkpoint.model, window, context)
    if words is not None:
        loss = checkpoint.loss(words, window)
        found |= {
            "window": loss.window,
            "window is": why if loss.window == window else f"the text, shorter than {why}",
            "tokens": loss.tokens,
            "nats per token": loss.nats_per_token,
            "bits per byte": loss.bits_per_byte,
        }
    written = {p: checkpoint.write(p, tokens, temperature, seed, context) for p in sample}
    if json:
        print_json(found | {"samples": written} if sample else found)
        return
    rows = [{"": name, " ": v if isinstance(v, str) else si(v)} for name, v in found.items()]
    print(table(rows, left=("", " ")))
    for prompt, after in written.items():
        print(f"\n{visible(prompt)}|{visible(after)}")


def sample(
    run: str,
    prompt: tuple[str, ...] = (),
    tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: tuple[str, ...] = (),
    seed: int = 0,
    runs: Path = Path("runs"),
    json: bool = False,
) -> None:
    """Let a trained model go on with prompts, all at once: `PROMPT|what it writes` each.

    Args:
        run: a run's folder, or its key's beginning in --runs; or the folder of a Hugging Face
            checkpoint.
        prompt: texts to go on with.
        tokens: to write after each prompt, at most.
        temperature: that divides the logits; 0 takes the likeliest token.
        top_k: choose among so many of the likeliest tokens.
        top_p: choose among the fewest likeliest tokens that have this probability together.
        stop: texts of one token each, at any of which writing ends.
        seed: of the sampling.
        runs: the runs directory, for a run that is named by its key.
        json: print JSON instead of text.
    """
    at_least_1(tokens=tokens)
    from isoflop.experiments.cli.flags import Usage
    from isoflop.models.generation import Sampling
    from isoflop.sim.evaluate.checkpoint import Checkpoint, check_seed
    from isoflop.sim.evaluate.text import check_utf8

    if not prompt:
        raise Usage("give at least one text to go on with, as in --prompt 'In the'")
    sampling = Sampling(temperature or None, top_k, top_p)
    sampling.check(1)
    check_seed(seed)
    for text in (*prompt, *stop):
        check_utf8(text)
    checkpoint = Checkpoint.load(run, runs)
    sampling = sampling._replace(stop=tuple(map(checkpoint.tokenizer.one, stop)))
    found = checkpoint.generate(prompt, tokens, sampling, seed)
    written = [(text, checkpoint.decode(ids)) for text, ids in zip(prompt, found, strict=True)]
    if json:
        print_json([{"prompt": text, "written": after} for text, after in written])
        return
    print("\n\n".join(f"{visible(text)}|{visible(after)}" for text, after in written))


def describe(model: Any, seq_len: int, context: int) -> dict[str, Any]:
    """What a model is and costs."""
    from isoflop.sim.cost.flops import param_counts

    counts, cost = param_counts(model), model.cost(seq_len)
    kinds = [" + ".join(part.kind for part in block.parts) for block in model.blocks]
    return {
        "layers": ", ".join(f"{kinds.count(kind)} × ({kind})" for kind in dict.fromkeys(kinds)),
        "width": model.d_model,
        "vocabulary": model.vocab_size,
        "parameters": counts["total"],
        "active parameters": counts["active"],
        "non-embedding parameters": counts["non_embedding"],
        f"FLOPs per token of {seq_len}": cost.flops // seq_len,
        f"FLOPs of a token decoded at {context}": model.step_cost(context).flops,
        f"state elements at {context}": model.state_size(context),
    }


def export(run: str, folder: Path, runs: Path = Path("runs"), layout: str | None = None) -> None:
    """Write a trained run's weights, and the tokenizer it trained, as a Hugging Face checkpoint.

    Args:
        run: the run's folder, its key, or the key's beginning if only one begins so.
        folder: where to write config.json and model.safetensors; it must hold no checkpoint yet.
        runs: the runs directory.
        layout: the model_type to write, as llama or mixtral; by default the first that fits.
    """
    from isoflop.models.checkpoints import huggingface as interop
    from isoflop.models.errors import UserError
    from isoflop.sim.evaluate.checkpoint import read_spec, run_folder
    from isoflop.sim.records.store import Store, write

    found = run_folder(run, runs)
    if found is None:
        raise UserError(f"{run} is no run: it has no spec.json; name a run's folder or key")
    interop.check_free(folder)
    spec, weights = read_spec(found), Store(found.parent).weights(found.name)
    data = spec.data  # before anything is written: its file may be gone
    tokenizer = data.open().tokenizer if getattr(data, "bpe_vocab", None) else None
    written = interop.save(folder, spec.model, weights, layout, context=spec.budget.seq_len)
    if tokenizer is not None:
        written.append(folder / "tokenizer.json")
        write(written[-1], tokenizer)
    print("\n".join(map(str, written)))


def read_text(path: Path) -> str:
    from isoflop.models.errors import UserError

    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); convert it") from None


def at_least_1(**values: int) -> None:
    from isoflop.experiments.cli.flags import Usage

    for name, value in values.items():
        if value < 1:
            raise Usage(f"--{name.replace('_', '-')} {value} must be at least 1")
