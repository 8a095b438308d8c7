"""The READMEs' prose has the numbers of the committed records: both are read, none is here."""

from __future__ import annotations

import json
import re

import pytest

from isoflop.experiments import families, quickstart
from isoflop.experiments.cli import readme
from isoflop.models.checkpoints.formats import LAYOUTS
from isoflop.sim.compare.gains import compare
from isoflop.sim.compare.rankings import rank_correlation
from isoflop.sim.compare.rates import tuned
from isoflop.sim.cost.flops import param_counts, training_flops
from isoflop.sim.records.store import Row, read_rows, read_table

READMES = [readme.ROOT / name for name in readme.DOCUMENTS if name.endswith("README.md")]
TEXT = " ".join(" ".join(path.read_text(encoding="utf-8") for path in READMES).split())
RESULTS = readme.ROOT / "experiments" / "results"
WORDS = {"two": 2, "three": 3, "four": 4, "eight": 8}
N = r"(\d*\.?\d+)"  # a number as it is written


def told(sentence: str) -> list[str]:
    """The numbers of a sentence, in which each N stands for one; it has to be there, once."""
    found = re.findall(N.join(map(re.escape, sentence.split("N#"))), TEXT)
    assert len(found) == 1, f"{len(found)} sentences of the READMEs read: {sentence}"
    return [found[0]] if isinstance(found[0], str) else list(found[0])


def agree(written: list[str], values: list[float]) -> None:
    """To half of the last digit written."""
    assert len(written) == len(values)
    for text, value in zip(written, values, strict=True):
        digits = len(text.partition(".")[2])
        assert abs(float(text) - value) <= 0.5001 * 10**-digits, (text, value)


def gains(study: str, convention: str) -> dict[str, float]:
    """Each family's gain at the far end of the shared window."""
    path = {"laptop": readme.LAPTOP, "gpu": readme.GPU}[study]
    items = json.loads(path.read_text(encoding="utf-8"))["gains"][convention]
    return {item["arm"]: item["ceg"][-1]["value"] for item in items if item["ceg"]}


def spans(name: str) -> tuple[list[Row], list[int], list[float]]:
    """Runs of committed records, the ends of their sizes and of their millions of tokens."""
    rows = read_rows(RESULTS / f"{name}.jsonl")
    sizes = {param_counts(row.record.run.model)["active_non_embedding"] for row in rows}
    tokens = {row.record.tokens / 1e6 for row in rows}
    return rows, [min(sizes), max(sizes)], [min(tokens), max(tokens)]


def test_the_demo_is_as_large_as_it_says():
    cells = quickstart.cells()
    agree(told("make demo # trains N# small models on real text"), [len(cells)])
    (axes,) = re.findall(r"(\w+) families × (\w+) sizes × (\w+) lengths × (\w+) seeds", TEXT)
    runs = [cell.run for cell in cells]
    assert [WORDS[word] for word in axes] == [
        len({cell.labels["family"] for cell in cells}),
        len({(cell.labels["width"], cell.labels["depth"]) for cell in cells}),
        len({run.budget.steps for run in runs}),
        len({run.seed for run in runs}),
    ]


def test_as_many_published_families_as_there_are_formats_and_those_families_have_rates():
    agree(told("logits, greedy tokens and parameters of N# published families"), [len(LAYOUTS)])
    agree(told("a Hugging Face folder of one of N# families are taken alike"), [len(LAYOUTS)])
    (named,) = re.findall(r"Tuned learning rates exist for (.*?);", TEXT)
    assert set(re.findall(r"`(\w+)`", named)) == set(families.tuned()["rates"])


def test_the_ladder_s_runs_sizes_and_tokens():
    rows, sizes, tokens = spans("ladder")
    agree(
        told(
            "(`isoflop run ladder`, N# runs of N#k to N#k active non-embedding parameters and "
            "N# to N# million tokens, three seeds"
        ),
        [len(rows), *(size / 1e3 for size in sizes), *tokens],
    )
    assert len({row.record.run.seed for row in rows}) == WORDS["three"]


