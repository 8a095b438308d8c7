"""Published checkpoints on the command line: `isoflop import` and `isoflop export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from isoflop.experiments.cli.text import print_json, si, table, visible

WINDOW = 1024  # tokens, where a model says nothing


def import_(
    folder: Path,
    text: Path | None = None,
    sample: tuple[str, ...] = (),
    seq_len: int | None = None,
    context: int = 8192,
    tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Describe a Hugging Face checkpoint; measure its loss on a text; let it go on with prompts.

    Args:
        folder: with config.json, safetensors, and tokenizer.json where tokens are not bytes.
        text: a UTF-8 file to measure the loss on, in windows of --seq-len tokens. What the
            tokenizer puts before a text is context, and counts neither as tokens nor as bytes.
        sample: prompts to go on with.
        seq_len: tokens in a window; also for the FLOPs per token. By default the length that the
            model was trained on: config.json's max_position_embeddings, or 1024 without one.
        context: tokens that the decoding state is counted for, and that a sample may reach.
        tokens: to write after each prompt.
        temperature: of the sampling, at least 0; 0 takes the likeliest token.
        seed: of the sampling.
        json: print JSON instead of a table.
    """
    _at_least_1(seq_len=WINDOW if seq_len is None else seq_len, context=context, tokens=tokens)
    from isoflop.sim.evaluate.checkpoint import Checkpoint, check_sampling, check_utf8

    check_sampling(temperature, seed)
    for prompt in sample:
        check_utf8(prompt)
    words = None if text is None else _read(text)
    checkpoint = Checkpoint.load(folder)
    window, why = seq_len or checkpoint.context or WINDOW, "--seq-len"
    if seq_len is None:
        where = "config.json's max_position_embeddings"
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
        run: the run's key, or its beginning if only one begins so.
        folder: where to write config.json and model.safetensors; it must hold no checkpoint yet.
        runs: the runs directory.
        layout: the model_type to write, as llama or mixtral; by default the first that fits.
    """
    from isoflop.models.checkpoints import huggingface as interop
    from isoflop.models.errors import UserError
    from isoflop.sim.records.store import Store, write

    store = Store(runs)
    found = sorted(path.parent.name for path in runs.glob("*/result.json"))
    keys = [key for key in found if key.startswith(run)]
    if len(keys) != 1:
        raise UserError(
            f"{len(keys)} finished runs in {runs} have a key that begins with {run!r}; "
            "give the whole key of one, as `isoflop records` shows it"
        )
    interop.check_free(folder)
    record = store.load(keys[0])
    assert record is not None
    data = record.run.data  # before anything is written: its file may be gone
    tokenizer = data.open().tokenizer if getattr(data, "bpe_vocab", None) else None
    written = interop.save(
        folder,
        record.run.model,
        store.weights(keys[0]),
        layout,
        context=record.run.budget.seq_len,
    )
    if tokenizer is not None:
        written.append(folder / "tokenizer.json")
        write(written[-1], tokenizer)
    print("\n".join(map(str, written)))


def _read(path: Path) -> str:
    from isoflop.models.errors import UserError

    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); convert it") from None


def _at_least_1(**values: int) -> None:
    from isoflop.experiments.cli.flags import Usage

    for name, value in values.items():
        if value < 1:
            raise Usage(f"--{name.replace('_', '-')} {value} must be at least 1")
