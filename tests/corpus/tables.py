"""S01 to S29: session tables that a spreadsheet, a locale, a hand or an attacker has spoilt."""

import re

from tests.corpus.case import CorpusCase, Refused

HEADER = "session_id\tdays_from_baseline\ttreatment\n"
GOOD = HEADER + "ses-01\t0\tCRT\nses-02\t30\tCRT\nses-03\t75\tTMZ\nses-04\t160\tTMZ\n"
MEGABYTE = 1_000_000


def with_day(day: str) -> str:
    return GOOD.replace("\t75\t", f"\t{day}\t")


def with_treatment(treatment: str) -> str:
    return GOOD.replace("75\tTMZ", f"75\t{treatment}")


def with_id(name: str) -> str:
    return GOOD.replace("ses-03", name)


def table(
    id: str,
    what: str,
    text: str | bytes,
    *codes: str,
    says: tuple[str, ...] = (),
    differs: str = "",
) -> CorpusCase:
    """A table that is refused."""
    content = text.encode() if isinstance(text, str) else text
    return CorpusCase(
        id=id,
        what=what,
        spoil=lambda d: d.table.write_bytes(content),
        ending=Refused(codes, says=says),
        differs=differs,
    )


FORM = (
    table("S01", "empty", "", "TD3301"),
    table("S01", "blank lines", "\n \n", "TD3301"),
    table("S01", "a header alone", HEADER, "TD3301"),
    table("S02", "commas", GOOD.replace("\t", ","), "TD3302", says=("commas",)),
    table("S02", "semicolons", GOOD.replace("\t", ";"), "TD3302"),
    table("S04", "UTF-16", GOOD.encode("utf-16"), "TD3303"),
    table("S04", "UTF-16 without its mark", GOOD.encode("utf-16-le"), "TD3303"),
    table("S04", "Latin-1", GOOD.replace("TMZ", "T\xd6Z").encode("latin-1"), "TD3303"),
    table("S04", "a NUL", GOOD.replace("ses-02", "ses\0-02"), "TD3303"),
    table("S04", "carriage returns alone", GOOD.replace("\n", "\r"), "TD3303"),
    table("S05", "a cell too many", GOOD.replace("75\tTMZ", "75\tTMZ\tx"), "TD3304"),
    table("S05", "a cell too few", GOOD.replace("75\tTMZ", "75"), "TD3304"),
    table("S05", "a blank line inside", GOOD.replace("ses-03", "\nses-03"), "TD3304"),
    table("S06", "a column twice", re.sub(r"(\w+)\n", r"\1\t\1\n", GOOD), "TD3305"),
    table("S06", "a column of another name", GOOD.replace("treatment", "therapy"), "TD3305"),
    table("S06", "a column in capitals", GOOD.replace("treatment", "Treatment"), "TD3305"),
)
DAYS = (
    *(
        table("S07", f"day {day}", with_day(day), "TD3306")
        for day in ("nan", "inf", "1e3", "10.5", "n/a")
    ),
    table("S07", "no day", with_day(""), "TD3306"),
    table("S08", "day 1_000", with_day("1_000"), "TD3306"),
    table("S08", "full-width digits", with_day("\uff18\uff14"), "TD3306"),
    table("S08", "day +84", with_day("+84"), "TD3306"),
    *(
        table("S09", f"day {day}", with_day(day), "TD3307", says=("days since",))
        for day in ("2021-03-04", "2021-03-04T10:20:30", "04.03.2021", "20210304")
    ),
    table("S10", "day -3", with_day("-3"), "TD3308"),
    table("S11", "twenty digits", with_day("9" * 20), "TD3306"),
    table("S11", "3000 digits", with_day("9" * 3000), "TD3306"),
    table("S11", "5000 digits", with_day("9" * 5000), "TD3303", "TD3306"),
    table(
        "S11",
        "200 rows of 4000 digits",
        HEADER + "".join(f"ses-{s:02d}\t{'9' * 4000}\tTMZ\n" for s in range(200)),
        *["TD3306"] * 200,
    ),
    table("S12", "a day twice", with_day("30"), "TD3309", says=("on line 3 already",)),
    table("S13", "unsorted", with_day("20"), "TD3310", says=("--sort",)),
    table(
        "S14",
        "the first day is 7",
        GOOD.replace("\t0\t", "\t7\t"),
        "TD3311",
        says=("--rebase-days",),
    ),
    table(
        "S29",
        "intervals in place of days",
        GOOD.replace("\t75\t", "\t45\t").replace("\t160\t", "\t40\t"),
        "TD3310",
        says=("running sum",),
        differs="TD3310 in place of W3320; its fix says that these may be intervals.",
    ),
)
WORDS = (
    *(
        table("S17", f"treatment {name}", with_treatment(name), "TD3314", says=("CRT, TMZ, none",))
        for name in ("7", "-1", "1", "tmz", "RT")
    ),
    table("S17", "a space after the treatment", with_treatment("TMZ "), "TD3314"),
    table("S17", "no treatment", with_treatment(""), "TD3314"),
    table("S21", "a session twice", with_id("ses-02"), "TD3309"),
    table("S23", "over 1 MB", GOOD + " " * MEGABYTE, "TD3303"),
    table("S24", "a cell of 200 kB", with_id("x" * 200_000), "TD3303"),
    table("S24", "a cell of 5000 characters", with_id("x" * 5000), "TD3303", "TD3318"),
    table("S24", "a million rows", HEADER + "s\t0\tCRT\n" * 1_000_000, "TD3303"),
    table("S24", "10,001 rows", HEADER + "s\t0\tCRT\n" * 10_001, "TD3303"),
    table("S25", "a formula", with_id("=HYPERLINK(1)"), "TD3318"),
    table("S25", "HTML", with_id("<img onerror=x>"), "TD3318"),
    *(
        table("S26", what, with_id(name), "TD3318")
        for what, name in {
            "a path": "../../x",
            "a dot": ".",
            "two dots": "..",
            "a device": "CON",
            "a device with a suffix": "com1.txt",
            "emoji": "ses-\U0001f9e0",
            "right-to-left override": "ses-\u202e02",
            "empty": "",
            "65 characters": "x" * 65,
        }.items()
    ),
)
CASES = (*FORM, *DAYS, *WORDS)