def test_the_gpu_s_runs_sizes_and_tokens():
    rows, (small, large), tokens = spans("ladder_gpu")
    agree(
        told(
            "N# of its runs: N#k to N# million active non-embedding parameters, N# to N# million "
            "tokens in contexts of N#, two seeds"
        ),
        [len(rows), small / 1e3, large / 1e6, *tokens, rows[0].record.run.budget.seq_len],
    )
    assert len({row.record.run.seed for row in rows}) == WORDS["two"]


def test_gains_of_both_studies():
    before, after = (gains(study, "executed") for study in ("laptop", "gpu"))
    written = told(
        "Mamba's gain goes from N# to N#, the hybrid's from N# to N#, Gated DeltaNet's and "
        "Mamba-2's from N# to N#."
    )
    for family, ends in zip(
        ("mamba", "hybrid", "gated_deltanet", "mamba2"), (0, 2, 4, 4), strict=True
    ):
        agree(written[ends : ends + 2], [before[family], after[family]])


def test_the_ladder_in_longer_contexts():
    path = readme.ROOT / "figures/out/context_training/context_training.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    assert len(found) == WORDS["eight"]
    losses = [[told["loss"][length] for told in found.values()] for length in ("128", "512")]
    rho, _ = rank_correlation(*losses)
    gain = {name: told["gain"] for name, told in found.items()}
    agree(
        told(
            "(rank correlation N# of their losses), and Mamba's gain is N# instead of N#, the "
            "LSTM's N# instead of N# ("
        ),
        [rho, *(gain[name][n][0] for name in ("mamba", "lstm") for n in ("512", "128"))],
    )


def test_gains_in_seconds():
    seconds = gains("laptop", "seconds")
    written = told("the hybrid (N#) and the LSTM (N#) lead, linear attention (N#) is behind, and")
    agree(written, [seconds[family] for family in ("hybrid", "lstm", "linear")])


def peers(gpu: bool) -> list[dict]:
    return [
        row
        for row in read_table(RESULTS / "peers.jsonl")
        if gpu == ("H100" in row["device"]) and not row["compiled"]
    ]


def ours_is_smaller(row: dict) -> float:
    """How many times as much memory a training step of the peer allocates."""
    return row["peer_memory_bytes"] / row["memory_bytes"]


def ends(rows: list[dict], program: str) -> list[float]:
    ratios = [row["ratio"] for row in rows if row["program"] == program]
    return [min(ratios), max(ratios)]


def test_times_beside_pytorch_on_an_h100():
    rows = peers(gpu=True)
    agree(
        told(
            "On an H100 every family trains N# to N# times as fast as its peer, reads prompts "
            "N# to N# times and decodes N# to N# times as fast"
        ),
        [*ends(rows, "train_step"), *ends(rows, "prefill"), *ends(rows, "decode")],
    )
    large = [row for row in rows if row["width"] == 512 and row["program"] == "train_step"]
    memory = [ours_is_smaller(row) for row in large]
    agree(
        told("At d 512 a training step needs N# to N# times less memory than theirs"),
        [min(memory), max(memory)],
    )


def test_times_beside_pytorch_on_two_cores():
    rows = peers(gpu=False)
    recurrences = [row for row in rows if row["family"] not in ("dense", "moe")]
    shares = [1 / ours_is_smaller(row) for row in recurrences if row["program"] == "train_step"]
    agree(
        told(
            "On two CPU cores the recurrences train N# to N# times as fast as eager PyTorch's in "
            "N# to N# times the memory"
        ),
        [*ends(recurrences, "train_step"), min(shares), max(shares)],
    )
    (least,) = told("and every family decodes at least N# times as fast")
    decoded = ends(rows, "decode")[0]
    assert float(least) <= decoded < float(least) + 0.1


def test_dense_and_moe_beside_pytorch_on_two_cores():
    rows = {
        (row["family"], row["seq_len"], row["program"]): row
        for row in peers(gpu=False)
        if row["family"] in ("dense", "moe")
    }

    def at(seq_len: int, program: str) -> list[float]:
        return [rows[family, seq_len, program]["ratio"] for family in ("dense", "moe")]

    def memory(seq_len: int) -> list[float]:
        steps = (rows[family, seq_len, "train_step"] for family in ("dense", "moe"))
        return [1 / ours_is_smaller(row) for row in steps]

    short, shares = at(256, "train_step"), memory(256)
    agree(
        told("Dense attention trains N# times as fast as eager PyTorch at 256 tokens, in N# times"),
        [short[0], shares[0]],
    )
    agree(told("MoE N# times as fast in N# times the memory"), [short[1], shares[1]])
    agree(told("they read prompts N# and N# times as fast"), at(256, "prefill"))
    agree(
        told("At 8192 tokens dense attention trains N# and MoE N# times as fast"),
        at(8192, "train_step"),
    )
    agree(told("on another day), in N# and N# times the memory"), memory(8192))


