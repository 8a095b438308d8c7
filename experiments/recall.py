"""How much state does each architecture need to recall what it read?

Multi-query associative recall (Arora et al. 2023, Zoology, 2312.04927): key-value pairs, then every
key again, whose value is asked for. Two-layer models of three widths are trained on a mixture of
numbers of pairs, as many answers of each, and judged on each number by itself; the decoding state
in bytes is what the width and the mixer make it. Hybrids have 0 (`mamba`), 1 (`hybrid`) and 2
(`dense`) layers of attention. Every family has the same three trials of learning rate; the first
seed chooses, the other two report (sim/compare/trials.py).

Command:   isoflop run recall --workers 14 && isoflop figures recall
Duration:  10 minutes on an H100 with 16 cores without gla and rwkv7; on 2 CPU cores beside other
           work --families gla --widths 24 32 took 100 minutes and --families rwkv7 --widths 32 took
           52, which are committed with them
Expected:  dense .99 or more at every number of pairs; of the others, those with a state of fixed
           size reach 90 % only from a number of bytes on that grows with the pairs; the first
           attention layer of the hybrid restores .99
Rule:      reached is a mean accuracy of .9 over the reporting seeds; the smallest state that
           reaches it lies between the largest width that does not and the smallest that does
"""

from __future__ import annotations

from isoflop.experiments.families import model
from isoflop.experiments.trials import trials
from isoflop.models.families.matching import heads, uniform, with_mlp
from isoflop.models.lm import ModelConfig
from isoflop.models.mixers.attention import Attention
from isoflop.sim.data import Mixture, Part
from isoflop.sim.data.tasks.recall import MQAR
from isoflop.sim.spec import Budget, Cell, Eval

DEPTH = 2
NARROWEST = {"rwkv7": 32}  # below it the mixer leaves no parameters for an MLP
WINDOW = 16  # tokens that `sliding_window` looks back, its own among them
FAMILIES = (
    *(
        "dense",
        "sliding_window",
        "linear",
        "gla",
        "mamba",
        "mamba2",
        "gated_deltanet",
        "rwkv7",
        "lstm",
    ),
    "hybrid",
)


def cells(
    families: tuple[str, ...] = FAMILIES,
    widths: tuple[int, ...] = (24, 32, 64),
    pairs: tuple[int, ...] = (4, 8, 16),
    rates: tuple[float, ...] = (0.004, 0.01, 0.025),
    vocab: int = 36,
    seq_len: int = 64,
    steps: int = 2000,
    batch: int = 56,
    seeds: int = 3,
) -> list[Cell]:
    """The grid.

    Args:
        families: names of the zoo's families, and sliding_window: attention to the last
            16 tokens.
        widths: of the two-layer models, which set the size of the state; of rwkv7 from 32 on.
        pairs: numbers of pairs that are mixed in training and judged apart.
        rates: learning rates that are tried, of matrices at width 64.
        vocab: keys and values, half of each; more than twice the pairs.
        seq_len: tokens of a window; examples of fewer pairs are shorter.
        steps: training length.
        batch: examples a step.
        seeds: runs of each rate: the first chooses, the others report.
    """
    judged = {
        n: MQAR(pairs=n, vocab=vocab, length=min(8 * n, seq_len), noise="filler") for n in pairs
    }
    mixture = Mixture(parts=tuple(Part(data=judged[n], share=max(pairs) // n) for n in pairs))
    evals = tuple(Eval(name=f"pairs{n}", data=judged[n], tokens=256 * seq_len) for n in pairs)
    budget = Budget(steps=steps, batch=batch, seq_len=seq_len, eval_tokens=256 * seq_len)
    models = [
        {f: _model(f, width, vocab) for f in families if width >= NARROWEST.get(f, 0)}
        for width in widths
    ]
    return [
        cell for group in models for cell in trials(group, mixture, budget, rates, seeds, evals)
    ]


def _model(family: str, width: int, vocab: int) -> ModelConfig:
    if family != "sliding_window":
        return model(family, width, DEPTH, vocab)
    local = Attention(n_heads=heads(width), window=WINDOW)
    return uniform(width, DEPTH, vocab, with_mlp(width, local))
