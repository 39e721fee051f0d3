"""Session tables: the corpus of bad tables, each with the code that names its problem.

Ids such as S07 number the kinds of table that are known to go wrong; plain Python accepts most.
"""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tadiff_rt.case import TREATMENTS, ReadOptions
from tadiff_rt.errors import TableError
from tadiff_rt.readers.tables import MAX_BYTES, Columns, id_problem, read_rows

TSV = Columns("session_id", "days_from_baseline", "treatment", extra_allowed=True, separator="\t")
CSV = Columns("session", "day", "treatment", required=("t1",), optional=("mask",))

HEADER = "session_id\tdays_from_baseline\ttreatment\n"
GOOD = HEADER + "ses-01\t0\tCRT\nses-02\t84\tTMZ\nses-03\t171\tnone\n"
GOOD_ROWS = [("ses-01", 0, "CRT"), ("ses-02", 84, "TMZ"), ("ses-03", 171, "none")]


def read(tmp_path, content, columns=TSV, **options):
    path = tmp_path / "table.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    notes = []
    rows = read_rows(path, columns, ReadOptions(**options), notes, label="table.txt")
    return [(row.session, row.day, row.treatment) for row in rows], notes


def codes_and_lines(tmp_path, content, columns=TSV, **options):
    with pytest.raises(TableError) as caught:
        read(tmp_path, content, columns, **options)
    return [(e.code, e.where.partition("line ")[2]) for e in caught.value.findings]


def with_day(day):
    return HEADER + f"ses-01\t0\tCRT\nses-02\t{day}\tTMZ\n"


def with_treatment(treatment):
    return HEADER + f"ses-01\t0\tCRT\nses-02\t84\t{treatment}\n"


def with_id(name):
    return HEADER + f"ses-01\t0\tCRT\n{name}\t84\tTMZ\n"


REFUSED = {
    "S01-empty": ("", "TD3301", ""),
    "S01-only-blank-lines": ("\n \n", "TD3301", ""),
    "S01-only-a-header": (HEADER, "TD3301", ""),
    "S02-commas": (GOOD.replace("\t", ","), "TD3302", "1"),
    "S02-semicolons": (GOOD.replace("\t", ";"), "TD3302", "1"),
    "S04-utf-16-with-mark": (GOOD.encode("utf-16"), "TD3303", ""),
    "S04-utf-16-without-mark": (GOOD.encode("utf-16-le"), "TD3303", "1"),
    "S04-latin-1": (GOOD.replace("none", "n\xf6ne").encode("latin-1"), "TD3303", ""),
    "S04-nul": (GOOD.replace("ses-02", "ses\0-02"), "TD3303", "3"),
    "S04-lone-carriage-returns": (GOOD.replace("\n", "\r"), "TD3303", "1"),
    "S05-extra-cell": (GOOD.replace("84\tTMZ", "84\tTMZ\tx"), "TD3304", "3"),
    "S05-missing-cell": (GOOD.replace("84\tTMZ", "84"), "TD3304", "3"),
    "S05-blank-line-inside": (GOOD.replace("ses-02", "\nses-02"), "TD3304", "3"),
    "S06-duplicate-column": (
        HEADER.replace("\n", "\ttreatment\n") + "ses-01\t0\tCRT\tTMZ\n",
        "TD3305",
        "1",
    ),
    "S06-missing-column": (GOOD.replace("treatment", "therapy"), "TD3305", "1"),
    "S06-column-of-other-case": (GOOD.replace("treatment", "Treatment"), "TD3305", "1"),
    "S07-nan": (with_day("nan"), "TD3306", "3"),
    "S07-inf": (with_day("inf"), "TD3306", "3"),
    "S07-exponent": (with_day("1e3"), "TD3306", "3"),
    "S07-fraction": (with_day("10.5"), "TD3306", "3"),
    "S07-not-available": (with_day("n/a"), "TD3306", "3"),
    "S07-empty": (with_day(""), "TD3306", "3"),
    "S08-underscore": (with_day("1_000"), "TD3306", "3"),
    "S08-full-width-digits": (with_day("\uff18\uff14"), "TD3306", "3"),
    "S08-plus-sign": (with_day("+84"), "TD3306", "3"),
    "S09-date": (with_day("2021-03-04"), "TD3307", "3"),
    "S09-date-and-time": (with_day("2021-03-04T10:20:30"), "TD3307", "3"),
    "S09-european-date": (with_day("04.03.2021"), "TD3307", "3"),
    "S09-dicom-date": (with_day("20210304"), "TD3307", "3"),
    "S10-negative": (with_day("-3"), "TD3308", "3"),
    "S11-twenty-digits": (with_day("9" * 20), "TD3306", "3"),
    "S11-six-digits": (with_day("100000"), "TD3306", "3"),
    "S11-3000-digits": (with_day("9" * 3000), "TD3306", "3"),
    "S12-duplicate-day": (with_day("0"), "TD3309", "3"),
    "S13-unsorted": (with_day("84") + "ses-03\t30\tTMZ\n", "TD3310", "4"),
    "S14-first-day-not-0": (GOOD.replace("\t0\t", "\t37\t"), "TD3311", "2"),
    "S17-code": (with_treatment("1"), "TD3314", "3"),
    "S17-negative-code": (with_treatment("-1"), "TD3314", "3"),
    "S17-lower-case": (with_treatment("tmz"), "TD3314", "3"),
    "S17-trailing-space": (with_treatment("TMZ "), "TD3314", "3"),
    "S17-empty": (with_treatment(""), "TD3314", "3"),
    "S21-duplicate-session": (with_id("ses-01"), "TD3309", "3"),
    "S23-over-1-MB": (GOOD + " " * MAX_BYTES, "TD3303", ""),
    "S24-long-cell": (with_id("x" * 200_000), "TD3303", "3"),
    "S24-cell-over-4096": (with_id("x" * 5000), "TD3303", "3"),
    "S24-million-rows": (HEADER + "s\t0\tCRT\n" * 1_000_000, "TD3303", ""),
    "S24-too-many-rows": (HEADER + "s\t0\tCRT\n" * 10_001, "TD3303", ""),
    "S25-formula": (with_id("=HYPERLINK(1)"), "TD3318", "3"),
    "S25-html": (with_id("<img onerror=x>"), "TD3318", "3"),
    "S26-path": (with_id("../../x"), "TD3318", "3"),
    "S26-dot": (with_id("."), "TD3318", "3"),
    "S26-dot-dot": (with_id(".."), "TD3318", "3"),
    "S26-device": (with_id("CON"), "TD3318", "3"),
    "S26-device-with-suffix": (with_id("com1.txt"), "TD3318", "3"),
    "S26-emoji": (with_id("ses-\U0001f9e0"), "TD3318", "3"),
    "S26-right-to-left": (with_id("ses-\u202e02"), "TD3318", "3"),
    "S26-empty": (with_id(""), "TD3318", "3"),
    "S26-65-characters": (with_id("x" * 65), "TD3318", "3"),
    "S29-intervals": (
        HEADER + "ses-01\t0\tCRT\nses-02\t60\tTMZ\nses-03\t50\tTMZ\n",
        "TD3310",
        "4",
    ),
}


