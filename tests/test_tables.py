"""Anybody's table is read as it is meant or refused, and what it says is printed as it stands."""

import contextlib
import io
import json
import random
import re

import numpy as np
import pytest
import synthetic

from isoflop.experiments.cli.fit import compare, fit
from isoflop.experiments.cli.main import main
from isoflop.experiments.cli.text import labelled, table
from isoflop.figures.report import page as report
from isoflop.models.errors import UserError
from isoflop.sim.compare.gains import arms
from isoflop.sim.laws.diagnostics import distinct
from isoflop.sim.laws.forms import Chinchilla, fit_table
from isoflop.sim.laws.resample import ranks
from isoflop.sim.records.readers import read
from isoflop.sim.records.tables import clean, label
from isoflop.sim.records.writers import write_csv

LAW = Chinchilla(E=1.7, A=420.0, B=1200.0, alpha=0.34, beta=0.36)
NASTY = ("[/b]", "gla[fp32]", "gla[bf16]", "$a^{b$", "<script>x</script>", ":smile:", "{{ x }}")


def runs(archs=("a", "b"), noise=0.002, seeds=2):
    """Rows of a 4 × 4 grid, `loss` first, with FLOPs."""
    rng = np.random.default_rng(0)
    return [
        {
            **{"loss": float(LAW(n, d) * np.exp(noise * rng.standard_normal()))},
            **{"arch": arch, "N": n, "D": d, "flops": 6 * n * d, "seed": seed},
        }
        for arch in archs
        for n in (1e6, 3e6, 1e7, 3e7)
        for d in (2e8, 6e8, 2e9, 6e9)
        for seed in range(seeds)
    ]


def csv_text(rows):
    return "\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)])


def jsonl_text(rows):
    return "\n".join(map(json.dumps, rows))


@pytest.fixture
def written(tmp_path):
    """A file of some text or bytes, by its suffix."""

    def write(suffix, content):
        path = tmp_path / f"runs{suffix}"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def command(capsys):
    """`isoflop ARGS` → exit code, out, err."""
    return lambda *args: (main([str(a) for a in args]), *capsys.readouterr())


def the_error(result):
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert len(err) < 2100
    return err


# what cannot be meant is refused

