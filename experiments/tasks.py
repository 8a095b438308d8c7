"""Which size for which task?

Two-layer models of growing width are trained on one task each: recall (multi-query associative
recall of 4 pairs), tracking (the word problem of S3 over 8 elements), language (which bracket of
four types may close next, nested four deep) and classification (which of four topics has most of
24 words). Every size has the same three trials of learning rate; the first seed chooses, the
others report (sim/compare/trials.py). The answer is the smallest N that reaches 90 % of the
answers, as the trained sizes that it lies between over the seeds, and with it whether accuracy
stands still over sizes on the way, and whether the largest size's is predicted better by a sigmoid
of ln N or by way of the loss (2512.08894).

Command:   isoflop run tasks && isoflop figures tasks
Duration:  9 minutes of one busy core
Expected:  classification needs the smallest model and recall the largest; tracking and language lie
           between; accuracy rises within a factor of four in N, so that neither way predicts it
           from sizes below
Rule:      reached is .9 of the answers, by every reporting seed and at every larger size; a plateau
           is two sizes or more short of it within .05; predicted better is a smaller absolute error
           at the largest size in more than half of the tasks where both can be had
"""

from __future__ import annotations

from isoflop.experiments import pick
from isoflop.experiments.families import model
from isoflop.experiments.trials import trials
from isoflop.sim.data.tasks.base import Task
from isoflop.sim.data.tasks.classify import Topic
from isoflop.sim.data.tasks.dyck import BoundedDyck
from isoflop.sim.data.tasks.recall import MQAR
from isoflop.sim.data.tasks.state import WordProblem
from isoflop.sim.spec import Budget, Cell

DEPTH = 2
SPARE = 2  # tokens of the vocabulary that no task has, so that chance is no divergence
EVAL_ROWS = 1024
TASKS: dict[str, Task] = {
    "recall": MQAR(pairs=4, vocab=20, length=20, noise="filler"),
    "tracking": WordProblem(group="S3", length=8),
    "language": BoundedDyck(types=4, depth=4, length=24),
    "classification": Topic(classes=4, words=8, length=24),
}


def cells(
    tasks: tuple[str, ...] = tuple(TASKS),
    families: tuple[str, ...] = ("dense",),
    widths: tuple[int, ...] = (8, 16, 24, 40),
    rates: tuple[float, ...] = (0.001, 0.003, 0.01),
    steps: int = 400,
    batch: int = 32,
    seeds: int = 3,
) -> list[Cell]:
    """The grid.

    Args:
        tasks: of recall, tracking, language and classification.
        families: names of the zoo's families.
        widths: d_model of the two-layer models.
        rates: learning rates that are tried, of matrices at width 64.
        steps: training length.
        batch: examples a step.
        seeds: runs of each rate: the first chooses, the others report.
    """
    found = []
    for name in tasks:
        pick(name, TASKS, "task called")
        data = TASKS[name]
        length = data.size(data.length)
        budget = Budget(steps=steps, batch=batch, seq_len=length, eval_tokens=EVAL_ROWS * length)
        for width in widths:
            models = {f: model(f, width, DEPTH, data.vocab_size + SPARE) for f in families}
            found += trials(models, data, budget, rates, seeds, task=name)
    return found