@pytest.mark.parametrize(("content", "code", "line"), REFUSED.values(), ids=REFUSED)
def test_a_bad_table_is_refused_with_its_code_and_line(tmp_path, content, code, line):
    findings = codes_and_lines(tmp_path, content)
    assert findings[0] == (code, line)
    assert {found for found, _ in findings[1:]} <= {code, "TD3318"}, "a finding of another kind"


ACCEPTED = {
    "plain": GOOD,
    "S03-byte-order-mark": "\ufeff" + GOOD,
    "S08-spaces-around-a-day": GOOD.replace("\t84\t", "\t 84 \t"),
    "leading-zeros": GOOD.replace("\t84\t", "\t084\t"),
    "S28-windows-line-ends": GOOD.replace("\n", "\r\n"),
    "S28-no-final-newline": GOOD.rstrip("\n"),
    "S28-trailing-blank-lines": GOOD + "\n\n\t\t\n",
    "S06-extra-column-in-bids": "".join(
        line + f"\textra {i}\n" for i, line in enumerate(GOOD.splitlines())
    ),
    "empty-last-cell": "".join(line + "\t\n" for line in GOOD.splitlines()).replace(
        "treatment\t", "treatment\tnote"
    ),
}


@pytest.mark.parametrize("content", ACCEPTED.values(), ids=ACCEPTED)
def test_tables_that_differ_in_form_only_read_the_same(tmp_path, content):
    assert read(tmp_path, content) == (GOOD_ROWS, [])


def test_a_thousand_sessions_are_read(tmp_path):
    """S19."""
    body = "".join(f"ses-{i:04}\t{7 * i}\tTMZ\n" for i in range(1000))
    rows, _ = read(tmp_path, HEADER + body)
    assert rows == [(f"ses-{i:04}", 7 * i, "TMZ") for i in range(1000)]


def test_every_problem_of_a_table_is_reported_in_order_of_line(tmp_path):
    table = HEADER + (
        "ses-01\t5\tCRT\n"  # would be TD3311, but line 4 has no day: the first may be there
        "ses 02\t84\ttmz\n"
        "ses-03\t-1\tTMZ\n"
        "ses-04\t90\n"
        "ses-01\t84\tTMZ\n"
    )
    assert codes_and_lines(tmp_path, table) == [
        ("TD3318", "3"),
        ("TD3314", "3"),
        ("TD3308", "4"),
        ("TD3304", "5"),
        ("TD3309", "6"),
        ("TD3309", "6"),
    ]