REFUSED = {
    "a repeated header": (".csv", "N,D,loss,loss\n1,2,3,4\n", "names 'loss' twice"),
    "a header repeated but for space": (".csv", "N,D,loss,loss \n1,2,3,4\n", "names 'loss' twice"),
    "a repeated key": (".jsonl", '{"N": 1, "loss": 2, "loss": 3}', "line 1 names 'loss' twice"),
    "a key that nesting repeats": (".jsonl", '{"a.b": 1, "a": {"b": 2}}', "names 'a.b' twice"),
    "an empty object": (".jsonl", "{}", "holds no cells"),
    "an empty file": (".csv", "", "must hold a header and at least one run"),
    "a header alone": (".csv", "N,D,loss\n", "must hold a header and at least one run"),
    "latin-1 JSON": (".jsonl", '{"é": 1}'.encode("latin-1"), "must be text in UTF-8"),
    "latin-1 CSV": (".csv", "N,é\n1,2".encode("latin-1"), "must be text in UTF-8"),
    "UTF-16": (".csv", "N,D\n1,2".encode("utf-16"), "must be text in UTF-8"),
    "an open quote": (".csv", 'N,D,loss\n1,"2,3\n', "must be CSV: unexpected end of data"),
    "text after a quote": (".csv", 'N,D,loss\n1,"2"0,3\n', "must be CSV: ',' expected"),
    "deep lists": (".jsonl", "[" * 3000 + "]" * 3000, "line 1 is nested too deeply"),
    "deep objects": (".jsonl", '{"a":' * 3000 + "1" + "}" * 3000, "line 1 is nested too deeply"),
    "a JSON list": (".jsonl", "[1, 2]", "line 1 must be a JSON object, and is '[1, 2]'"),
    "no JSON": (".jsonl", '{"N": 1}\n{"N": }', "line 2 must be a JSON object"),
    "no Parquet": (".parquet", b"PAR1 nonsense PAR1", "must be a Parquet file"),
    "rows that no header fits": (".csv", "N,D,loss\n1e7,1e9,5,508\n", "4 cells under 3 headers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_that_cannot_be_meant_is_refused_in_one_line(name, written, command):
    suffix, content, words = REFUSED[name]
    assert words in the_error(command("fit", written(suffix, content)))


def test_a_folder_or_an_unreadable_file_is_refused(tmp_path, command):
    (tmp_path / "runs.csv").mkdir()
    assert "must be a file of runs" in the_error(command("fit", tmp_path / "runs.csv"))


# what can be meant is read


def test_rows_that_the_header_does_not_fit_are_dropped_and_said(written):
    rows = csv_text(runs()).split("\n")
    rows[3] += ",508"
    rows[5] = rows[5].rpartition(",")[0]
    columns = read(written(".csv", "\n".join(rows)))
    cleaned = clean(columns, {"loss": "loss", "N": "N"}, {"arch": "arch"})
    assert [d.json() for d in cleaned.dropped] == [
        {"row": 3, "reason": "7 cells under 6 headers"},
        {"row": 5, "reason": "5 cells under 6 headers"},
    ]


BAD = {
    "JSON true": (True, "loss is not a number: True"),
    "a list": ([5.0], "loss is not a number: [5.0]"),
    "400 digits": (10**400, "loss is not finite: inf"),
    "5,000 digits": (None, "loss is not finite: inf"),
    "5M": ("5M", "loss is not a number: '5M'"),
    "1e206": (1e206, "loss is not within 1e-40 to 1e+40: 1e+206"),
    "long text": ("x" * 10**5, "loss is not a number: 'xxxxxxxxxxxxxxxxx … xxxxxxxxxxxxxxxxx'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_cell_that_is_no_number_drops_its_row(name, written):
    cell, reason = BAD[name]
    rows = runs()
    text = jsonl_text([*rows, rows[0] | {"loss": cell, "seed": 9}])
    if name == "5,000 digits":
        text = text.replace("null", "9" * 5000)
    found = fit_table(read(written(".jsonl", text)), draws=20)
    assert [d.json() for d in found.dropped] == [{"row": 65, "reason": reason}]
    assert found.n_points == 64


@pytest.mark.parametrize("status", ["Failed", " DIVERGED ", "crashed", "running", "killed", 1])
@pytest.mark.parametrize("name", ["status", "Status"])
def test_a_run_whose_status_is_no_finished_ones_is_dropped_and_said(status, name, written):
    rows = [{**row, name: "ok"} for row in runs()]
    rows[0] = rows[0] | {name: status, "loss": 99.0}
    cleaned = clean(read(written(".jsonl", jsonl_text(rows))), {"loss": "loss"})
    (dropped,) = cleaned.dropped
    assert dropped.row == 1
    assert str(status).strip().lower() in dropped.reason


@pytest.mark.parametrize(
    "status", ["ok", "OK", "Finished", "done", " completed", "success", "", None]
)
def test_a_run_of_a_finished_status_or_of_none_is_kept(status, written):
    rows = [row | {"status": status} for row in runs()]
    assert not clean(read(written(".jsonl", jsonl_text(rows))), {"loss": "loss"}).dropped


def test_separators_inside_json_strings_do_not_end_a_line(written):
    rows = runs(archs=("a\u2028b", "a\x85b"))
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    found = arms(read(written(".jsonl", text)), draws=20)[0]
    assert list(found) == ["a\\u2028b", "a\\x85b"]


@pytest.mark.parametrize("form", [csv_text, jsonl_text])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_byte_order_mark_and_any_end_of_line_are_no_part_of_the_data(form, end, written):
    suffix = ".csv" if form is csv_text else ".jsonl"
    columns = read(written(suffix, "\ufeff" + form(runs()).replace("\n", end) + end))
    assert list(columns) == list(runs()[0])
    assert [float(x) for x in columns["loss"]] == [row["loss"] for row in runs()]


def test_labels_are_the_same_where_only_space_differs(written, command):
    rows = runs()
    for row in rows[1:32:3]:
        row["arch"] = " a\u00a0"
    file = written(".csv", csv_text(rows))
    assert list(arms(read(file), draws=20)[0]) == ["a", "b"]
    code, out, _ = command("fit", file, "--group", "arch", "--draws", 20)
    assert code == 0
    assert "a: Chinchilla, 32 runs" in out


def test_a_row_without_its_label_is_in_no_group(written, command):
    rows = runs()
    rows[0]["arch"] = ""
    _, out, _ = command("fit", written(".csv", csv_text(rows)), "--group", "arch", "--draws", 20)
    assert "dropped: 1 × arch is empty (row 1)" in out
    assert "None" not in out


def test_a_pandas_index_and_columns_without_a_name_are_kept_apart(written):
    columns = read(written(".csv", ",N,,loss\n0,1,,2\n1,1,,2\n"))
    assert list(columns) == ["(column 1)", "N", "(column 3)", "loss"]


def test_sizes_a_per_cent_apart_are_many_sizes():
    sizes = 1e6 * 1.0099 ** np.arange(5000)
    assert distinct(sizes) == 2500  # the next one is within one per cent, the second next is not
    rank = ranks(sizes[::-1])
    assert rank[0] == 2499
    assert rank[-1] == rank[-2] == 0
    for one, other in zip(sizes[::-1], sizes[-2::-1], strict=False):
        assert one > other
    spread = [np.ptp(np.log(sizes[::-1][rank == r])) for r in range(2500)]
    assert max(spread) <= 0.01


def test_no_line_names_a_column_that_no_one_read(written, command):
    file = written(".csv", "C,loss\n" + "\n".join(f"1e{c},{2 + 9 / c}" for c in range(9, 24)))
    code, out, _ = command("fit", file, "--law", "power", "--flops", "C", "--draws", 20)
    assert code == 0
    assert "which FLOPs" in out
    assert "which N" not in out


# errors and headlines


def test_ten_thousand_bad_cells_are_one_short_line(written, command):
    rows = "".join(f"{i}M,1e9,2.5\n" for i in range(10_000))
    error = the_error(command("fit", written(".csv", "N,D,loss\n" + rows)))
    assert "10000 × N is not a number (row 1: '0M', row 2: '1M', row 3: '2M', …)" in error
    assert len(error) < 300


def test_ten_thousand_columns_are_one_short_line(written, command):
    names = [f"c{i}" for i in range(10_000)]
    row = ",".join("1" for _ in names)
    error = the_error(command("fit", written(".csv", f"{','.join(names)}\n{row}\n")))
    assert "and 9,980 more" in error
    assert len(error) < 400


def test_the_headline_says_how_many_rows_were_dropped(written, command):
    rows = runs()
    for row in rows[::8]:
        row["N"] = f"{row['N'] / 1e6:g}M"
    file = written(".csv", csv_text(rows))
    _, out, _ = command("fit", file, "--draws", 20)
    assert "56 of 64 rows" in out.split("┏")[0]
    assert "8 × N is not a number (row 1: '1M', " in out
    _, out, _ = command("compare", file, "--n", "N", "--d", "D", "--draws", 20)
    assert "56 of 64 rows" in out.split("┏")[0]


@pytest.mark.parametrize("draws", [0, -3, 19, 10**400])
@pytest.mark.parametrize("verb", ["fit", "compare"])
def test_draws_that_give_no_interval_are_refused(verb, draws, written, command):
    file = written(".csv", csv_text(runs()))
    assert "--draws must be 20 to 100,000" in the_error(command(verb, file, "--draws", draws))


def test_json_is_written_whatever_the_numbers(written, command, tmp_path):
    rows = [row | {"N": row["N"] * scale} for row in runs() for scale in (1, 1e33)]
    out = tmp_path / "fit.json"
    for verb in ("fit", "compare"):
        flags = ("--no-surface",) if verb == "compare" else ()  # costs here are none of N and D
        file = written(".csv", csv_text(rows))
        code, _, err = command(verb, file, *flags, "--draws", 20, "--json", out)
        assert (code, err) == (0, "")
        json.loads(out.read_text(), parse_constant=lambda name: pytest.fail(name))
    rows[0]["arch"] = "\ud800"
    code, _, _ = command(
        "fit", written(".jsonl", jsonl_text(rows)), "--group", "arch", "--draws", 20, "--json", out
    )
    assert (code, "\\ud800" in json.loads(out.read_text())) == (0, True)
    assert "cannot be written" in command(
        "fit", written(".csv", csv_text(rows[1:])), "--draws", 20, "--json", tmp_path
    )[2]  # fmt: skip


def test_a_comparison_without_a_ranking_is_told_and_written(written, command, tmp_path):
    """Each arm shares losses with the baseline, and the best and the worst share none."""
    c = np.geomspace(1e15, 1e18, 8)
    rng = np.random.default_rng(0)
    rows = [
        {"arch": arch, "flops": v, "loss": 100 * (v * better) ** -0.1 * (1 + noise)}
        for arch, better in (("base", 1.0), ("good", 100.0), ("bad", 1e-2))
        for v, noise in zip(c, 0.001 * rng.standard_normal(8), strict=True)
    ]
    rows = [r for r in rows if r["arch"] != "good" or r["flops"] > 1e15]
    out = tmp_path / "out.json"
    code, told, err = command(
        "compare", written(".csv", csv_text(rows)), "--draws", 20, "--json", out
    )
    assert (code, err) == (0, "")
    assert "no ranking: a ranking needs losses that all architectures reach" in told
    data = json.loads(out.read_text())
    assert {x["arch"] for x in data["ceg"]} == {"good", "bad"}
    assert data["ranking"] == []
    assert data["no ranking"]


def test_compare_takes_the_columns_that_it_knows_and_leaves_them_when_asked(written, command):
    named = ("--n", "N", "--d", "D")
    file, flags = written(".csv", csv_text(runs())), ("--draws", 20)
    told = command("compare", file, *flags)
    assert told[0] == 0
    assert told == command("compare", file, *flags, *named)
    assert "cost of a: " in told[1]
    assert "cost of a: " not in command("compare", file, *flags, "--no-surface")[1]
    ours = [
        {"params.active" if k == "N" else "tokens" if k == "D" else k: v for k, v in row.items()}
        for row in runs()
    ]
    assert command("compare", written(".csv", csv_text(ours)), *flags) == told


@pytest.mark.parametrize(
    ("verb", "flags", "words"),
    [
        ("fit", ("--json", "."), "--json . cannot be written: it is a folder; name another file"),
        ("compare", ("--json", "one.csv/x"), "one.csv is no folder; name another file"),
        ("selftest", ("--json", "."), "it is a folder; name another file"),
        ("fit", ("--approach", 2, "--figure", "x.pdf"), "--figure must end in .svg or .png"),
        ("fit", ("--approach", 2, "--figure", "one.csv/x.svg"), "one.csv is no folder"),
    ],
)
def test_what_cannot_be_written_is_told_before_anything_is_computed(
    verb, flags, words, written, command, tmp_path, monkeypatch
):
    """Of one run alone, which nothing can be computed of."""
    file = written(".csv", csv_text(runs()[:1]))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.csv").write_text("")
    code, out, err = command(verb, file, *flags)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_one_number_of_json_is_one_label_and_two_strings_are_two():
    assert label(1, "arch") == label(1.0, "arch") == "1"
    assert label(1.5, "arch") == "1.5"
    assert label("1.0", "arch") == "1.0"


# what is printed from data


def test_names_print_as_they_are_through_the_command(written, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    rows = [
        {("loss[val]" if k == "loss" else k): v for k, v in row.items()}
        for row in runs(archs=NASTY[:-1])
    ]
    file = written(".jsonl", jsonl_text(rows))
    flags = ("--loss", "loss[val]", "--draws", 20)
    code, out, _ = command("fit", file, "--group", "arch", *flags)
    assert code == 0
    assert "column 'loss[val]'" in out
    for name in NASTY[:-1]:
        assert f"{name}: Chinchilla, 32 runs" in out
    code, out, _ = command("compare", file, "--n", "N", "--d", "D", *flags)
    assert code == 0
    for name in NASTY[1:-1]:
        assert f" {name} " in out


def test_a_name_is_wrapped_and_never_cut(written, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    file = written(".jsonl", jsonl_text(runs(archs=("a", "long" * 40))))
    _, out, _ = command("compare", file, "--draws", 20)
    assert "…" not in out
    cells = [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")]
    assert "long" * 40 in "".join(cells)


def test_control_characters_reach_no_terminal(written, command):
    file = written(".jsonl", jsonl_text(runs(archs=("\x1b[31mred", "a\tb\u202ec"))))
    _, out, _ = command("fit", file, "--group", "arch", "--draws", 20)
    assert "\\x1b[31mred: " in out
    assert "a\\tb\\u202ec: " in out
    _, out, err = command("compare", file, "--baseline", "\x1b[2J")
    assert "\x1b" not in out + err
    assert labelled({"family": "\x1b[2J", "wi\ndth": 4}) == "\\x1b[2J, wi\\ndth 4"
    assert "\x1b" not in table([{"a": "\x1b[2J"}])


def test_names_are_text_on_the_report_page(tmp_path):
    rows = [
        row.model_copy(update={"labels": row.labels | {"family": name}})
        for name in NASTY
        for row in synthetic.grid(
            families=("dense",), sizes=((32, 2), (48, 2)), steps=(500,), seeds=(0,)
        )
    ]
    page = report.build("x", rows, tmp_path, draws=20).read_text(encoding="utf-8")
    assert page.count("<script") == page.count("</script") == 2
    assert "<script>x" not in page
    for name in ("[/b]", "gla[fp32]", "gla[bf16]", "$a^{b$", ":smile:", "{{ x }}"):
        assert f'data-family="{name}"' in page
        assert re.search(rf"</svg>{re.escape(name)}</", page)
    assert "&lt;script&gt;x&lt;/script&gt;</button>" in page


FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "\tx", "'=1", "''@x", "'quoted'", "a=b", "-1.5x")


def test_no_cell_of_a_written_table_is_a_formula_and_each_is_read_back(tmp_path):
    (row,) = synthetic.grid(families=("dense",), sizes=((32, 2),), steps=(500,), seeds=(0,))
    rows = [row.model_copy(update={"labels": {"family": f, "=shift": -2}}) for f in FORMULAS]
    write_csv(tmp_path / "x.csv", rows)
    text = (tmp_path / "x.csv").read_text()
    assert not re.search(r"(^|[,\n\"])[=+@\t][^,]", text)
    assert "'=shift" in text
    assert ",-2," in text  # a number stays one
    columns = read(tmp_path / "x.csv")
    assert tuple(columns["family"]) == FORMULAS
    assert "=shift" in columns


# a fuzz: whatever the bytes, a result or a UserError

PIECES = (
    *(b"nan", b"inf", b"-1", b"0", b"true", b"null", b"1e206", b"1e-300", b"9" * 400, b"5M"),
    *(b",", b'"', b"\n", b"\r", b"{", b"}", b"[", b"]", b":", b"\\", b"\xff", b"\xef\xbb\xbf"),
    *("\u2028".encode(), b"\0", b"\\ud800", b"'", b"=", b"loss", b"run", b"status", b"diverged"),
    *(b"[" * 3000, b'{"a":' * 500, b"1_0", b"[/b]", b"\x1b[31m", b"e", b".", b" ", b"seed"),
)


def mutated(chance: random.Random, content: bytes) -> bytes:
    """A few bytes, cells or lines replaced, dropped, doubled or swapped."""
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        cells = re.split(rb"([,\n:{} ])", content)
        i, j = (chance.randrange(len(cells)) for _ in range(2))
        match chance.randrange(6):
            case 0:
                cells[i] = chance.choice(PIECES)
            case 1:
                cells[i] += chance.choice(PIECES)
            case 2:
                del cells[i : i + chance.choice((1, 1, 2, 40))]
            case 3:
                cells[i], cells[j] = cells[j], cells[i]
            case 4:
                cells[i:i] = cells[j : j + 30]
            case 5:
                cells[i] = bytes(chance.randrange(256) for _ in range(chance.randrange(4)))
        content = b"".join(cells)
    return content


@pytest.mark.parametrize("part", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3))])
def test_mutated_tables_give_a_result_or_a_user_error(part, tmp_path):
    """300 files a part; one in twenty has enough runs for an interval, which takes longest. With
    `--json`, so that what is found can be written too.
    """
    chance = random.Random(part)
    rows = [row for row in runs(seeds=1) if row["N"] < 2e7 and row["D"] < 5e9]
    told: list[str] = []
    for i in range(300):
        form, suffix = chance.choice(((csv_text, ".csv"), (jsonl_text, ".jsonl")))
        file, out = tmp_path / f"{i}{suffix}", tmp_path / "out.json"
        file.write_bytes(mutated(chance, form(rows if i % 20 == 0 else rows[7:11]).encode()))
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                if i % 3:
                    fit(file, law="power", flops="flops", group="arch", draws=20, json_out=out)
                else:
                    compare(file, draws=20, json_out=out)
        except UserError as error:
            told.append(str(error))
        except Exception as error:
            raise AssertionError(file.read_bytes()) from error
    assert 30 < len(told) < 270
    assert max(map(len, told)) < 2000
