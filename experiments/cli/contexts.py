"""`isoflop context`: what context buys trained models and what it costs, in one page."""

from __future__ import annotations

from pathlib import Path

from isoflop.experiments.cli.checkpoints import at_least_1, read_text
from isoflop.experiments.cli.text import print_json, table, tell


def context(
    models: tuple[str, ...],
    text: Path | None = None,
    tokens: int = 32_768,
    times: tuple[int, ...] = (1, 2, 4, 8),
    lengths: tuple[int, ...] = (128, 1024, 4096),
    batches: tuple[int, ...] = (1, 8, 32),
    repeats: int = 3,
    trained: int | None = None,
    runs: Path = Path("runs"),
    out: Path = Path("report/context/context.html"),
    json: bool = False,
) -> None:
    """What does context buy each of some models, and what does it cost? One page and one table.

    Loss by position, with paired differences; loss beyond the training length, as trained and with
    rotary scalings and windows; recall of repeated text at bytes of state, and the answers of a
    run's evaluation sets; seconds and bytes of training, prefill and decoding against the context,
    beside what the exact cost takes at least; where attention and a recurrence cross.

    Args:
        models: runs (a folder, or a key's beginning in --runs) and Hugging Face folders.
        text: a UTF-8 file that all of them read; without it each run reads the held-out split of
            its own data, and a Hugging Face folder has none.
        tokens: targets that each loss is the mean of, about.
        times: lengths to read, in training lengths.
        lengths: sequence lengths to measure seconds and bytes at, in tokens; 65536 fits 8 GiB.
        batches: numbers of sequences that are decoded together.
        repeats: turns that are timed, after one that is not.
        trained: the training length in tokens, where no file says it, or to read less than it.
        runs: the runs directory, for runs that are named by their keys.
        out: the page to write.
        json: print all numbers as JSON instead of a table.
    """
    least = {"tokens": tokens, "repeats": repeats, "trained": 1 if trained is None else trained}
    for name, values in (("times", times), ("lengths", lengths), ("batches", batches)):
        least |= {name: min(values, default=0)}
    at_least_1(**least)
    from isoflop.figures.report.context import HEADINGS, build
    from isoflop.figures.report.context import table as lines
    from isoflop.sim.compare.context_study import load, study

    words = None if text is None else read_text(text)
    found = study(
        load(models, runs), words, tokens, times, lengths, batches, repeats, trained, tell
    )
    tell("")
    page = build(found, out)
    if json:
        print_json(found.json() | {"page": str(page)})
        return
    print(
        table([{HEADINGS[key]: row[key] for key in HEADINGS} for row in lines(found)], ("model",))
    )
    print(page)