@pytest.mark.parametrize("rest", ["ses-02\t84\tTMZ\n", ""], ids=["first-row", "only-row"])
def test_a_row_of_the_wrong_width_is_not_taken_for_a_missing_first_day(tmp_path, rest):
    table = HEADER + "ses-01\t0\n" + rest
    assert codes_and_lines(tmp_path, table) == [("TD3304", "2")]


def test_a_date_is_not_repeated_in_the_message(tmp_path):
    """A date of examination identifies a patient; messages end up in logs."""
    for date in ("2021-03-04", "4.3.2021", "20210304", "4 March 2021", "04-MAR-2021"):
        with pytest.raises(TableError, match="holds a date") as caught:
            read(tmp_path, with_day(date))
        assert "days since" in caught.value.fix
        assert "2021" not in str(caught.value) + caught.value.fix


@pytest.mark.parametrize(("separator", "name"), [(",", "commas"), (";", "semicolons")])
def test_the_separator_found_is_named(tmp_path, separator, name):
    with pytest.raises(TableError, match=f"separated by {name}, expected tabs"):
        read(tmp_path, GOOD.replace("\t", separator))


def test_an_unknown_treatment_lists_the_known_ones(tmp_path):
    with pytest.raises(TableError, match=", ".join(TREATMENTS)):
        read(tmp_path, with_treatment("RT"))


def test_sorting_on_request_is_noted(tmp_path):
    lines = GOOD.splitlines(keepends=True)
    rows, notes = read(tmp_path, lines[0] + lines[3] + lines[1] + lines[2], sort=True)
    assert rows == GOOD_ROWS
    assert notes == ["sessions were sorted by day"]


def test_rebasing_on_request_subtracts_the_first_day(tmp_path):
    shifted = GOOD.replace("\t0\t", "\t37\t").replace("\t84\t", "\t121\t")
    rows, notes = read(tmp_path, shifted.replace("\t171\t", "\t208\t"), rebase_days=True)
    assert rows == GOOD_ROWS
    assert len(notes) == 1
    assert "37 subtracted" in notes[0]


def test_unsorted_small_days_are_called_intervals(tmp_path):
    """S29: 0, 60, 50 are more likely intervals than days."""
    with pytest.raises(TableError) as caught:
        read(tmp_path, REFUSED["S29-intervals"][0])
    assert "running sum" in caught.value.fix


def test_an_unknown_column_is_refused_where_the_columns_are_ours(tmp_path):
    """S06: a manifest.csv is a format of this project, so a misspelt `mask` is an error."""
    table = "session,day,treatment,t1,msak\nses-01,0,CRT,a.nii,b.nii\n"
    with pytest.raises(TableError, match="unknown column 'msak'") as caught:
        read(tmp_path, table, CSV)
    assert caught.value.code == "TD3305"


def test_csv_cells_may_be_quoted(tmp_path):
    table = 'session,day,treatment,t1\n"ses-01","0",CRT,"a, ""b"".nii"\n'
    path = tmp_path / "t.csv"
    path.write_text(table)
    (row,) = read_rows(path, CSV, ReadOptions(), [], label="t.csv")
    assert row.cells == {"session": "ses-01", "day": "0", "treatment": "CRT", "t1": 'a, "b".nii'}


def test_an_open_quote_does_not_swallow_the_next_rows(tmp_path):
    table = 'session,day,treatment,t1\nses-01,0,CRT,"a.nii\nses-02,84,TMZ,b.nii\n'
    assert codes_and_lines(tmp_path, table, CSV) == [("TD3303", "2")]


def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path):
    path = tmp_path / "t.tsv"
    os.mkfifo(path)
    with pytest.raises(TableError, match="not a regular file"):
        read_rows(path, TSV, ReadOptions(), [], label="t.tsv")


@given(st.binary(max_size=300))
def test_any_bytes_give_rows_or_a_table_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz", numbered=True) / "t.tsv"
    path.write_bytes(HEADER.encode() + b"ses-01\t0\tCRT\n" + data)
    try:
        rows = read_rows(path, TSV, ReadOptions(), [], label="t.tsv")
    except TableError:
        return
    assert all(not id_problem(row.session) for row in rows)
    assert [row.day for row in rows] == sorted({row.day for row in rows})


@given(st.text(alphabet="aZ9_.-/\\\\ :~\u202e\n", max_size=70))
def test_an_accepted_id_is_one_plain_file_name(name):
    if not id_problem(name):
        assert os.path.normpath(os.path.join("/base", name)) == f"/base/{name}"
        assert name.isascii()
        assert name.isprintable()
        assert len(name) <= 64
