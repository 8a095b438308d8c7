"""What a budget buys: the tables, their bands, the page that holds them and the command."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import synthetic
import vl_convert
from browser import CHROMIUM, chromium

from isoflop.experiments.claims import RESULTS
from isoflop.experiments.cli.main import main
from isoflop.figures.report import explorer as page
from isoflop.sim.compare import explorer
from isoflop.sim.compare.study import Study
from isoflop.sim.cost.flops import WORK, flops_at, training_flops
from isoflop.sim.records.store import read_rows, write_rows

SMALL = {"sizes": ((32, 2), (48, 2), (64, 4), (96, 4)), "steps": (500, 1000, 2000), "seeds": (0, 1)}
FAMILIES = ("dense", "mamba")
DRAWS = 60


@pytest.fixture(scope="module")
def rows():
    found = []
    for row in synthetic.grid(families=FAMILIES, **SMALL):
        seconds = 1e-7 * row.record.params["active"]
        found.append(row.model_copy(update={"labels": row.labels | {"step_seconds": seconds}}))
    return found


@pytest.fixture(scope="module")
def found(rows):
    return explorer.of_rows(rows, DRAWS)


@pytest.fixture(scope="module")
def along(found):
    return {name: found.along(name, "executed", 128) for name in FAMILIES}


@pytest.fixture(scope="module")
def table():
    """Anybody's runs: names that would be markup, and losses from a known surface."""
    rng = np.random.default_rng(0)
    names = ["arch", "N", "D", "loss", "seed"]
    cells = [
        (arch, n, d, 1.2 + scale * (9 / n**0.3 + 20 / d**0.3) * math.exp(rng.normal(0, 0.003)), s)
        for arch, scale in (("<b>a</b>", 1.0), ("b & c", 1.1))
        for n in (1e4, 3e4, 1e5, 3e5)
        for d in (1e6, 4e6, 16e6)
        for s in (0, 1)
    ]
    return dict(zip(names, map(list, zip(*cells, strict=True)), strict=True))


def between(along, budgets):
    return (budgets >= along.window[0]) & (budgets <= along.window[1])


def width(along):
    return along.loss[2] / along.loss[1] - 1


# the tables


def test_optima_are_those_of_the_study(rows, found, along):
    study = Study(rows, DRAWS)
    for name, line in along.items():
        at = [point for point in study.optima(name) if point["measured"]]
        assert at
        for point in at:
            budgets = found.budgets("executed")
            for told, key in ((line.N, "N*"), (line.D, "D*"), (line.loss, "L*")):
                here = np.exp(np.interp(*map(np.log, (point["flops"], budgets, told[0]))))
                # between budgets a power law is a line; the cost model's bend is small there
                assert here == pytest.approx(point[key][0], rel=2e-3)


def test_optima_cost_the_budget_and_have_the_law_s_loss(found, along):
    for name, line in along.items():
        budgets = found.budgets("executed")
        np.testing.assert_allclose(line.cost(line.N[0], line.D[0]), budgets, rtol=1e-9)
        np.testing.assert_allclose(found.fits[name].law(line.N[0], line.D[0]), line.loss[0])


def test_no_other_size_of_the_same_cost_has_less_loss(found, along):
    line, law = along["dense"], found.fits["dense"].law
    for n, c, least in zip(line.N[0], found.budgets("executed"), line.loss[0], strict=True):
        for other in (0.8 * n, 1.25 * n):
            d = (c / line.cost(other, 1.0)) ** (1 / line.cost.tokens)
            assert law(other, d) > least


def test_bands_hold_the_estimate_and_widen_outside_the_runs(found, along):
    budgets = found.budgets("executed")
    for line in along.values():
        for told in (line.N, line.D, line.loss):
            assert (told[1] <= told[0] * (1 + 1e-9)).all()
            assert (told[0] <= told[2] * (1 + 1e-9)).all()
        inside, wide = between(line, budgets), width(line)
        for factor, times in ((10, 2), (50, 4)):
            far = budgets > factor * line.window[1]
            assert wide[far].min() > times * np.median(wide[inside])
        assert (np.diff(wide[budgets > 2 * line.window[1]]) > 0).all()


def test_beyond_the_runs_the_band_holds_the_truth_that_the_law_without_e_misses(found, along):
    """The synthetic surface has E = .9."""
    far = found.budgets("executed") > 10 * along["dense"].window[1]
    for name, line in along.items():
        at = zip(line.N[0], line.D[0], strict=True)
        truth = np.array([synthetic.surface(n, d, name) for n, d in at])[far]
        assert (truth > 1.02 * line.loss[0][far]).all()
        assert ((line.loss[1][far] <= truth) & (truth <= line.loss[2][far])).all()


