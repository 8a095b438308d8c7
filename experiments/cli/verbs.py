"""The verbs of the command, one a row: nothing here, and nothing that this imports, brings JAX."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from isoflop.experiments.cli.flags import deferred, parse


@dataclass(frozen=True)
class Verb:
    """A function of a module of `experiments/cli`, imported when its verb is called.

    The function's typed parameters are its flags, and it prints what it finds; or, with `raw`, it
    takes the words after the verb as they are and returns the exit code.
    """

    module: str
    function: str
    help: str  # one line, shown without importing the module
    raw: bool = False

    def __call__(self, name: str, args: Sequence[str]) -> int:
        """Run the verb, called `name`; returns the exit code."""
        module = importlib.import_module(f"{__package__}.{self.module}")
        function: Callable[..., Any] = getattr(module, self.function)
        if self.raw:
            return function(args)
        about = (inspect.getdoc(function) or "").split("\n\nArgs:")[0]  # flags show the rest
        (bound,) = parse(name, about, args, deferred(function))
        bound()
        return 0


VERBS = {
    "list": Verb("listing", "list_", "Name every experiment and its question."),
    "describe": Verb(
        *("listing", "describe"),
        "Print an experiment's question, command, duration and expected answer.",
        raw=True,
    ),
    "init": Verb("listing", "init", "Write a small experiment of your own to start from."),
    "run": Verb(
        *("run", "run"),
        "Train what an experiment lacks, or with --dry-run tell what that would take.",
        raw=True,
    ),
    "figures": Verb(
        *("show", "figures"),
        "Draw an experiment's figures from its records: SVG, PNG, and the numbers as JSON.",
        raw=True,
    ),
    "report": Verb(
        *("show", "report"),
        "Write an experiment's report: one interactive page that needs no network.",
        raw=True,
    ),
    "records": Verb(
        *("show", "records"),
        "Write an experiment's records as a table, or list those of a runs directory.",
        raw=True,
    ),
    "status": Verb(
        *("status", "status"),
        "Tell how a grid stands: done, running, failed, stale leases, throughput, time left.",
        raw=True,
    ),
    "work": Verb(
        *("work", "work"),
        "Train what a grid lacks beside other workers, wherever they run, until it is complete.",
        raw=True,
    ),
    "gc": Verb(
        *("gc", "gc"),
        "Name what a runs directory no longer needs, and with --delete remove it.",
    ),
    "bench": Verb(
        *("run", "bench"),
        "Time training, prefill and decoding beside this machine's matmuls (run bench).",
        raw=True,
    ),
    "compile": Verb(
        *("ahead", "compile_"),
        "Compile training steps for a TPU that is not there: memory, FLOPs, the largest batch.",
        raw=True,
    ),
    "fit": Verb(
        *("fit", "fit"),
        "Fit a law of scale to records, with its interval or the reason why there is none.",
    ),
    "compare": Verb(
        *("fit", "compare"),
        "Tell what one architecture's loss costs another, and where they cross.",
    ),
    "explore": Verb(
        *("explore", "explore"),
        "Write a page on which a budget is dragged: what it buys, by family, with bands.",
    ),
    "selftest": Verb(
        *("selftest", "selftest"),
        "Compare an architecture with itself: what intervals of such runs are worth.",
    ),
    "plan": Verb(
        *("plan", "plan"),
        "Choose sizes and amounts of data for a compute budget, before training.",
    ),
    "serve": Verb(
        *("serve", "verb"),
        "Tell what a model on chips gives its users, and what that costs.",
        raw=True,
    ),
    "verdicts": Verb(
        *("verdicts", "verdicts"),
        "Judge published claims by committed records: the rule, the result, the verdict.",
    ),
    "choose": Verb(
        *("choose", "choose"),
        "Choose a model by quality, latency, price, memory and energy, and say how surely.",
    ),
    "class": Verb(
        *("classroom", "class_"),
        "Give a class a budget: students buy runs, predict a larger one, and are scored.",
        raw=True,
    ),
    "import": Verb(
        *("checkpoints", "import_"),
        "Describe a trained model, a run's or Hugging Face's, and measure its loss on a text.",
    ),
    "sample": Verb(
        *("checkpoints", "sample"),
        "Let a trained model, a run's or Hugging Face's, go on with prompts.",
    ),
    "apply": Verb(
        *("treat", "apply"),
        "Quantise, prune, let retrieve or cascade trained runs, and measure their loss and cost.",
    ),
    "effective": Verb(
        *("treat", "effective"),
        "Tell how large a plain model equals each treated run, with an interval.",
    ),
    "context": Verb(
        *("contexts", "context"),
        "Tell what context buys trained models and what it costs: one page, one table.",
    ),
    "check": Verb(
        *("check", "check"),
        "Mark the exercise of a lesson: what is right, what is off, what to look at again.",
        raw=True,
    ),
    "export": Verb(
        *("checkpoints", "export"),
        "Write a trained run's weights as a Hugging Face checkpoint.",
    ),
}
