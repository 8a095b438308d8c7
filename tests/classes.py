"""A small class, for tests of what students do with it."""

from isoflop.sim.classroom import ledger
from isoflop.sim.classroom.rules import Design, Rules, Target
from isoflop.sim.data import ZipfFacts

TARGET = Target(flops=987_654_321_098, salt="0123")


def rules(**changes) -> Rules:
    fields = {
        "budget": 10**9,
        "largest": 4 * 10**8,
        "families": ("dense", "lstm"),
        "data": ZipfFacts(facts=100, symbols=16, alpha=0.5),
        "batch": 2,
        "seq_len": 16,
        "eval_tokens": 1024,
        "commitment": TARGET.commitment,
    }
    return Rules(**fields | changes)


def room(folder, students=("ada", "ben"), **changes) -> ledger.Classroom:
    found = ledger.establish(folder, rules(**changes), TARGET)
    for name in students:
        found.enrol(name)
    return found


def cell(room, width=8, steps=100, family="dense", seed=0, lr=1e-3):
    design = Design(family=family, width=width, depth=1, lr=lr, seed=seed)
    return room.rules.cell(design, steps)