def test_a_longer_context_costs_attention_more_and_a_recurrence_the_same(rows, found):
    assert found.contexts == [128, 512, 2048, 8192, 32768]
    for row in rows[:3]:
        assert flops_at(row.record.run, 128) == training_flops(row.record.run)
    grew = {
        name: found.rows[name]["executed at 32768"] / found.rows[name]["executed at 128"]
        for name in FAMILIES
    }
    assert grew["dense"].min() > 5
    assert grew["mamba"].max() < 1.05
    dense, far = found.along("dense", "executed", 128), found.along("dense", "executed", 32768)
    assert (far.loss[0] > dense.loss[0]).all()  # the same budget buys less
    assert set(found.costs["6ND"]) == {0}
    assert all(set(found.costs[way]) == set(found.contexts) for way in WORK)


def test_states_and_steps_are_the_configurations_own(found):
    for name in FAMILIES:
        shapes = found.shapes[name]
        assert [s.n for s in shapes] == sorted({int(n) for n in found.rows[name]["N"]})
        for shape in shapes:
            assert shape.state_bytes(512) == 4 * shape.model.state_size(512)
    dense, mamba = found.shapes["dense"][0], found.shapes["mamba"][0]
    assert dense.state_bytes(2048) == pytest.approx(16 * dense.state_bytes(128), rel=1e-3)
    assert mamba.state_bytes(2048) == mamba.state_bytes(128)


def test_cells_are_means_over_seeds(rows, found):
    cells = found.cells("dense")
    points = Study(rows, DRAWS).families["dense"]
    assert sorted(c["loss"] for c in cells) == pytest.approx(sorted(p.loss for p in points))
    assert sum("seconds" in cell for cell in cells) == len(cells)


def test_a_cost_that_does_not_grow_has_no_optimum(table):
    flat = dict(table) | {"dollars": [1.0] * len(table["N"])}
    one = explorer.of_columns(
        flat, arch="arch", costs=("dollars",), loss="loss", n="N", d="D", draws=DRAWS
    )
    assert one.along("b & c", "dollars", 0) is None


def test_a_table_without_flops_counts_six_n_d_and_one_without_architectures_is_one(table):
    one = explorer.of_columns(table, arch=None, costs=(), loss="loss", n="N", d="D", draws=DRAWS)
    assert one.families == ["all runs"]
    np.testing.assert_allclose(one.table["6ND"], 6 * one.table["N"] * one.table["D"])


# the page


@pytest.fixture(scope="module")
def built(found, tmp_path_factory):
    recall = [r for r in read_rows(RESULTS / "recall.jsonl") if r.labels["family"] in FAMILIES]
    out = tmp_path_factory.mktemp("explorer") / "page.html"
    return page.build({"small": found}, out, recall, ["<i>told</i>"])


def embedded(path, name):
    return json.loads(re.search(rf"^const {name} = (.*);$", path.read_text("utf-8"), re.M)[1])


def test_the_page_holds_the_tables_and_needs_nothing_else(built, found, along):
    text = built.read_text(encoding="utf-8")
    study = embedded(built, "data")["studies"]["small"]
    assert study["budgets"]["executed"] == pytest.approx(found.budgets("executed"), rel=1e-5)
    line = study["families"]["mamba"]["along"]["executed"]["128"]
    for key, values in (("N", along["mamba"].N), ("D", along["mamba"].D)):
        np.testing.assert_allclose(line[key], values, rtol=1e-4)
    assert "&lt;i&gt;told" in text
    assert text.count("<script") == text.count("</script") == 2
    head = text[: text.index("<script>")]
    assert not [x for x in re.findall(r'(?:src|href)="([^"]+)"', head) if not x.startswith("#")]


def test_every_chart_of_the_page_is_valid(built):
    specs = embedded(built, "specs")
    assert set(specs) == {"loss", "size", "tokens", "state", "recall"}
    for spec in specs.values():
        vl_convert.vegalite_to_vega(spec)


def test_names_of_anybody_s_are_text(table, tmp_path):
    one = explorer.of_columns(table, arch="arch", costs=(), loss="loss", n="N", d="D", draws=DRAWS)
    text = page.build({"<u>mine</u>": one}, tmp_path / "p.html").read_text(encoding="utf-8")
    for name in ("<b>a</b>", "<u>mine</u>"):
        assert name not in text
    assert "&lt;b&gt;a&lt;/b&gt;" in text
    assert embedded(tmp_path / "p.html", "data")["studies"]["<u>mine</u>"]["contexts"] == []


# the command


