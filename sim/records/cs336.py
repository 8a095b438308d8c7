"""Lists of runs in the JSON of Stanford CS336's scaling assignment, in and out.

    IsoFLOP curves   [{parameters, compute_budget, final_loss}, …]      data/isoflops_curves.json
    runs of 2025     {previous_runs: [{d_model, num_layers, num_heads, batch_size, learning_rate,
                     train_flops, loss}, …]}, or that list alone        GET /previous_runs
    runs of 2026     [{experiment_id, training_config, status}, …]      GET /experiments

from https://github.com/stanford-cs336/assignment3-scaling (MIT): its data folder, its handout of
2025, and `cs336_scaling/schemas` and `training/training_config.py` of 2026.

The assignment counts compute as 6·N·D of parameters N without embedding and head, estimated as
12 · layers · width². Read, a run has the columns N, D, flops and loss, so that `isoflop fit` needs
no names; what the JSON has not follows from that count. Runs of 2026 state widths and tokens, from
which N and D are exact (norms aside). Written, `train_flops` and `compute_budget` are 6·N·D of the
true N, so that D = C/(6·N) there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoflop.sim.records.store import Row

CURVE = ("parameters", "compute_budget", "final_loss")
RUN = ("d_model", "num_layers", "num_heads", "batch_size", "learning_rate", "train_flops", "loss")
Cells = Mapping[str, Any]


def cells(value: Any) -> list[dict[str, Any]] | None:
    """The runs as rows of a table, cells as they stand; None for JSON of another kind."""
    if isinstance(value, dict) and value.keys() == {"previous_runs"}:
        value = value["previous_runs"]
    if not isinstance(value, list) or not value or not all(isinstance(x, dict) for x in value):
        return None
    for names, read in READERS.items():
        if all(x.keys() >= {*names} for x in value):
            return [read(x) for x in value]
    return None


def _curve(run: Cells) -> dict[str, Any]:
    return dict(run) | _counted(run["parameters"], run["compute_budget"], run["final_loss"])


def _run(run: Cells) -> dict[str, Any]:
    shape = run["num_layers"], run["d_model"]
    n = 12 * shape[0] * shape[1] ** 2 if all(isinstance(x, int) for x in shape) else None
    return dict(run) | _counted(n, run["train_flops"], run["loss"])


def _counted(n: Any, flops: Any, loss: Any) -> dict[str, Any]:
    known = all(type(x) in (int, float) and x > 0 for x in (n, flops))
    return {"N": n, "D": flops / (6 * n) if known else None, "flops": flops, "loss": loss}


def _experiment(run: Cells) -> dict[str, Any]:
    """A run of 2026: q, k, v, o of width · heads, and the three matrices of a SwiGLU."""
    try:
        config, status = run["training_config"], run["status"]
        model, optim = config["architecture_config"], config["optimizer_config"]
        d, layers = model["hidden_size"], model["num_hidden_layers"]
        attention = 4 * d * model["head_dim"] * model["num_attention_heads"]
        n = layers * (attention + 3 * d * model["intermediate_size"])
        tokens = config["total_train_tokens"]
        return {
            "experiment_id": run["experiment_id"],
            "d_model": d,
            "num_layers": layers,
            "num_heads": model["num_attention_heads"],
            "batch_size": config["train_batch_size"],
            "learning_rate": optim["lr_scheduler"]["peak_value"],
            "seed": config.get("model_seed", 0),
            "status": status["status_type"],
            "N": n,
            "D": tokens,
            "flops": 6 * n * tokens,
            "loss": (status.get("val_losses") or [None])[-1],
            "seconds": status.get("used_runtime_seconds"),
        }
    except (KeyError, TypeError, AttributeError) as error:
        return {"experiment_id": run["experiment_id"], "status": f"unreadable: {error!r}"}


READERS: dict[tuple[str, ...], Callable[[Cells], dict[str, Any]]] = {
    CURVE: _curve,
    RUN: _run,
    ("experiment_id", "training_config", "status"): _experiment,
}


def runs(rows: Iterable[Row]) -> dict[str, list[dict[str, Any]]]:
    """Finished runs as the API of 2025 gives them, with their family beside. `num_heads` is 0 where
    no layer is attention.
    """
    return {
        "previous_runs": [
            {
                "d_model": run.model.d_model,
                "num_layers": len(run.model.blocks),
                "num_heads": _heads(row),
                "batch_size": run.budget.batch,
                "learning_rate": run.optim.lr,
                "train_flops": row.record.flops["6ND_non_embedding"],
                "loss": row.record.loss,
                "family": row.labels.get("family"),
            }
            for row in _finished(rows)
            for run in (row.record.run,)
        ]
    }


def curves(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Finished runs as points of IsoFLOP curves."""
    return [
        {
            "parameters": row.record.params["non_embedding"],
            "compute_budget": row.record.flops["6ND_non_embedding"],
            "final_loss": row.record.loss,
        }
        for row in _finished(rows)
    ]


def _finished(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.record.status == "ok"]


def _heads(row: Row) -> int:
    mixers = (block.mixer for block in row.record.run.model.blocks)
    return max((getattr(mixer, "n_heads", 0) for mixer in mixers if mixer is not None), default=0)
