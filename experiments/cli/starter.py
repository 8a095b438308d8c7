"""Does a wider MLP make a small transformer better, at the same number of tokens?

The first paragraph is the question: `isoflop list`, `describe` and the report show it. Change the
grid below to ask your own; this one is two families × two sizes × two training lengths × two seeds.

Command:   isoflop run THIS_FILE && isoflop report THIS_FILE
Duration:  about a minute on a laptop; `isoflop run THIS_FILE --dry-run` says it for your machine
Expected:  loss falls with size and with tokens; such short runs tell little of the difference
"""

from isoflop.models.lm import Block, ModelConfig
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.mlp import SwiGLU
from isoflop.sim.data import Corpus
from isoflop.sim.optim import AdamW
from isoflop.sim.spec import Budget, Cell, Run

# A family is what you compare: one rule that makes a model of any width.
EXPANSION = {"narrow": 2, "wide": 4}  # the MLP's width over the model's


def model(family: str, width: int, vocab_size: int) -> ModelConfig:
    """Two layers of attention and MLP. Any mixer of isoflop/models/mixers may stand in for
    Attention, or a class of your own in this file: a MixerConfig whose `kind` nobody else has, with
    its costs, and the Mixer that it builds (isoflop/models/mixers/rnn.py is one to copy from).
    """
    block = Block(
        mixer=Attention(n_heads=width // 16), channel=SwiGLU(d_ff=EXPANSION[family] * width)
    )
    return ModelConfig(d_model=width, vocab_size=vocab_size, blocks=(block, block))


# Typed arguments with defaults become flags: isoflop run THIS_FILE --steps 100 200 --seeds 3
def cells(
    widths: tuple[int, ...] = (32, 48), steps: tuple[int, ...] = (60, 120), seeds: int = 2
) -> list[Cell]:
    """Every run, under the labels by which figures group them.

    Args:
        widths: of the model.
        steps: training lengths, of 1024 tokens a step.
        seeds: runs of each cell; an interval needs two or more.
    """
    # English, of which a token is a byte. Your own text: File(path="corpus.txt"), from isoflop.sim.
    # data too; the path is from where you call isoflop.
    data = Corpus(name="kjv")
    return [
        Cell(
            labels={"family": family, "width": width, "depth": 2},
            run=Run(
                model=model(family, width, data.vocab_size),
                data=data,
                # one rate for all widths: that of matrices falls as 1/width from base_width on
                optim=AdamW(lr=0.01, base_width=64, warmup_steps=20),
                # runs that differ in steps and seed alone are trained as one job
                budget=Budget(steps=length, batch=8, seq_len=128, eval_tokens=16_384),
                seed=seed,
            ),
        )
        for family in EXPANSION
        for width in widths
        for length in steps
        for seed in range(seeds)
    ]


# Figures: loss against FLOPs and against parameters, curves, and what one family gains over the
# other. For others, define draw(rows, out), which writes into the folder `out` and returns the
# paths: isoflop/figures/quickstart.py is one to copy from.
