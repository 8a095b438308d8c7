"""Remove: layers, MLP channels, experts or attention heads, and rebuild the model that is left.

What is removed is what matters least on training text, by a rule for each kind of part:

    layers    one after another, the one without which the loss on calibration text is least
    channels  of each SwiGLU or GELU MLP, by ‖in‖·‖out‖ of a channel's weights
    experts   of each MoE, by the mean softmax probability that its router gives them
    heads     of each attention, by groups that share keys and values, by ‖out‖ of their weights
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, PositiveInt

from isoflop.models.base import Sizes
from isoflop.models.checkpoints import huggingface as interop
from isoflop.models.errors import UserError
from isoflop.models.lm import Block, ModelConfig
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.mlp import Gelu, SwiGLU
from isoflop.models.mixers.moe import Moe
from isoflop.sim.data import Batch
from isoflop.sim.treatments.base import Subject, Treatment, judge
from isoflop.sim.treatments.matmuls import Matmul, visiting

Arrays = dict[str, Any]  # by dotted name


class Remove(Treatment, Sizes):
    """A share of the layers, or of each layer's channels, experts or heads, at least one of which
    stays."""

    kind: Literal["remove"] = "remove"
    what: Literal["layers", "channels", "experts", "heads"]
    share: float = Field(gt=0, lt=1)  # of them, rounded to whole ones
    calibration: PositiveInt = 32  # sequences of the training split that importance is measured on

    def apply(self, subject: Subject) -> Subject:
        if subject.formats or subject.kept:
            raise UserError(
                "parts are removed before weights are rounded or masked; give Remove first"
            )
        model, arrays = subject.model, dict(interop.names(subject.params))
        arrays = {name: jnp.asarray(variable[...]) for name, variable in arrays.items()}
        if self.what == "layers":
            model, arrays = self._layers(subject, arrays)
        else:
            usage = _expert_usage(subject, self.calibration) if self.what == "experts" else {}
            before = sum(x.size for x in arrays.values())
            blocks = []
            for i, block in enumerate(model.blocks):
                block, changed = self._block(block, f"blocks.{i}", arrays, usage)
                arrays |= changed
                blocks.append(block)
            if sum(x.size for x in arrays.values()) == before:
                raise UserError(
                    f"share={self.share:g} of the {self.what} must be at least one part, and the "
                    f"model has none or too few of them; raise it, or remove something else"
                )
            model = model.model_copy(update={"blocks": tuple(blocks)})
        return subject.to(model=model, params=interop.from_names(model, arrays))

    def _left(self, count: int) -> int:
        return max(1, count - round(self.share * count))

    def _layers(self, subject: Subject, arrays: Arrays) -> tuple[ModelConfig, Arrays]:
        model, tokens = subject.model, _calibration(subject, self.calibration)
        left = list(range(len(model.blocks)))
        goal = self._left(len(left))
        if goal == len(left):
            raise UserError(
                f"share={self.share:g} of {len(left)} layers must be at least one layer; raise it"
            )
        found = model, arrays
        while len(left) > goal:
            tried = []
            for i in left:
                smaller = _without(model, arrays, [j for j in left if j != i])
                if smaller is not None:
                    params = interop.from_names(*smaller)
                    nats, _ = judge(subject.to(model=smaller[0], params=params), Batch(tokens))
                    tried.append((float(nats.mean()), i, smaller))
            if not tried:
                raise UserError(
                    "no layer can be removed: the others read what each of them leaves; remove "
                    "something else"
                )
            _, worst, found = min(tried, key=lambda one: one[:2])
            left.remove(worst)
        return found

    def _block(
        self, block: Block, name: str, arrays: Arrays, usage: dict[str, Any]
    ) -> tuple[Block, Arrays]:
        part = block.mixer if self.what == "heads" else block.channel
        prefix = f"{name}.{'mixer' if self.what == 'heads' else 'channel'}"
        match self.what, part:
            case "channels", SwiGLU() | Gelu():
                smaller, changed = self._channels(part, prefix, arrays)
            case "experts", Moe():
                smaller, changed = self._experts(part, prefix, arrays, usage)
            case "heads", Attention():
                smaller, changed = self._heads(part, prefix, arrays)
            case _:
                return block, {}
        field = "mixer" if self.what == "heads" else "channel"
        return block.model_copy(update={field: smaller}), changed

    def _channels(self, mlp: SwiGLU | Gelu, at: str, arrays: Arrays) -> tuple[Any, Arrays]:
        inward = [name for name in ("gate", "up") if f"{at}.{name}.kernel" in arrays]
        strength = _norm(arrays[f"{at}.out.kernel"], 1)
        for name in inward:
            strength = strength * _norm(arrays[f"{at}.{name}.kernel"], 0)
        kept = _best(strength, self._left(mlp.d_ff))
        changed = {f"{at}.out.kernel": arrays[f"{at}.out.kernel"][kept]}
        for name in inward:
            for suffix in ("kernel", "bias"):
                if (full := f"{at}.{name}.{suffix}") in arrays:
                    changed[full] = arrays[full][..., kept]
        return mlp.model_copy(update={"d_ff": len(kept)}), changed

    def _experts(self, moe: Moe, at: str, arrays: Arrays, usage: Any) -> tuple[Any, Arrays]:
        left = max(moe.top_k, self._left(moe.n_experts))
        kept = _best(usage[f"{at}.router.kernel"], left)
        rows = [name for name in ("gate", "up", "down", "bias") if f"{at}.{name}" in arrays]
        changed = {f"{at}.{name}": arrays[f"{at}.{name}"][kept] for name in rows}
        changed[f"{at}.router.kernel"] = arrays[f"{at}.router.kernel"][:, kept]
        return moe.model_copy(update={"n_experts": left}), changed

    def _heads(self, attention: Attention, at: str, arrays: Arrays) -> tuple[Any, Arrays]:
        if attention.qk_norm == "joint":
            raise UserError("heads under a norm over all of them cannot be removed alone")
        out, groups = arrays[f"{at}.out.kernel"], attention.kv_heads
        size = out.shape[0] // attention.n_heads
        kept = _best(_norm(out.reshape(groups, -1), 1), self._left(groups))
        changed = {}
        for name in ("q", "k", "v", "gate", "out"):
            for suffix in ("kernel", "bias"):
                full = f"{at}.{name}.{suffix}"
                if full not in arrays or (name, suffix) == ("out", "bias"):
                    continue
                axis = 0 if name == "out" else -1
                grouped = jnp.moveaxis(arrays[full], axis, 0)
                grouped = grouped.reshape(groups, -1, *grouped.shape[1:])[kept]
                changed[full] = jnp.moveaxis(grouped.reshape(-1, *grouped.shape[2:]), 0, axis)
        n = attention.n_heads // groups * len(kept)
        sizes = {"n_heads": n, "n_kv_heads": len(kept), "d_head": size}
        return attention.model_copy(update=sizes), changed


def _without(
    model: ModelConfig, arrays: Arrays, left: list[int]
) -> tuple[ModelConfig, Arrays] | None:
    """The model of these layers alone; None where one reads what no other leaves."""
    try:
        smaller = ModelConfig.model_validate(
            model.model_dump() | {"blocks": [model.blocks[i].model_dump() for i in left]}
        )
    except ValueError:
        return None
    kept = {name: x for name, x in arrays.items() if not name.startswith("blocks.")}
    for new, old in enumerate(left):
        prefix = f"blocks.{old}."
        kept |= {
            f"blocks.{new}.{name.removeprefix(prefix)}": x
            for name, x in arrays.items()
            if name.startswith(prefix)
        }
    return smaller, kept


def _expert_usage(subject: Subject, sequences: int) -> dict[str, np.ndarray]:
    """Mean softmax probability of each expert on training text, by the router's name."""
    paths = [leaf.path for leaf in subject.leaves]

    def usage(params: Any, tokens: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def see(matmul: Matmul) -> Any:
            if paths[matmul.leaf].endswith("router.kernel"):
                odds = jax.nn.softmax((matmul.x @ matmul.weight).astype(jnp.float32), -1)
                found[paths[matmul.leaf]] = odds.reshape(-1, odds.shape[-1]).mean(0)
            return matmul.x

        visiting(partial(subject.logits, subject.model), see)(params, tokens)
        return found

    tokens = jnp.asarray(_calibration(subject, sequences)[:, :-1])
    found = jax.jit(usage)(subject.params, tokens)
    return {path: np.asarray(odds) for path, odds in found.items()}


def _calibration(subject: Subject, sequences: int) -> np.ndarray:
    budget = subject.run.budget
    source = subject.run.data.open()
    return source.batch(0, subject.run.seed, sequences, budget.seq_len).tokens


def _norm(x: Any, axis: int) -> np.ndarray:
    return np.linalg.norm(np.asarray(x, np.float64), axis=axis)


def _best(importance: np.ndarray, count: int) -> np.ndarray:
    """Indices of the most important, in their order."""
    return np.sort(np.argsort(-importance, kind="stable")[:count])
