"""From rows, laws and runs to a recommendation, its page and its figure."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import synthetic

from isoflop.experiments.cli.main import main
from isoflop.figures import choice as drawn
from isoflop.figures.report import choice as page
from isoflop.models.errors import UserError
from isoflop.models.families import zoo
from isoflop.sim.compare import candidates
from isoflop.sim.compare.recommend import Owner, Recommendation, pays_words, recommend
from isoflop.sim.compare.served import Place, Traffic, assumed
from isoflop.sim.compare.treated import treated
from isoflop.sim.cost.hardware import device, flat
from isoflop.sim.cost.prices import api
from isoflop.sim.cost.training import training, tuning_flops
from isoflop.sim.laws.published import PUBLISHED

H100 = device("H100")
MEASURED = """model,score,questions,params,p95,per_query,memory,source,date
large,0.80,400,70e9,1.9,0.02,160e9,here,2026-05
<middle>,0.72,400,8e9,0.4,0.002,20e9,here,2026-05
twin,0.715,400,8e9,0.4,0.002,20e9,here,2026-05
small,0.55,400,1e9,0.1,0.0004,4e9,here,2026-05
"""
TRAFFIC = Traffic(prompt=500, answer=150, rate=10.0, p95=0.5)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "models.csv"
    path.write_text(MEASURED, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def found() -> Recommendation:
    columns = [line.split(",") for line in MEASURED.splitlines()]
    table = dict(zip(columns[0], zip(*columns[1:], strict=True), strict=True))
    options, _ = candidates.rows(table, "score")
    return recommend(
        options, [Place(H100, 1, "bf16")], TRAFFIC, {"p95": 0.5, "per_query": 0.01},
        quality="score", vendors=[api("gpt-5-mini")],
    )  # fmt: skip


# candidates


def test_a_rows_error_is_its_own_or_that_of_its_questions():
    table = {"model": ["a", "b", "c"], "acc": [0.5, 0.5, 0.5], "acc_se": [0.03, "", ""],
             "questions": ["", 100, ""]}  # fmt: skip
    options, dropped = candidates.rows(table, "acc")
    assert not dropped
    spread = [float(o.quality.std()) for o in options]
    assert spread == pytest.approx([0.03, 0.05, 0.0], rel=0.05)
    assert "taken as exact" in options[2].basis
    assert options[0].buy == "test a on more questions"


def test_rows_that_cannot_be_candidates_are_told():
    table = {"model": ["a", "", "c", "d"], "acc": [0.5, 0.5, "high", 7], "questions": [9, 9, 9, 9]}
    options, dropped = candidates.rows(table, "acc")
    assert [o.name for o in options] == ["a"]
    assert [d.reason for d in dropped] == [
        "model is empty",
        "acc is not a number: 'high'",
        "acc is no accuracy in 0 to 1, which questions need: 7",
    ]


def test_a_published_model_is_known_by_any_of_its_names_and_others_by_their_parameters():
    names = ["meta-llama/Meta-Llama-3.1-8B", "Llama-2-7b-hf", "gemma-2-9b", "mine"]
    table = {"model": names, "quality": [0.1, 0.2, 0.3, 0.4], "params": ["", "", "", 2e9]}
    options, dropped = candidates.rows(table)
    assert not dropped
    assert [o.params for o in options] == [8_030_261_248, 6_738_415_616, 9_241_705_984, 2e9]
    assert [o.model is None for o in options] == [False, False, False, True]


def test_a_rows_own_config_is_read_and_one_that_cannot_be_drops_the_row(tmp_path):
    config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100,
              "num_attention_heads": 8, "intermediate_size": 128}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "other.json").write_text("{}")
    table = {"model": ["a", "b"], "quality": [1, 2],
             "config": [str(tmp_path), str(tmp_path / "other.json")]}  # fmt: skip
    options, dropped = candidates.rows(table)
    assert options[0].model.d_model == 64
    assert "config cannot be read" in dropped[0].reason


def test_sizes_on_a_law_have_its_loss_and_int4_fewer_effective_parameters():
    law = PUBLISHED["chinchilla-corrected"].law
    small, large = candidates.published("chinchilla-corrected", (1e9, 8e9), 2e12)
    assert float(small.quality[0]) == pytest.approx(-float(law(1e9, 2e12)))
    assert np.ptp(small.quality) == 0
    assert float(large.formats["int4"][0]) == pytest.approx(-float(law(0.923 * 8e9, 2e12)))
    assert large.train_flops == 6 * 8e9 * 2e12
    assert "without an interval" in small.basis


def test_a_gain_that_is_carried_is_an_assumption_and_as_good_as_that_much_compute():
    law = PUBLISHED["chinchilla-corrected"].law
    (option,) = candidates.carried("chinchilla-corrected", "mamba", (2.0, 2.0, 2.0), (1e9,), 2e10)
    assert float(option.quality[0]) == pytest.approx(-float(law(2**0.5 * 1e9, 2**0.5 * 2e10)))
    assert "ASSUMPTION" in option.basis
    wide = candidates.carried("chinchilla-corrected", "mamba", (1.0, 2.0, 4.0), (1e9, 8e9), 2e10)
    assert all(o.quality.std() > 0 for o in wide)
    assert np.corrcoef(wide[0].quality, wide[1].quality)[0, 1] > 0.99  # one gain in a world


def test_arms_of_the_lab_are_at_the_scale_of_their_runs():
    rows = synthetic.grid(
        families=("dense", "mamba"), sizes=((32, 2), (48, 2), (64, 2)), steps=(500, 1000, 2000)
    )
    options, out = candidates.lab(rows)
    assert not out
    assert len(options) == 6
    assert all(o.basis.startswith("lab: law of") and o.model is not None for o in options)
    best = max(options, key=lambda o: o.quality.mean())
    assert best.name == "mamba 64×2"
    with pytest.raises(UserError, match="no family 'retnet'"):
        candidates.lab(rows, ["retnet"])


def compressed(widths=(32, 48), lengths=(1e5, 2e5)):
    """A table as `isoflop run compress` writes it, of losses on a law and three treatments."""
    treatments = {
        "weights int4 gptq": (0.01, 0.3),
        "states int8": (0.0, 0.8),
        "prune 0.5": (0.05, 0.7),
    }
    return [
        {"family": "dense", "treatment": name, "width": width, "depth": 2, "runs": 2, "D": tokens,
         "N": (n := float(zoo.FAMILIES["dense"](width, 2, 256).cost(1).params)),
         "loss": 9.0 * n**-0.05 * tokens**-0.06, "change": change, "se": 0.001,
         "resident_bytes": share, "train_flops": 1.0}
        for width in widths for tokens in lengths for name, (change, share) in treatments.items()
    ]  # fmt: skip


def test_treated_runs_stand_beside_plain_ones_with_their_change_and_their_ledgers_bytes():
    options, out = treated(compressed())
    assert not out
    assert len(options) == 8  # at the most tokens: two sizes, plain and three treatments each
    plain, int4, _, pruned = options[:4]
    assert (plain.name, int4.name) == ("dense 32×2", "dense 32×2, weights int4 gptq")
    change = plain.quality - int4.quality
    assert change.mean() == pytest.approx(0.01, abs=2e-4)
    assert change.std() == pytest.approx(0.001, rel=0.1)
    assert int4.costs["memory"] == pytest.approx(0.3 * plain.costs["memory"])
    state = 2 * 2 * 128 * 32  # keys and values of two layers, 128 tokens, 32 wide
    assert plain.costs["memory"] == pytest.approx(4 * (plain.params + state), rel=1e-4)
    assert [o.engine for o in options[:4]] == [{}, {"weights": "int4"}, {"cache": "int8"}, {}]
    assert pruned.facts["treatment"] == "prune 0.5"


def test_a_family_whose_losses_have_no_error_or_no_shape_is_left_out():
    with pytest.raises(UserError, match="dense is left out: an error of its losses needs more"):
        treated(compressed(widths=(32,)))
    strange = [{**row, "family": "mine"} for row in compressed()]
    assert treated([*compressed(), *strange])[1] == ["mine is left out: its shapes are not known"]


def test_a_treated_model_is_served_once_in_its_own_format(tmp_path, capsys):
    path = tmp_path / "compress.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in compressed()))
    args = ["choose", "--records", str(path), "--only", "32×2", "--chips", "1", "--formats", "bf16",
            "fp8", "--memory", "80kB", "--answer", "20", "--prompt", "20"]  # fmt: skip
    assert main([*args, "--json", str(tmp_path / "out.json")]) == 0
    made = json.loads((tmp_path / "out.json").read_text())["candidates"]
    places = {c["name"]: c["memory"][1] for c in made}
    assert len(places) == 7
    assert [n for n in places if "int4" in n] == ["dense 32×2, weights int4 gptq, int4, 1 × H100"]
    assert capsys.readouterr().out.startswith("dense 32×2, weights int4 gptq is the choice in 100%")


# serving


@pytest.mark.parametrize("params", [1e8, 1e9, 8e9, 7e10])
def test_an_assumed_shape_has_about_the_parameters_and_splits_over_8_chips(params):
    model = assumed(params)
    assert model.cost(1).params == pytest.approx(params, rel=0.15)
    assert all(block.mixer.n_heads % 8 == 0 for block in model.blocks)


def test_a_shape_that_there_is_none_of_is_refused():
    with pytest.raises(UserError, match="no shape of dense has about 10k parameters"):
        assumed(1e4)


def test_what_is_served_is_limited_priced_and_left_out_where_it_does_not_fit():
    places = [Place(H100, 1, "bf16")]
    with pytest.raises(UserError, match=r"nothing can be served: 70B, .* lacks 67.4 GB"):
        recommend(candidates.published("chinchilla-corrected", (7e10,), 2e12), places, TRAFFIC, {})
    options = candidates.published("chinchilla-corrected", (1e9, 3e9), 2e12)
    result = recommend(
        options, places, Traffic(200, 50, 2.0, p95=2.0), {"p95": 2.0},
        owner=Owner(months=10.0, utilisation=0.5), vendors=[api("ministral-8b")],
    )  # fmt: skip
    assert result.choice.winner.candidate.name == "3B, bf16, 1 × H100"
    bill = training(6 * 3e9 * 2e12, H100, 1, 0.5).dollars
    parts = result.monthly["3B, bf16, 1 × H100"]
    assert parts["training"] == pytest.approx(bill[1] / 10)
    assert parts["serving"] == pytest.approx(H100.price.median * 730)
    (one, other) = result.choice.standings
    assert one.costs["memory"][1] > other.costs["memory"][1]
    assert any("assumed shapes" in note for note in result.notes)
    assert any("published law is a point" in note for note in result.notes)
    assert result.prices["H100"].date == "2026-05"


def test_a_chip_without_a_published_power_or_price_says_so_and_no_limit_is_put_on_it(capsys):
    """Google publishes no power of v5e; B200 has no dated price here."""
    options = candidates.published("chinchilla-corrected", (1e9, 3e9), 2e12)
    traffic, tpu = Traffic(200, 50, 1.0), [Place(device("v5e"), 1, "bf16")]
    result = recommend(options, tpu, traffic, {})
    told = "energy per query is not known of 1B, bf16, 1 × v5e and 1 more (no power of 'v5e' is"
    assert any(note.startswith(told) and "not compared" in note for note in result.notes)
    assert all("joules" not in s.costs for s in result.choice.standings)
    with pytest.raises(UserError, match=r"energy per query is not known of 1B.* leave it out"):
        recommend(options[:1], tpu, traffic, {"joules": 5.0})
    asked = ["choose", "--law", "chinchilla-corrected", "--sizes", "1e9", "3e9", "--chips", "1",
             "--chip", "B200", "--prompt", "200", "--answer", "50"]  # fmt: skip
    assert main(asked) == 2
    said = capsys.readouterr().err
    assert "B200 has no dated price here; pass a Price of your own, or --price" in said
    assert said.count("\n") == 1


# the recommendation


def test_equal_models_are_not_resolved_and_the_limit_takes_the_best_out(found):
    assert found.choice.contenders == ("<middle>", "twin")
    assert found.choice.models["large"] == 0.0
    assert "not resolved between <middle>" in found.choice.words()
    assert {m.candidate for m in found.choice.measurements} == {"<middle>", "twin"}


def test_a_month_is_the_price_per_query_times_its_queries(found):
    queries = 10.0 * 730 * 3600
    assert found.volume == pytest.approx(queries * 650)
    assert found.monthly["<middle>"] == {"serving": pytest.approx(0.002 * queries)}
    listed = (500 * 0.25 + 150 * 2.0) / 1e6 * queries
    assert found.monthly["gpt-5-mini"] == {"price list": pytest.approx(listed)}


def test_tuning_is_paid_once_and_breaks_even_at_a_volume():
    table = {"model": ["own", "other"], "quality": [0.8, 0.5], "params": [1e9, 1e9],
             "p95": [0.1, 0.1], "per_query": [1e-5, 1e-5]}  # fmt: skip
    options, _ = candidates.rows(table)
    result = recommend(options, [Place(H100, 1, "bf16")], TRAFFIC, {}, vendors=[api("gpt-5-mini")],
                       owner=Owner(tune_tokens=1e10, months=6.0))  # fmt: skip
    once = training(6e19, H100, 1, 0.4).dollars[1]
    assert result.monthly["own"]["tuning"] == pytest.approx(once / 6)
    each = (500 * 0.25 + 150 * 2.0) / 1e6 - 1e-5
    (_, middle, _) = result.pays["own", "gpt-5-mini"]
    assert middle.first == pytest.approx(once / 6 / each * 650, rel=1e-6)
    assert pays_words(result.pays["own", "gpt-5-mini"], 6.0).startswith("from ")


def test_a_cascade_pays_the_cheapest_for_all_and_the_chosen_for_a_share(table):
    columns = [line.split(",") for line in MEASURED.splitlines()]
    rows = dict(zip(columns[0], zip(*columns[1:], strict=True), strict=True))
    options, _ = candidates.rows(rows, "score")
    result = recommend(options, [Place(H100, 1, "bf16")], TRAFFIC, {}, owner=Owner(cascade=0.05))
    queries = 10.0 * 730 * 3600
    assert result.monthly["small, 5% to large"]["serving"] == pytest.approx(
        (0.0004 + 0.05 * 0.02) * queries
    )


def test_distilling_pays_the_teachers_pass_too():
    assert tuning_flops(1e9, 1e10) == 6e19
    assert tuning_flops(1e9, 1e10, teacher=7e10) == 6e19 + 2 * 7e10 * 1e10
    with pytest.raises(UserError, match="teacher=-1 must be 0 or more"):
        tuning_flops(1e9, 1e10, -1)


def test_the_json_has_sources_dates_and_every_share(found):
    told = json.loads(json.dumps(found.json()))
    assert {c["name"]: c["source"] for c in told["candidates"]}["twin"] == "here"
    assert sum(c["chosen"] for c in told["candidates"]) == pytest.approx(1.0)
    assert told["prices"]["gpt-5-mini"]["date"] == "2026-08"


def test_an_own_rent_stands_before_the_listed_one():
    options = candidates.published("chinchilla-corrected", (1e9, 3e9), 2e10)
    cheap = Place(H100, 1, "bf16", flat(1.0, "2026-11", "mine"))
    result = recommend(options, [cheap], Traffic(200, 50, 1.0), {})
    assert result.monthly["3B, bf16, 1 × H100"]["serving"] == pytest.approx(730.0)
    assert result.prices["H100"].source == "mine"


# the command


def test_the_command_prints_decision_measurements_prices_and_writes_all(table, tmp_path, capsys):
    out = tmp_path / "choice.html"
    args = ["choose", str(table), "--quality", "score", "--p95", "0.5", "--per-query", "0.01",
            "--rate", "10", "--out", str(out), "--json", str(tmp_path / "x.json")]  # fmt: skip
    assert main(args) == 0
    said = capsys.readouterr().out
    assert said.startswith("not resolved between <middle>")
    assert "would settle it: test <middle> on more questions" in said
    assert "costs less than gpt-5-mini" in said
    for name in ("choice.html", "choice.svg", "choice.png", "choice.json", "x.json"):
        assert (tmp_path / name).stat().st_size > 0


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (
            ["--p95", "0.05"],
            "P95 latency of at most 0.05 s binds: no candidate meets it, and small",
        ),
        (["--p95", "-1"], "the limit of p95 must be a number above 0"),
        (["--rate", "-3"], "--rate and --volume must be above 0"),
        (["--rate", "1", "--volume", "1e9"], "--rate and --volume say the same"),
        (["--memory", "lots"], "--memory must be a number of bytes as in 24GB"),
        (["--price", "-2"], "rent of H100 (--price) must be 0 or more dollars"),
        (["--own", "--chip", "v5e"], "there is no price of a bought v5e"),
        (["--own", "--price", "2"], "--own and --price both say"),
        (["--cascade", "1.5"], "the share handed on must be a share in [0, 1]"),
        (["--api", "gpt-99"], "there is no listed price of 'gpt-99'"),
        (["--chip", "H9"], "there is no device 'H9'"),
        (["--busy", "2"], "--busy must be a share in (0, 1]"),
        (["--law", "kaplan"], "candidates come from one of a file"),
        (["--quality", "accuracy"], "column 'accuracy' must be in the table"),
        (["--only", "giant"], "--only giant leaves no candidate: they are 'large', '<middle>'"),
        (["--carry", "mamba"], "give --law too"),
        (["--months", "0", "--tune-tokens", "1e9"], "months=0 must be above 0"),
        (["--out", "choice.txt"], "--out must end in .html"),
    ],
)
def test_a_mistake_is_one_line(table, args, told, capsys):
    wanted = [] if "--quality" in args else ["--quality", "score"]
    assert main(["choose", str(table), *wanted, *args]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1


def test_a_quality_column_of_ties_only_is_refused(tmp_path, capsys):
    path = tmp_path / "ties.csv"
    path.write_text("model,quality,p95,per_query\na,1,.1,.1\nb,1,.1,.1\n")
    assert main(["choose", str(path)]) == 2
    assert "all 2 candidates have one quality, 1, without an error" in capsys.readouterr().err


# page and figure


def test_the_page_holds_the_worlds_and_escapes_names(found, tmp_path):
    text = page.build(found, tmp_path / "c.html", ["<b>warning</b>"]).read_text(encoding="utf-8")
    assert "&lt;middle&gt;" in text
    assert "<middle>" not in text
    assert "&lt;b&gt;warning" in text
    assert re.findall(r'value="(\w+)" selected', text) == ["p95"]  # the first limit
    assert text.count("<script") == text.count("</script") == 2
    data = json.loads(re.search(r"^const data = (.*);$", text, re.MULTILINE)[1])
    assert data["limits"] == {"p95": 0.5, "per_query": 0.01}
    assert all(isinstance(v, float) or len(v) == page.WORLDS for v in data["worlds"]["quality"])
    assert {row["way"] for row in json.loads(
        re.search(r"^const specs = (.*);$", text, re.MULTILINE)[1]
    )["bill"]["data"]["values"]} == set(found.monthly)  # fmt: skip


def test_the_figure_is_titled_by_the_decision_and_is_the_same_each_time(found, tmp_path):
    one, two = (drawn.draw(found, tmp_path / f"{n}.png") for n in "ab")
    assert one[0].read_bytes() == two[0].read_bytes()
    assert "not resolved between" in one[0].read_text(encoding="utf-8")
    numbers = json.loads(one[2].read_text(encoding="utf-8"))
    assert numbers["shares"] == pytest.approx(dict(found.choice.models))


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 420])
def test_the_browser_finds_the_same_choice_without_a_console_error(found, tmp_path, width):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium here")
    path = page.build(found, tmp_path / "c.html")
    run = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},2400",
         "--enable-logging=stderr", "--virtual-time-budget=8000", "--dump-dom", f"file://{path}"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert ":CONSOLE" not in run.stderr
    verdict = re.search(r'id="verdict"[^>]*>([^<]*)<', run.stdout)[1]
    shares = [int(x) for x in re.findall(r"\((\d+) %\)", verdict)]
    assert verdict.startswith("Not resolved between &lt;middle&gt;")
    for share, name in zip(shares, found.choice.contenders, strict=True):
        assert share / 100 == pytest.approx(found.choice.models[name], abs=0.1)  # 200 of 2,000
    assert run.stdout.count("<svg") >= 3
