"""Treatments on the command line: `isoflop apply` and `effective`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from isoflop.experiments.cli.text import print_json, table

Formats = Literal["fp32", "bf16", "fp8", "int8", "int4", "int3", "int2"]


def apply(
    run: tuple[str, ...],
    weights: Formats | None = None,
    method: Literal["nearest", "gptq"] = "nearest",
    activations: Formats | None = None,
    state: Formats | None = None,
    group: int = 32,
    prune: float | None = None,
    importance: Literal["magnitude", "wanda"] = "magnitude",
    pattern: Literal["free", "2:4"] = "free",
    remove: Literal["layers", "channels", "experts", "heads"] | None = None,
    share: float = 0.25,
    neighbours: int | None = None,
    passages: int | None = None,
    after: int = 0,
    cascade: str | None = None,
    ask: float = 0.05,
    unit: Literal["tokens", "sequences"] = "tokens",
    rule: Literal["entropy", "learnt", "random"] = "entropy",
    draft: str | None = None,
    gamma: int = 4,
    retrain: Literal["full", "lora"] | None = None,
    distil: str | None = None,
    steps: int = 500,
    rate: float | None = None,
    corpus: Literal["kjv", "sympy"] | None = None,
    aware: Formats = "fp32",
    rank: int = 8,
    width: int | None = None,
    depth: int | None = None,
    teacher: Literal["run", "oracle"] = "run",
    taught: float = 1.0,
    runs: Path = Path("runs"),
    json: bool = False,
) -> None:
    """Treat trained runs, and measure their loss on their own held-out tokens.

    Several treatments are applied in this order: distil, remove, prune, retrain, state, weights,
    activations, neighbours, passages, cascade, draft. What was applied once is kept in the run's
    folder and not computed again.

    Args:
        run: runs, each a folder or the beginning of a key in --runs.
        weights: format of matrices, embedding and head.
        method: how weights are rounded: each to its nearest value, or with error feedback (GPTQ).
        activations: format of what weights are multiplied with.
        state: format of KV caches and recurrent states between decoded tokens.
        group: numbers that share a scale.
        prune: share of the weights that become zero.
        importance: which weights stay: the largest, or by |w|·‖x‖ on training text (Wanda).
        pattern: 2:4 keeps two of every four neighbours.
        remove: parts to take out whole, in proportion --share.
        share: of the layers, or of each layer's channels, experts or heads.
        neighbours: tokens in a store of training text, from whose nearest neighbours next tokens
            are read (kNN-LM).
        passages: passages in a store of training text, of which the most similar one is put into
            the context.
        after: training batch from which on the text of either store is read.
        cascade: a larger run in the same runs directory, which is asked for some of the tokens.
        ask: share of tokens, or of sequences, at which it is asked.
        unit: whether single tokens are asked for, or whole sequences after a prompt.
        rule: where: the run is least sure, most is predicted to be gained (by a regression on a
            second held-out split), or anywhere.
        draft: a smaller run in the same runs directory, which drafts tokens (speculative decoding).
        gamma: tokens that are drafted at once.
        retrain: train on, all weights or a change of low rank of each matrix (LoRA).
        distil: family of a student that is trained on the run's predictions.
        steps: of retraining and of distillation.
        rate: of them, times the run's own; by default .3 to retrain, 1 to distil.
        corpus: what to retrain on; by default the run's own data.
        aware: format that weights are rounded to in every forward pass of retraining.
        rank: of the changes of --retrain lora.
        width: of the student; by default the run's.
        depth: of the student; by default the run's.
        teacher: whose predictions: the run's, or a Markov language's own probabilities.
        taught: share of the teacher in the student's loss, the rest being the data's.
        runs: the runs directory.
        json: print JSON instead of a table.
    """
    from isoflop.experiments.cli.flags import Usage
    from isoflop.experiments.families import model
    from isoflop.sim import treatments as t
    from isoflop.sim.data import Corpus
    from isoflop.sim.evaluate.checkpoint import config

    if not run:
        raise Usage("give at least one run, as in RUN --weights int4; see --help")
    if retrain is None and (aware != "fp32" or corpus is not None):
        raise Usage("--aware and --corpus are of retraining; add --retrain full")
    chosen: list[t.Treatment] = []
    if distil is not None:
        whole = config(run[0], runs)[1]
        chosen.append(t.Distil(
            student=model(distil, whole.d_model if width is None else width,
                          len(whole.blocks) if depth is None else depth, whole.vocab_size),
            steps=steps, share=taught, teacher=teacher,
            rate=1.0 if rate is None else rate,
        ))  # fmt: skip
    if remove is not None:
        chosen.append(t.Remove(what=remove, share=share))
    if prune is not None:
        chosen.append(t.Prune(sparsity=prune, method=importance, pattern=pattern))
    if retrain is not None:
        chosen.append(t.Retrain(
            steps=steps, data=Corpus(name=corpus) if corpus else None,
            rate=0.3 if rate is None else rate,
            weights=aware, group=group, lora_rank=rank if retrain == "lora" else None,
        ))  # fmt: skip
    if state is not None:
        chosen.append(t.States(format=state, group=group))
    if weights is not None:
        chosen.append(t.Weights(format=weights, group=group, method=method))
    if activations is not None:
        chosen.append(t.Activations(format=activations, group=group))
    if neighbours is not None:
        chosen.append(t.Neighbours(store=neighbours, first=after))
    if passages is not None:
        chosen.append(t.Passages(store=passages, first=after))
    if cascade is not None:
        chosen.append(t.Cascade(large=_key(cascade, runs), share=ask, unit=unit, rule=rule))
    if draft is not None:
        chosen.append(t.Speculate(draft=_key(draft, runs), gamma=gamma))
    if not chosen:
        raise Usage("give at least one treatment, as in RUN --weights int4; see --help")
    found = [t.apply(one, chosen, runs) for one in run]
    if json:
        print_json([one.model_dump(mode="json") for one in found])
        return
    print(table([_told(one) for one in found], left=("run",)))


def _key(run: str, runs: Path) -> str:
    """The whole key of a run beside those that are treated."""
    from isoflop.sim.evaluate.checkpoint import Checkpoint

    return Checkpoint.load(run, runs).folder.name


def _told(one: Any) -> dict[str, str]:
    now, plain = one.ledger, one.plain_ledger
    told = {
        "run": one.run,
        "loss": f"{one.plain['loss'].value:.4f}",
        "treated": f"{one.metrics['loss'].value:.4f}",
        "change": f"{one.change.value:+.4f} ± {one.change.se or 0:.4f}",
        "bytes read a token": f"{now.read_bytes:,.0f} ({now.read_bytes / plain.read_bytes:.2f} ×)",
        "resident bytes": f"{now.resident_bytes:,.0f} "
        f"({now.resident_bytes / plain.resident_bytes:.2f} ×)",
        "parameters": f"{one.params['total']:,}",
        "FLOPs a token": f"{now.step_flops / plain.step_flops:.2f} ×",
        "training FLOPs": f"{now.train_flops:,} ({now.train_flops / plain.train_flops:.2f} ×)",
    }
    if now.store_bytes:
        told["store bytes"] = f"{now.store_bytes:,.0f}"
    if now.large_calls:
        told["asked"] = f"{now.large_calls:.3f}"
    return told | {name: f"{value:.4g}" for name, value in one.chosen.items()}


def effective(
    records: Path, runs: Path = Path("runs"), out: Path | None = None, json: bool = False
) -> None:
    """Tell how large a plain model of the same family equals each treated run: N_eff / N.

    The plain runs, of several sizes and amounts of data, give each family's surface; the treated
    ones are those among them that `isoflop apply` has treated. Where treatments were applied
    together and each alone, what they leave together is also told over the product of what each
    leaves.

    Args:
        records: the plain runs, as `isoflop records` writes them (NAME.jsonl).
        runs: the runs directory in which they were treated.
        out: also write the table there, as JSON lines: a table that `isoflop compare` reads, with
            the bytes and FLOPs as shares of the plain run's.
        json: print JSON instead of a table.
    """
    from isoflop.models.errors import UserError
    from isoflop.sim.compare.effective import of_cells
    from isoflop.sim.compare.study import Study
    from isoflop.sim.records.store import read_rows, write_table
    from isoflop.sim.treatments.apply import of_runs

    rows = read_rows(records)
    treated = of_runs([row.record.key for row in rows], runs)
    if not treated:
        raise UserError(
            f"none of the {len(rows)} runs of {records} was treated in {runs}; first: isoflop apply"
        )
    found = of_cells(treated, Study(rows))
    if out is not None:
        write_table(out, found)
    if json:
        print_json(found)
        return
    shown = ("family", "width", "depth", "D", "treatment")
    print(table([{k: one[k] for k in shown} | _size(one) for one in found], left=shown))


def _size(one: dict[str, Any]) -> dict[str, str]:
    said = one.get("reason")
    if not said:
        high = "∞" if one["high"] is None else f"{one['high']:.3g}"
        said = f"{one['ratio']:.3g} [{one['low']:.3g}, {high}]"
    told = {
        "change": f"{one['change']:+.4f}",
        "bytes read": f"{one['read_bytes']:.2f} ×",
        "N_eff/N": said,
    }
    if "interaction_ratio" in one:
        value, low, high = (one[f"interaction_{name}"] for name in ("ratio", "low", "high"))
        told["over the product"] = f"{value:.3g} [{low:.3g}, {high:.3g}]"
    return told
