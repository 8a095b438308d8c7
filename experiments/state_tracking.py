"""Which architectures follow a state, and how deep do they have to be?

Parity (Grazzi et al. 2024, 2411.12537, section 5.1): whether the ones so far are odd in number,
trained on lengths 3 to 40 and asked after the last of 40 and of 240 bits. A recurrence whose
eigenvalues are in [0, 1] cannot follow it, one with −1 can: `gated_deltanet` beside
`gated_deltanet_negative`. Word problems (Merrill et al. 2024, 2404.08819, section 5): the product
of 16 elements of S3, which is solvable, and of A5, which is not, asked after every element, against
the number of layers. Every family has the same three trials of learning rate; the first seed
chooses, the others report (sim/compare/trials.py).

Command:   isoflop run state_tracking --workers 14 && isoflop figures state_tracking
           (--tasks parity alone is the first half)
Duration:  about 85 minutes of one core for --tasks parity, and 65 for --tasks S3 A5 --families
           dense mamba lstm --steps 1000, whose records are committed
Expected:  parity at 240 bits: [0, 1] and attention at chance, [−1, 1] and the LSTM at 1; A5 needs
           more layers than S3 of attention and of Mamba, not of the LSTM
Rule:      at chance is an interval over seeds that holds or lies below .55 of the answers, solved a
           mean of .99 or more; a depth is enough from a mean of .9 of the last answers on
"""

from __future__ import annotations

from isoflop.experiments import pick
from isoflop.experiments.families import model
from isoflop.experiments.trials import trials
from isoflop.sim.data.tasks.base import Task
from isoflop.sim.data.tasks.state import Parity, WordProblem
from isoflop.sim.spec import Budget, Cell, Eval

FAMILIES = ("dense", "mamba", "gated_deltanet", "gated_deltanet_negative", "lstm")
LONGER = 6  # times the training length, at which parity is asked for
SPARE = 2  # tokens of the vocabulary that no task has, so that chance is no divergence
TASKS = ("parity", "S3", "A5")
EVAL_ROWS = 1024


def cells(
    tasks: tuple[str, ...] = TASKS,
    families: tuple[str, ...] = FAMILIES,
    depths: tuple[int, ...] = (1, 2, 4),
    width: int = 32,
    rates: tuple[float, ...] = (0.005, 0.01, 0.02),
    parity_length: int = 40,
    word_length: int = 16,
    steps: int = 2000,
    batch: int = 64,
    seeds: int = 4,
) -> list[Cell]:
    """The grid.

    Args:
        tasks: of parity, of two layers, and S3 and A5, of every depth.
        families: names of the zoo's families.
        depths: layers, for word problems.
        width: d_model.
        rates: learning rates that are tried, of matrices at width 64.
        parity_length: bits of the longest training example; asked for at 6 times as many.
        word_length: elements of a word.
        steps: training length.
        batch: examples a step.
        seeds: runs of each rate: the first chooses, the others report.
    """
    found = []
    for task in tasks:
        pick(task, TASKS, "task called")
        data: Task
        layers: tuple[int, ...]
        if task == "parity":
            data, layers = Parity(length=parity_length, shortest=min(3, parity_length)), (2,)
            asked = {1: parity_length, LONGER: LONGER * parity_length}
        else:
            data, layers = WordProblem(group=task, length=word_length), depths
            asked = {1: word_length}
        judged = {n: _last(data, length) for n, length in asked.items()}
        evals = tuple(
            Eval(name=f"x{n}", data=one, tokens=EVAL_ROWS * (length + 1), seq_len=length + 1)
            for (n, one), length in zip(judged.items(), asked.values(), strict=True)
        )
        size = data.size(data.length)
        budget = Budget(steps=steps, batch=batch, seq_len=size, eval_tokens=EVAL_ROWS * size)
        for depth in layers:
            models = {f: model(f, width, depth, data.vocab_size + SPARE) for f in families}
            found += trials(models, data, budget, rates, seeds, evals, task=task)
    return found


def _last(task: Task, length: int) -> Task:
    """The same task, asked for after the last input of `length` alone."""
    return task.model_copy(update={"length": length, "shortest": None, "asked": "last"})