def test_recurrences_beside_torch_compile_on_two_cores():
    eager, compiled = (
        {
            row["family"]: row["ratio"]
            for row in read_table(RESULTS / "peers.jsonl")
            if (row["device"], row["shape"], row["program"], row["compiled"])
            == ("cpu", "medium", "train_step", mode)
        }
        for mode in (False, True)
    )
    agree(
        told(
            "Gated DeltaNet trains N# times as fast; it makes Mamba-2's peer N# times as fast, and "
            "Mamba's N# times as slow"
        ),
        [
            compiled["gated_deltanet"],
            eager["mamba2"] / compiled["mamba2"],
            compiled["mamba"] / eager["mamba"],
        ],
    )


def test_shares_of_the_best_matmuls():
    table = read_table(RESULTS / "bench.jsonl")
    steps = [row for row in table if row["program"] == "train_step" and row["width"] == 256]
    shares = {row["family"]: row["matmul_share"] for row in steps}
    both, experts, mamba = map(
        float,
        told(
            "training steps at width 256 run at N# of that rate for dense and linear attention, at "
            "N# for MoE and at N# for Mamba"
        ),
    )
    written = {"dense": both, "linear": both, "moe": experts, "mamba": mamba}
    assert shares == pytest.approx(written, abs=0.03)


@pytest.mark.slow  # a thousand fits of two arms
def test_gains_of_muon_over_adamw():
    adam = [r for r in read_rows(RESULTS / "ladder.jsonl") if r.labels["family"] == "dense"]
    muon = read_rows(RESULTS / "ladder_muon.jsonl")
    rows = [*adam, *muon]
    columns = {
        "arch": [str(row.labels["family"]) for row in rows],
        "loss": [row.record.loss for row in rows],
        "N": [row.record.params["active_non_embedding"] for row in rows],
        "D": [row.record.tokens for row in rows],
        "flops": [row.record.flops["executed"] for row in rows],
        "run": [row.record.run.trunk for row in rows],
        "seed": [row.record.run.seed for row in rows],
    }
    (found,) = compare(columns, baseline="dense", n="N", d="D")
    one, two, three = found.ceg
    agree(
        told("of the update: N# [N#, N#] at N# × 10¹¹ FLOPs, N# [N#, N#] in the middle"),
        [one.value, one.low, one.high, one.budget / 1e11, two.value, two.low, two.high],
    )
    agree(
        told("and N# [N#, N#], not told from 1, at its end"), [three.value, three.low, three.high]
    )
    assert three.low < 1 < two.low


def test_the_cost_of_muon_s_update():
    runs = [row.record.run for row in read_rows(RESULTS / "ladder_muon.jsonl")]
    updates = [run.optim.matmul_flops(run.model) * run.budget.steps for run in runs]
    shares = [u / (training_flops(r)["executed"] - u) for u, r in zip(updates, runs, strict=True)]
    agree(told("matmuls are N# to N# of a training step"), [min(shares), max(shares)])


def test_rates_over_width_with_muon_and_over_depth_with_completep():
    for name, sizes in (("muon", ("32", "64")), ("depth", ("2", "8"))):
        found = tuned(read_rows(RESULTS / f"lr_transfer_{name}.jsonl"))
        assert not found["refused"]
        best = [of["best"][size] for _, of in sorted(found["families"].items()) for size in sizes]
        if name == "muon":
            written = told("Muon's best rates are N# and N#, and N# and N#. CompleteP")
        else:
            with_rule = "N# and N# for `dense`, N# and N# for `gated_deltanet`"
            ruled, free = told(with_rule), told("(`--depth-rule none`): N# and N#, N# and N#")
            written = [*ruled[:2], *free[:2], *ruled[2:], *free[2:]]
        agree(written, best)