def csv(path, table):
    lines = [
        ",".join(table),
        *(",".join(map(str, row)) for row in zip(*table.values(), strict=True)),
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_command_takes_records_and_tables_together(rows, table, tmp_path, capsys):
    write_rows(tmp_path / "mine.jsonl", [r for r in rows if r.labels["family"] == "dense"])
    yours = csv(tmp_path / "yours.csv", table | {"loss": [*table["loss"][:-1], "nan"]})
    out = tmp_path / "page.html"
    args = ["explore", str(tmp_path / "mine.jsonl"), str(yours), "--draws", "40", "--out", str(out)]
    assert main(args) == 0
    told = capsys.readouterr().out
    assert told.endswith(f"{out}\n")
    assert "yours: 1 rows left out" in told
    studies = embedded(out, "data")["studies"]
    assert list(studies) == ["mine", "yours"]
    assert list(studies["yours"]["costs"]) == ["6ND"]
    assert studies["mine"]["flops"] == "executed"


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["nowhere.csv"], "nowhere.csv must be a file of runs, and there is none"),
        (["TABLE", "--out", "page.txt"], "--out must end in .html"),
        (["TABLE", "--draws", "3"], "--draws must be 20 to 100,000"),
        (["TABLE", "--flops", "C"], "column 'C' must be in the table"),
        (["TABLE", "--arch", "model"], "column 'model' must be in the table"),
        (["TABLE", "TABLE"], "two files have one name"),
        (["FEW"], "no law of"),
    ],
)
def test_a_mistake_is_one_line(args, told, table, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    csv(tmp_path / "table.csv", table)
    csv(tmp_path / "few.csv", {name: column[:3] for name, column in table.items()})
    places = {"TABLE": "table.csv", "FEW": "few.csv"}
    assert main(["explore", *(places.get(word, word) for word in args)]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1


# in a browser


@pytest.fixture
def view(tmp_path):
    with chromium(tmp_path / "profile") as found:
        found.size(1280)
        yield found


READY = "document.querySelectorAll('.chart svg.marks').length >= 5"
MAMBA = "#family=mamba&cost=causal&context=2&budget=20"


def number(text):
    """What the page writes for people, as a number."""
    text = text.replace(" ", " ").strip()
    raised = re.fullmatch(r"([\d.]+) × 10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)(?: .*)?", text)
    if raised:
        power = raised[2].translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
        return float(raised[1]) * 10.0 ** int(power)
    digits, unit = re.match(r"([\d.]+) ?([a-zA-Zµ]*)", text).groups()
    sizes = {"k": 1e3, "M": 1e6, "G": 1e9, "kB": 1e3, "MB": 1e6, "B": 1, "s": 1, "min": 60,
             "h": 3600, "ms": 1e-3, "": 1}  # fmt: skip
    return float(digits) * sizes[unit]


def cards(view):
    """What the page answers, by its heading."""
    return dict(
        view.value(
            "[...document.querySelectorAll('#answer > div')].map((box) => "
            "[box.querySelector('dt').textContent, box.querySelector('dd').firstChild.data])"
        )
    )


def spread(text):
    return [number(part) for part in re.split(r" \[|, |\]", text) if part]


def press(view, times):
    for _ in range(times):
        view.press("ArrowRight")


browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")


@browser
@pytest.mark.slow
def test_the_browser_shows_what_python_computes(built, found, view):
    view.open(built.as_uri() + MAMBA, READY)
    told = cards(view)
    budget = found.budgets("causal")[20]
    line = found.along("mamba", "causal", 2048)
    for name, values in (("N*, parameters", line.N), ("D*, tokens", line.D)):
        assert spread(told[name]) == pytest.approx(values[:, 20], rel=5e-3)
    assert spread(told["loss (nats per token)"]) == pytest.approx(line.loss[:, 20], rel=5e-3)
    assert number(
        view.value("document.getElementById('out-budget').textContent").split(" FL")[0]
    ) == (pytest.approx(budget, rel=5e-3))
    n, d = line.N[0, 20], line.D[0, 20]
    for cost, name in (
        ("executed", "executed"),
        ("6ND", "6·N·D (all parameters)"),
        ("seconds", "seconds of training"),
    ):
        at = 2048 if cost == "executed" else 0
        charged = found.along("mamba", cost, at).cost(n, d)
        assert number(told[f"Cost: {name}"]) == pytest.approx(charged, rel=5e-3)
    shape = min(found.shapes["mamba"], key=lambda s: abs(math.log(s.n / n)))
    assert number(told["Decoding state, 2k tokens"]) == pytest.approx(
        shape.state_bytes(2048), rel=5e-3
    )
    flops = found.along("mamba", "executed", 2048).cost(n, d)
    chip = page.DEVICES["H100"]
    dollars = flops / (page.UTILISATION * chip.flops_per_second) / 3600 * chip.price.median
    assert number(told["Dollars, H100"].removeprefix("$")) == pytest.approx(dollars, rel=5e-3)
    assert view.said == []


@browser
@pytest.mark.slow
def test_keys_and_the_mouse_move_the_budget_and_the_page_says_when_it_extrapolates(
    built, found, view
):
    view.open(built.as_uri(), READY)
    budget = "Number(document.getElementById('budget').value)"
    where = "document.getElementById('where').textContent"
    assert view.value(where).startswith("Inside the runs")
    at, last = view.value(budget), len(found.budgets("executed")) - 1
    for _ in range(12):  # by the tabulator alone
        view.press("Tab")
        if view.value("document.activeElement.id") == "budget":
            break
    press(view, 9)
    assert view.value(budget) == at + 9
    assert view.value(where).startswith("Extrapolated")
    assert "every asymptote" in view.value(where)
    press(view, last)
    assert "speculation" in view.value(where)
    assert view.value(budget) == last
    chart = "document.querySelector('#loss svg').getBoundingClientRect()"
    view.value("document.querySelector('#loss').scrollIntoView({block: 'center'})")
    left, top, wide = (view.value(f"{chart}.{side}") for side in ("left", "top", "width"))
    view.drag((left + 0.8 * wide, top + 150), (left + 0.5 * wide, top + 150))
    assert 0.2 * last < view.value(budget) < 0.8 * last
    for control in ("study", "family", "cost", "context", "chip", "budget"):
        assert view.value(f"document.getElementById('{control}').labels.length") == 1
    assert view.said == []


@browser
@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("screen", [1280, 375])
def test_it_is_read_on_any_screen(built, view, screen, dark):
    view.size(screen)
    if dark:
        view.dark()
    view.open(built.as_uri(), READY)
    ratio, text = view.contrast()
    assert ratio >= 4.5, text
    assert view.overflow() <= 0
    assert view.said == []


@browser
@pytest.mark.slow
def test_every_choice_draws_without_a_word_on_the_console(built, view):
    view.size(375)
    view.open(built.as_uri(), READY)
    for control in ("family", "cost", "chip"):
        for i in range(view.value(f"document.getElementById('{control}').options.length")):
            view.value(
                f"(() => {{ const s = document.getElementById('{control}');"
                f" s.selectedIndex = {i}; s.dispatchEvent(new Event('change')); }})()"
            )
            view.until(READY)
            assert view.value("document.getElementById('verdict').textContent")
    assert view.said == []


@browser
@pytest.mark.slow
def test_a_page_of_a_table_alone_has_no_controls_that_do_nothing(table, tmp_path, view):
    one = explorer.of_columns(table, arch="arch", costs=(), loss="loss", n="N", d="D", draws=DRAWS)
    out = page.build({"mine": one}, tmp_path / "p.html")
    view.open(out.as_uri(), "document.querySelectorAll('.chart svg.marks').length == 3")
    seen = "(id) => Boolean(document.getElementById(id).offsetParent)"
    shown = f"['study', 'context', 'budget'].map({seen})"
    assert view.value(shown) == [False, False, True]
    assert cards(view)["N*, parameters"]
    assert view.said == []


@pytest.mark.slow
def test_bands_cover_inside_and_at_ten_times_the_runs():
    """Loss at the optimum of the law, of 40 grids drawn from a surface with E = .9."""
    inside, beyond = [], []
    for repeat in range(40):
        drawn = [
            row.model_copy(
                update={"record": row.record.model_copy(update={"metrics": noisy(row, repeat)})}
            )
            for row in synthetic.grid(families=("dense",), **SMALL, noise=0.0)
        ]
        one = explorer.of_rows(drawn, 200)
        line, budgets = one.along("dense", "executed", 128), one.budgets("executed")
        truth = np.array(
            [synthetic.surface(n, d, "dense") for n, d in zip(line.N[0], line.D[0], strict=True)]
        )
        held = (line.loss[1] <= truth) & (truth <= line.loss[2])
        inside.append(held[between(line, budgets)].mean())
        beyond.append(held[np.searchsorted(budgets, 10 * line.window[1])])
    assert np.mean(inside) >= 0.85
    assert np.mean(beyond) >= 0.85


def noisy(row, repeat):
    rng = np.random.default_rng([repeat, int(row.record.key, 16)])
    loss = row.record.metrics["loss"]
    value = loss.value * math.exp(rng.normal(0, 0.004))
    return row.record.metrics | {"loss": loss.model_copy(update={"value": value})}
