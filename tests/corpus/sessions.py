"""S03 to S28: tables that are fine, or no tables; requests, and folders that do not fit them."""

import os
import re
import shutil
from typing import Any

from tests.corpus.case import Accepted, CorpusCase, Refused, Spoil
from tests.corpus.phantom import Data, save, scan
from tests.corpus.tables import GOOD, HEADER


def case(id: str, what: str, spoil: Spoil, ending: Accepted | Refused, **more: Any) -> CorpusCase:
    return CorpusCase(id=id, what=what, spoil=spoil, ending=ending, **more)


def to_json(name: str, text: str) -> Spoil:
    """The case is a JSON file."""

    def spoil(data: Data) -> None:
        data.case = data.bids / name
        data.case.write_text(text)

    return spoil


NO_JSON = "No table is read from JSON."
AS_JSON = {
    "S22": {"a key twice": '{"sessions": [], "sessions": [{"day": 0}]}'},
    "S23": {
        "NaN": '[{"day": NaN}]',
        "1e999": '[{"day": 1e999}]',
        "lists 100,000 deep": "[" * 100_000 + "]" * 100_000,
    },
}
JSON = (
    *(
        case(
            id,
            f"JSON, {what}",
            to_json("sessions.json", text),
            Refused(("TD3003",), exit_code=2),
            differs=NO_JSON,
        )
        for id, texts in AS_JSON.items()
        for what, text in texts.items()
    ),
    *(
        case(
            id,
            f"JSON named .csv, {what}",
            to_json("sessions.csv", text),
            Refused((code,)),
            differs=NO_JSON,
        )
        for id, texts in AS_JSON.items()
        for (what, text), code in zip(texts.items(), ("TD3301",) * 3, strict=False)
    ),
    case("S23", "a JSON file of 1 GiB", lambda d: large(d), Refused(("TD3303",)), memory_mb=150),
)


def large(data: Data) -> None:
    """A file with a hole: it takes no place on the disk."""
    data.table.write_text("[")
    os.truncate(data.table, 1 << 30)


EQUAL = Accepted("equal", no_note=True)
SAME = (
    case("S03", "a byte-order mark", lambda d: d.rewrite(lambda t: "\ufeff" + t), EQUAL),
    case(
        "S06",
        "a further column in BIDS",
        lambda d: d.rewrite(
            lambda t: re.sub(r"\n", "\tx\n", t.replace("treatment", "treatment\tage", 1)).replace(
                "age\tx", "age", 1
            )
        ),
        EQUAL,
    ),
    case(
        "S06", "a further column in a manifest", lambda d: further_column(d), Refused(("TD3305",))
    ),
    case(
        "S08",
        "spaces around a day",
        lambda d: d.rewrite(lambda t: t.replace("\t75\t", "\t 75 \t")),
        EQUAL,
    ),
    case("S28", "CRLF", lambda d: d.rewrite(lambda t: t.replace("\n", "\r\n")), EQUAL),
    case("S28", "no newline at the end", lambda d: d.rewrite(str.rstrip), EQUAL),
    case("S28", "blank lines at the end", lambda d: d.rewrite(lambda t: t + "\n\n\t\t\n"), EQUAL),
    case(
        "S13",
        "unsorted rows, --sort",
        lambda d: d.rewrite(rows_backwards),
        Accepted("equal", note="sorted by day"),
        options={"sort": True},
    ),
)


def further_column(data: Data) -> None:
    lines = data.manifest().read_text().splitlines()
    data.case.write_text(
        "".join(f"{line},{'x' if i else 'age'}\n" for i, line in enumerate(lines))
    )


def rows_backwards(text: str) -> str:
    header, *rows = text.splitlines(keepends=True)
    return header + "".join(reversed(rows))


def shifted_days(data: Data) -> None:
    for day in (160, 75, 30, 0):
        data.rewrite(lambda t, day=day: t.replace(f"\t{day}\t", f"\t{day + 37}\t"))


def only_last(data: Data, count: int) -> None:
    """The last sessions alone, the first of them on day 0."""
    for s in range(1, 5 - count):
        shutil.rmtree(data.bids / f"sub-17/ses-{s:02d}")
    first = {2: 75, 1: 160}[count]
    rows = [row.split("\t") for row in GOOD.splitlines()[1:]][-count:]
    text = "".join(f"{name}\t{int(day) - first}\t{drug}\n" for name, day, drug in rows)
    data.table.write_text(HEADER + text)


