"""A01 to A07, A12, A13: command lines, and places for results."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.corpus import affines, files, grids, paths, sessions, tables, voxels
from tests.corpus.case import Accepted, CorpusCase, Elsewhere, Refused, Said
from tests.corpus.paths import without_privilege
from tests.corpus.phantom import Data
from tests.corpus.run import predict

Ending = Accepted | Refused | Said


BAD = tuple(
    case
    for part in (files, paths, grids, affines, voxels, tables, sessions)
    for case in part.CASES
    if isinstance(case.ending, Refused)
)


def line(id: str, what: str, text: str, ending: Ending) -> CorpusCase:
    """A whole command line without a case."""
    return CorpusCase(id=id, what=what, argv=lambda d, e: text.split(), ending=ending, api=False)


def usage(id: str, option: str, value: str, code: str, api: bool = True) -> CorpusCase:
    """A value that an option does not take; the message names the option."""
    name = option.replace("-", "_")
    shown = value or "empty"
    return CorpusCase(
        id=id,
        what=f"--{option} {shown}",
        options={name: value},
        ending=Refused((code,), exit_code=2),
        api=api,
    )


ARGUMENTS = (
    line("A01", "no arguments", "", Said(2, err="Usage: tadiff-rt")),
    line("A01", "--help", "--help", Said(0, out="Usage: tadiff-rt")),
    line("A01", "predict --help", "predict --help", Said(0, out="Usage: tadiff-rt predict")),
    line("A01", "--version", "--version", Said(0, out="tadiff ")),
    line("A01", "an unknown command", "nonsense", Refused(("TD3000",), exit_code=2)),
    line("A01", "an unknown option", "predict --nonsense", Refused(("TD3000",), exit_code=2)),
    line("A01", "nothing but predict", "predict", Refused(("TD3000",), exit_code=2)),
    *(
        usage("A02", "samples", value, "TD3015")
        for value in ("0", "-1", "1e9", "10001", "nan", "")
    ),
    *(usage("A02", "steps", value, "TD3016") for value in ("0", "1001", "1000000000")),
    *(usage("A02", "seed", value, "TD3017") for value in ("-1", str(2**64), "abc")),
    *(usage("A02", "slices", value, "TD3018") for value in ("5:5", "-1", "half", "1:2:3")),
    usage("A02", "slices", "24", "TD3019"),
    *(usage("A02", "day", value, "TD3011") for value in ("soon", "-5", "+1e3", "", "2026-01-01")),
    usage("A02", "solver", "euler", "TD3042"),
    usage("A02", "grid", "even", "TD3041"),
    usage("A02", "nonfinite", "ignore", "TD3005"),
    usage("A02", "affine", "both", "TD3005"),
    CorpusCase(
        id="A03", what="one sample", options={"samples": 1}, ending=Accepted("equal", no_note=True)
    ),
    CorpusCase(id="A03", what="two samples", options={"samples": 2}, ending=Accepted()),
    CorpusCase(
        id="A07",
        what="--samples auto --latin",
        options={"samples": "auto", "latin": True},
        ending=Refused(("TD3049",), exit_code=2),
    ),
    CorpusCase(
        id="A07",
        what="--backend tpu",
        argv=lambda d, e: [*predict(d, e), "--backend", "tpu"],
        ending=Refused(("TD3050",), exit_code=2),
        api=False,
    ),
    CorpusCase(
        id="A07",
        what="an engine that is not there",
        argv=lambda d, e: predict(d, str(d.root / "no/such.tadiff")),
        ending=Refused(("TD5002",), exit_code=5),
        api=False,
    ),
    CorpusCase(
        id="A07",
        what="an engine at an address",
        argv=lambda d, e: predict(d, "http://host/x.tadiff"),
        ending=Refused(("TD3053",), exit_code=2),
        api=False,
    ),
)


def out(
    what: str,
    where: Callable[[Data], str | Path],
    code: str,
    *flags: str,
    spoil: Callable[[Data], object] = lambda d: None,
    **more: Any,
) -> CorpusCase:
    """A result that may not be put there."""
    return CorpusCase(
        id="A04",
        what=f"-o {what}",
        spoil=spoil,
        argv=lambda d, e: [*predict(d, e), "--out", str(where(d)), *flags],
        ending=Refused((code,), exit_code=8),
        api=False,
        **more,
    )


def with_file(data: Data) -> None:
    data.out.mkdir()
    (data.out / "notes.txt").write_text("mine")


def closed_parent(data: Data) -> None:
    data.out.parent.chmod(0o500)


PLACES = (
    out("a file", lambda d: d.table, "TD8005"),
    out(
        "a file elsewhere",
        lambda d: d.root / "tmp/file",
        "TD8004",
        spoil=lambda d: (d.root / "tmp/file").touch(),
    ),
    out("a folder with a file", lambda d: d.out, "TD8001", spoil=with_file),
    out(
        "a folder with a file, --overwrite",
        lambda d: d.out,
        "TD8001",
        "--overwrite",
        spoil=with_file,
    ),
    out("the case", lambda d: d.case, "TD8005"),
    out("a folder in the case", lambda d: d.case / "forecast", "TD8005"),
    out("/", lambda d: "/", "TD8005"),
    out("a folder whose parent is missing", lambda d: d.root / "no/such", "TD8003"),
    out("5000 characters", lambda d: d.root / ("x" * 5000), "TD8006"),
    out("a name of 256 characters", lambda d: d.root / ("x" * 256), "TD8006"),
    out("-", lambda d: "-", "TD8006"),
    out("/dev/full", lambda d: "/dev/full", "TD8004"),
    out(
        "a folder that may not be written",
        lambda d: d.out,
        "TD8002",
        spoil=closed_parent,
        arrange=without_privilege,
    ),
    CorpusCase(
        id="A06",
        what="one file for two modalities",
        spoil=lambda d: d.manifest(flair=str(d.image(modality="t1"))),
        ending=Refused(("TD3001",), exit_code=2, says=("--allow-same",)),
    ),
    CorpusCase(
        id="A06",
        what="one file for two modalities, --allow-same",
        spoil=lambda d: d.manifest(flair=str(d.image(modality="t1"))),
        options={"allow_same": True},
        ending=Accepted("other", note="W3130"),
    ),
)


ELSEWHERE = (
    Elsewhere(
        "A10",
        "signals at every phase",
        (
            "tests/rt/test_endings.py::test_a_signal_during_any_call_leaves_nothing",
            "tests/rt/test_endings.py::test_a_signal_to_a_fresh_process",
            "tests/rt/test_cli.py::test_a_signal_ends_the_run_and_leaves_nothing",
        ),
    ),
    Elsewhere(
        "A12",
        "an export that fails",
        (
            "tests/export/test_export.py::test_an_existing_bundle_is_kept",
            "tests/export/test_export.py::test_a_failed_export_leaves_nothing",
        ),
    ),
    Elsewhere(
        "A13",
        "training that is killed",
        ("tests/train/test_resume.py::test_a_resumed_run_is_the_unbroken_one_to_the_bit",),
    ),
)


def checked(of: CorpusCase) -> CorpusCase:
    """A bad input that `--check` must find, too."""
    return CorpusCase(
        id=of.id,
        what=f"{of.what}, --check",
        spoil=of.spoil,
        argv=lambda d, e: predict(d, e, "--check", **of.options),
        ending=of.ending,
        api=False,
    )


CHECKED = ("N05", "N34", "G04", "G16", "G19", "V04", "V09", "S13", "S16", "S20")
CHECKS = (
    *(checked(next(case for case in BAD if case.id == id and not case.slow)) for id in CHECKED),
    CorpusCase(
        id="N01",
        what="0 bytes, --errors=json",
        spoil=lambda d: d.image().write_bytes(b""),
        argv=lambda d, e: [*predict(d, e), "--errors=json"],
        ending=Refused(("TD3101",), says=('"code": "TD3101"', '"exit": 3')),
        api=False,
    ),
    CorpusCase(
        id="A01",
        what="the good case, --check",
        argv=lambda d, e: predict(d, e, "--check"),
        ending=Said(0, out="nothing was written"),
        api=False,
    ),
    CorpusCase(
        id="A01",
        what="the good case, --dry-run",
        argv=lambda d, e: predict(d, e, "--dry-run"),
        ending=Said(0, out="nothing was written"),
        api=False,
    ),
)
CASES = (*ARGUMENTS, *PLACES, *CHECKS)
