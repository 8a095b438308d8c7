"""Does a teacher save a student data, and does it pay when the teacher is charged?

Teachers of two sizes are trained on Python code, and students of two smaller sizes from their
beginning on a mixture of data and the teacher's predictions (at T = 1), loss (1 − λ)·data +
λ·teacher, for several training lengths; λ = 0 is a plain run. A gain is the plain student's tokens
for the same loss over the distilled one's (sim/compare/data_gain.py, paired by seed), or its FLOPs
over the distilled one's: with the teacher's training and predictions charged in full, and at zero,
as of a teacher that is there anyway (Busbridge et al. 2025, 2502.08606). Beside it the best teacher
there can be: a Markov language's own probabilities of the next token.

Command:   isoflop run distil && isoflop figures distil
Duration:  10 minutes of a busy core after the plain runs of the smaller student; 2 for --teachers
           --students 24, the oracle alone
Expected:  the oracle saves half of the tokens and more, and its student's loss stays above the
           language's entropy; a trained teacher saves some, and nothing where it is charged in full
Rule:      a teacher saves data where the 90 % interval of the gain in tokens lies above 1 at the
           longest length at which there is one, and pays where that in FLOPs, charged in full, does
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from isoflop.experiments.cli.text import tell
from isoflop.experiments.families import grid, model
from isoflop.experiments.finished import finished
from isoflop.sim.data import AnyData, Corpus, Markov
from isoflop.sim.records.store import Row
from isoflop.sim.treatments import Distil, apply

DEPTH = 2
LONGER = (2,)  # times the longest student's training, of plain ones: what a gain is read from
LANGUAGE = Markov(symbols=16, order=2, concentration=0.3)


def measure(
    teachers: tuple[int, ...] = (48, 80),
    students: tuple[int, ...] = (24, 40),
    teacher_steps: int = 500,
    steps: tuple[int, ...] = (125, 250, 500),
    shares: tuple[float, ...] = (0.5, 1.0),
    family: str = "dense",
    seeds: int = 2,
    trained: Path = Path("runs"),
    workers: int = 1,
) -> list[dict]:
    """The table: a row for each student.

    Args:
        teachers: widths of the two-layer teachers; with none the Markov language is left.
        students: widths of the two-layer students; the first also learns the Markov language.
        teacher_steps: training length of the teachers, of 1024 tokens a step.
        steps: training lengths of the students.
        shares: λ, of the teacher in the loss; 0 is added.
        family: name of a family of the zoo.
        seeds: runs of each; an interval needs two.
        trained: the runs directory of the teachers; what it lacks is trained.
        workers: processes that train.
    """
    shapes = tuple((width, DEPTH) for width in teachers)
    code = grid((family,), shapes, (teacher_steps,), seeds, Corpus(name="sympy"), 32_768)
    spoken = grid((family,), ((students[0], DEPTH),), (min(steps),), seeds, LANGUAGE, 32_768)
    found: list[dict] = []
    for row in finished(code, trained, workers):
        plain = (0.0,) if row.labels["width"] == teachers[0] else ()
        for width in students:
            found += _taught(row, family, width, steps, (*plain, *shares), "run", trained)
    for row in finished(spoken, trained, workers):
        found += _taught(row, family, students[0], steps, (0.0, 1.0), "oracle", trained)
    tell("")
    return found


def _taught(
    row: Row, family: str, width: int, steps: Sequence[int], shares: Sequence[float],
    teacher: Any, runs: Path,
) -> Iterator[dict]:  # fmt: skip
    """Students of one width and one teacher."""
    run = row.record.run
    student = model(family, width, DEPTH, run.model.vocab_size)
    for share in shares:
        for length in (*steps, *(n * max(steps) for n in LONGER if share == 0)):
            tell(f"{teacher} of width {row.labels['width']}, seed {run.seed}: width {width}, "
                 f"{length} steps, λ = {share:g}")  # fmt: skip
            how = Distil(student=student, steps=length, share=share, teacher=teacher, seed=run.seed)
            one = apply(row.record.key, (how,), runs)
            yield {
                "teacher": "none" if share == 0 else teacher,
                "teacher_width": row.labels["width"] if share and teacher == "run" else 0,
                **{"data": _told(run.data), "family": family, "width": width, "share": share},
                **{"N": one.params["active"], "seed": run.seed, "steps": length},
                "tokens": length * run.budget.batch_tokens,
                "loss": one.metrics["loss"].value,
                "floor": run.data.open().floor(run.budget.seq_len),
                "train_flops": one.ledger.train_flops,
                "teacher_flops": one.ledger.teacher_flops,
            }


def _told(data: AnyData) -> str:
    return data.name if isinstance(data, Corpus) else data.kind