def thousand_sessions(data: Data) -> None:
    """Links to three files: a session a day, the last three as in `three_sessions`."""
    root = data.bids / "sub-18"
    rows = []
    for s in range(1000):
        name = f"ses-{s:04d}"
        (root / name / "anat").mkdir(parents=True)
        for modality, suffix in (("t1", "T1w"), ("t1c", "ce-gadolinium_T1w"), ("flair", "FLAIR")):
            os.link(data.image(4, modality), root / f"{name}/anat/sub-18_{name}_{suffix}.nii.gz")
        rows.append(f"{name}\t{s}\tTMZ\n")
    (root / "sub-18_sessions.tsv").write_text(HEADER + "".join(rows))
    data.case = root


def request(
    id: str, what: str, options: dict[str, object], *codes: str, exit_code: int = 3
) -> CorpusCase:
    return CorpusCase(id=id, what=what, options=options, ending=Refused(codes, exit_code))


PADDED = "No --repeat-first: as in the published test, the first session is repeated, with a note."
REQUESTS = (
    case(
        "S14",
        "the first day is 37, --rebase-days",
        shifted_days,
        Accepted("equal", note="37 subtracted"),
        options={"rebase_days": True},
    ),
    request("S15", "the target day is the last", {"day": "160"}, "TD3312"),
    request("S15", "the target day is before the last", {"day": "100"}, "TD3312"),
    request("S15", "the target day is before the first", {"day": "0"}, "TD3312"),
    request("S16", "401 days on", {"day": "561"}, "TD3313"),
    request("S16", "70,000 days", {"day": "70000"}, "TD3313", "TD3313"),
    case(
        "S16",
        "2000 days, --extrapolate",
        lambda d: None,
        Accepted("other", note="extrapolated on request"),
        options={"day": "2000", "extrapolate": True},
    ),
    *(
        request("S17", f"--treatment {name or 'empty'}", {"treatment": name}, "TD3314")
        for name in ("7", "-1", "tmz", "")
    ),
    case(
        "S18",
        "one session",
        lambda d: only_last(d, 1),
        Accepted(note="fewer than 3 sessions"),
        differs=PADDED,
    ),
    case(
        "S18",
        "two sessions",
        lambda d: only_last(d, 2),
        Accepted(note="fewer than 3 sessions"),
        differs=PADDED,
    ),
    case(
        "S19",
        "1000 sessions",
        thousand_sessions,
        Accepted(note="the last 3 of 1000 sessions are used"),
        slow=True,
    ),
)


def sailor(data: Data, intervals: tuple[int, ...]) -> None:
    """Four sessions in the layout of SAILOR, and intervals between so many."""
    root = data.bids / "sub-22"
    for s in range(1, 5):
        folder = root / f"ses-{s:02d}"
        for m, name in enumerate(("T1", "T1c", "Flair")):
            save(folder / f"{name}.nii.gz", scan(10 * s + m))
        (folder / "treatment.txt").write_text("TMZ\n")
    (root / "intervals-days.txt").write_text("".join(f"{days}\n" for days in intervals))
    data.case, data.t1 = root, root / "ses-04/T1.nii.gz"


FOLDERS = (
    case("S20", "no image of a session", lambda d: d.image().unlink(), Refused(("TD3316",))),
    case(
        "S20",
        "no image of a session that is not used",
        lambda d: d.image(1).unlink(),
        Refused(("TD3316",)),
    ),
    case(
        "S20",
        "a row without images",
        lambda d: d.rewrite(lambda t: t + "ses-05\t200\tTMZ\n"),
        Refused(("TD3316",) * 3),
    ),
    case(
        "S20",
        "images without a row",
        lambda d: d.rewrite(lambda t: re.sub("ses-03.*\n", "", t)),
        Refused(("TD3317",)),
    ),
    case(
        "S27",
        "SAILOR, fewer intervals than sessions",
        lambda d: sailor(d, (30, 45)),
        Refused(("TD3319",)),
    ),
    case(
        "S27",
        "SAILOR, more intervals than sessions",
        lambda d: sailor(d, (30, 45, 85, 20)),
        Refused(("TD3319",)),
    ),
    case(
        "S27", "SAILOR, as many as there should be", lambda d: sailor(d, (30, 45, 85)), Accepted()
    ),
)
CASES = (*JSON, *SAME, *REQUESTS, *FOLDERS)
