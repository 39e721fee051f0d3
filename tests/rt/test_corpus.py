"""The corpus of bad and odd inputs ends as required, by command, under -O, and from Python.

The cases and what is required of them are in tests/corpus; docs/corpus.md lists them.
"""

import ast
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.corpus.__main__ import PAGE, main
from tests.corpus.case import GOOD, Accepted, CorpusCase, Either, Refused, Said
from tests.corpus.cases import CASES, ELSEWHERE, IDS
from tests.corpus.fuzz import run_files
from tests.corpus.harness import MODES, ROOT, applies, server
from tests.corpus.judge import Run, changes, judge, listing, stderr_complaints
from tests.corpus.phantom import Data, save, write_good
from tests.corpus.results import Result, compare, read_folder
from tests.corpus.server import MIB, forked, over_limits
from tests.corpus.table import definitions, expected_definitions, render

RUNS = [(mode, case) for mode in MODES for case in CASES if applies(case, mode)]


def is_refused(case: CorpusCase) -> bool:
    """Whether it ends early; a forecast takes five times as long."""
    return isinstance(case.ending, Refused | Said)


FIRST = {(case.id, is_refused(case)): case for case in reversed(CASES) if not case.slow}
"""One case of every kind of fault and ending."""
SAMPLE = {case.id[0]: case for case in FIRST.values() if is_refused(case)}
"""One refused case of every section."""


def is_slow(mode: str, case: CorpusCase) -> bool:
    """Each day: of every kind one case through the command and one forecast, and what is refused
    from Python; a sample under -O."""
    is_first = FIRST.get((case.id, is_refused(case))) is case
    every_day = {
        "api": is_refused(case) or is_first,
        "command": is_first and (is_refused(case) or case.id in ("N10", "G03", "X06")),
        "optimised": case in SAMPLE.values(),
    }
    return case.slow or not every_day[mode]


@pytest.fixture(scope="module")
def ask(bundle: Path) -> Iterator[Callable]:
    """Runs a case in a mode; a child of each mode that is asked for lives as long as this."""
    with ExitStack() as stack:
        children: dict[str, object] = {}

        def run(mode: str, case: CorpusCase) -> dict:
            if mode not in children:
                children[mode] = stack.enter_context(server(mode, bundle))
            return children[mode].ask(case)

        yield run


@pytest.mark.parametrize(
    ("mode", "case"),
    [
        pytest.param(
            mode,
            case,
            id=f"{mode} {case.key}".replace("::", ":"),
            marks=[pytest.mark.slow] if is_slow(mode, case) else [],
        )
        for mode, case in RUNS
    ],
)
def test_a_case_ends_as_required(mode: str, case: CorpusCase, ask: Callable):
    assert ask(mode, case)["complaints"] == []


# What is covered.


def test_no_id_is_missing():
    covered = {case.id for case in CASES} | {entry.id for entry in ELSEWHERE}
    assert covered == set(IDS)
    assert len(IDS) == 38 + 21 + 21 + 29 + 13 + 10


def test_every_case_has_a_name_of_its_own():
    keys = [case.key for case in CASES]
    assert len(set(keys)) == len(keys)
    assert not any("\n" in key or not key.isascii() for key in keys)


def test_the_page_lists_the_cases():
    """Its last three columns are of the run that wrote it, which must have gone well."""
    page = PAGE.read_text()
    assert definitions(page) == expected_definitions()
    assert "NO |" not in page
    good = {mode: {c.key: {"complaints": []} for m, c in RUNS if m == mode} for mode in MODES}
    assert [*page.splitlines()] == [*render(good, settings_of(page)).splitlines()]


def settings_of(page: str) -> str:
    """How many headers were mutated in that run."""
    return next(line for line in page.splitlines() if line.startswith("Headers of N38: "))


def test_the_fuzz_of_the_page_is_the_large_one():
    assert settings_of(PAGE.read_text()) == "Headers of N38: 60000 mutations."


def functions_of(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("entry", ELSEWHERE, ids=lambda entry: f"{entry.id} {entry.what}")
def test_what_is_tested_elsewhere_exists(entry):
    for test in entry.tests:
        path, _, name = test.partition("::")
        assert name in functions_of(path), test


# The harness itself: what it would miss, all of the above would miss.


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return write_good(tmp_path / "case")


REFUSED = CorpusCase(id="N01", what="x", ending=Refused(("TD3101",), says=("empty",)))
SAID = "tadiff-rt: error TD3101: the file is empty"


@pytest.mark.parametrize(
    ("run", "what"),
    [
        (Run(3, ["TD3101"], SAID), ""),
        (Run(2, ["TD3101"], SAID), "exit code 2, not 3"),
        (Run(3, ["TD3102"], SAID), "codes ['TD3102'], not ['TD3101']"),
        (Run(3, ["TD3101", "TD3101"], SAID), "codes ['TD3101', 'TD3101']"),
        (Run(3, [], SAID), "codes []"),
        (Run(3, ["TD3101"], "nothing"), "it does not say 'empty'"),
        (Run(3, ["TD3101"], SAID, complaints=["a traceback"]), "a traceback"),
        (Run(0, []), "exit code 0"),
    ],
)
def test_the_judge_of_what_is_refused(run, what, data):
    complaints = judge(REFUSED, run, data, None)
    assert [what in c for c in complaints[:1]] == ([True] if what else [])


@pytest.mark.parametrize(
    ("err", "what"),
    [
        (f"{SAID}\n  where: a\n  fix:   b", ""),
        (f"{SAID}\n  where: \x1b[2J", "not plain ASCII"),
        (f"{SAID}\n  where: é", "not plain ASCII"),
        (f"{SAID} TD3102", "not one code a finding"),
        (f"{SAID}\nmore", "not one code a finding"),
        (SAID + "\n  a" * 4, "5 lines for 1 findings"),
        (f"{SAID}\n  Traceback (most recent call last):", "a traceback"),
    ],
)
def test_the_form_of_a_message_is_checked(err, what):
    complaints = stderr_complaints(err, 1)
    assert [what in c for c in complaints] == ([True] if what else [])


def result(**changed: object) -> Result:
    voxels = np.arange(24.0).reshape(2, 3, 4)
    fields = {"volumes": {"t1": (voxels, np.eye(4))}, "samples_ml": [1.5], "notes": ["a note"]}
    return Result(**{**fields, **changed})


def of_voxels(change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray | None = None):
    voxels, here = result().volumes["t1"]
    return {"t1": (change(voxels), here if affine is None else affine)}


FLIP = np.array([[-1.0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("how", "changed", "is_fine"),
    [
        ("equal", {}, True),
        ("equal", {"samples_ml": [1.6]}, False),
        ("equal", {"volumes": {}}, False),
        ("equal", {"volumes": of_voxels(lambda v: np.nextafter(v, 99))}, False),
        ("equal", {"volumes": of_voxels(lambda v: v, np.diag([1, 1, 1.1, 1]))}, False),
        ("equal", {"volumes": of_voxels(lambda v: v[::-1], FLIP)}, False),
        ("mapped", {"volumes": of_voxels(lambda v: v[::-1], FLIP)}, True),
        ("mapped", {"volumes": of_voxels(lambda v: v, FLIP)}, False),
        ("mapped", {"volumes": of_voxels(lambda v: v[::-1])}, False),
        ("close", {"volumes": of_voxels(lambda v: v + 2e-4)}, True),
        ("close", {"volumes": of_voxels(lambda v: v + 3e-4)}, False),
        ("first", {"samples_ml": [1.5, 9.0]}, True),
        ("first", {"samples_ml": [9.0, 1.5]}, False),
        ("other", {}, False),
        ("other", {"volumes": of_voxels(lambda v: v + 1)}, True),
        ("complete", {"volumes": {}}, True),
    ],
)
def test_results_are_compared(how, changed, is_fine):
    assert (compare(how, result(**changed), result()) == []) is is_fine


def test_results_on_overlapping_grids_are_compared():
    moved = np.eye(4)
    moved[:3, 3] = [-1, -1, 0]
    larger = np.pad(result().volumes["t1"][0], ((1, 1), (1, 1), (0, 0)))
    assert compare("overlap", result(volumes={"t1": (larger, moved)}), result()) == []
    assert compare("overlap", result(), result(volumes={"t1": (larger, moved)})) == []
    assert compare("overlap", result(volumes={"t1": (larger, np.eye(4))}), result()) != []
    larger[0, 0, 0] = 1
    assert compare("overlap", result(volumes={"t1": (larger, moved)}), result()) != []


@pytest.mark.parametrize(
    ("ending", "run", "is_fine"),
    [
        (Accepted(), Run(0, [], result=result()), True),
        (Accepted(), Run(0, []), False),
        (Accepted(), Run(0, [], result=result(complaints=["torn"])), False),
        (Accepted(), Run(3, ["TD3101"], result=result()), False),
        (Accepted(note="note"), Run(0, [], result=result()), True),
        (Accepted(note="another"), Run(0, [], result=result()), False),
        (Accepted("equal"), Run(0, [], result=result(notes=[])), True),
        (Accepted("equal", no_note=True), Run(0, [], result=result(notes=["b"])), False),
        (Accepted("equal"), Run(0, [], result=result(samples_ml=[2.0])), False),
        (Said(2, err="Usage"), Run(2, [], err="Usage: x"), True),
        (Said(2, err="Usage"), Run(2, [], err="x"), False),
        (Said(2, err="Usage"), Run(2, ["TD3000"], err="Usage: x"), False),
        (Either(), Run(3, ["TD3118"]), True),
        (Either(), Run(0, [], result=result()), True),
        (Either(), Run(70, ["TD7000"]), False),
        (Either(("TD3105",), may_be_accepted=False), Run(0, [], result=result()), False),
        (Either(("TD3105",), may_be_accepted=False), Run(3, ["TD3101"]), False),
    ],
)
def test_the_judge_of_other_endings(ending, run, is_fine, data):
    save(data.t1, np.zeros((2, 3, 4), np.float32), np.eye(4))
    case = CorpusCase(id="N01", what="x", ending=ending)
    assert (judge(case, run, data, result()) == []) is is_fine


def test_a_result_on_another_grid_is_seen(data):
    run = Run(0, [], result=result())
    assert any("shape" in c for c in judge(GOOD, run, data, None))
    save(data.t1, np.zeros((2, 3, 4), np.float32), np.diag([1, 1, 2, 1.0]))
    assert any("affine" in c for c in judge(GOOD, run, data, None))


def test_every_change_on_the_disk_is_seen(data):
    before = listing(data.root)
    assert changes(before, listing(data.root)) == []
    steps = (
        lambda: data.table.write_text(data.table.read_text() + "\n"),
        lambda: (data.root / "out/.forecast.tadiff-tmp-1").mkdir(),
        lambda: data.image().unlink(),
        lambda: data.image(3).chmod(0o600),
        lambda: (data.root / "tmp/link").symlink_to("nowhere"),
    )
    for step in steps:
        step()
        after = listing(data.root)
        assert changes(before, after) != []
        assert changes(after, listing(data.root)) == []
        before = after
    (data.root / "out/forecast").mkdir()
    assert changes(before, listing(data.root), ["out/forecast"]) == []
    assert changes(before, listing(data.root), ["out/fore"]) != []


def test_a_torn_result_is_seen(data):
    """No manifest, one that names another file, and a volume that is not what it says."""
    folder = data.root / "tmp"
    assert "no manifest" in read_folder(folder).complaints[0]
    (folder / "forecast.json").write_text('{"files": {"a.nii.gz": {"sha256": "0"}}}')
    assert read_folder(folder).complaints == [
        "a.nii.gz is not what the manifest says",
        "no volumes",
    ]
    save(folder / "a.nii.gz", np.full((2, 2, 2), np.nan, np.float32))
    found = read_folder(folder).complaints
    assert found == ["a.nii.gz is not what the manifest says", "a.nii.gz: not finite"]
    (folder / "forecast.json").write_text('{"files": {}, "volume": NaN}')
    assert "NaN is no JSON number" in read_folder(folder).complaints[0]


LARGE = CorpusCase(id="N11", what="x", ending=Accepted(), memory_mb=150, cpu_seconds=0.2)


@pytest.mark.parametrize(
    ("outcome", "mode", "is_fine"),
    [
        ({"memory_mb": 149, "cpu_seconds": 0.1}, "api", True),
        ({"memory_mb": 151, "cpu_seconds": 0.1}, "api", False),
        ({"memory_mb": 0, "cpu_seconds": 0.3}, "api", False),
        ({"memory_mb": 0, "cpu_seconds": 0.3}, "command", True),
        ({"memory_mb": 0, "cpu_seconds": 2.3}, "command", False),
    ],
)
def test_limits_of_memory_and_time_are_applied(outcome, mode, is_fine):
    assert (over_limits(LARGE, outcome, mode) == []) is is_fine


def wait_for_ever() -> dict:
    time.sleep(3600)
    return {}


def test_what_happens_to_a_fork_is_told():
    free = 1 << 45
    big = forked(lambda: {"complaints": [], "size": len(bytearray(300 * MIB))}, free)
    assert (big["complaints"], big["size"]) == ([], 300 * MIB)
    assert 280 < big["memory_mb"] < 400
    assert "-9" in forked(lambda: os.kill(os.getpid(), signal.SIGKILL), free)["complaints"][0]
    assert "-14" in forked(wait_for_ever, free, seconds=1)["complaints"][0]
    assert "KeyError: 'x'" in forked(lambda: {}["x"], free)["complaints"][0]
    small = forked(lambda: {"size": len(bytearray(1 << 44))}, 1 << 36)
    assert "MemoryError" in small["complaints"][0]


FUZZED = next(case for case in CASES if case.id == "N38")


def volume(voxels: np.ndarray, affine: np.ndarray) -> Callable:
    return lambda *args: SimpleNamespace(data=voxels, affine=affine)


def escaping(*args: object) -> None:
    raise AssertionError("escaped")


SHEARED = np.eye(4) + 0.1 * np.eye(4, k=1)


@pytest.mark.parametrize(
    ("read", "what"),
    [
        (volume(np.zeros(3), np.eye(4)), ""),
        (volume(np.full(3, np.inf), np.eye(4)), "file 0 was read"),
        (volume(np.zeros(3), SHEARED), "file 0 was read"),
        (volume(np.zeros(3), np.eye(4) * np.nan), "file 0 was read"),
        (escaping, "file 0: AssertionError: escaped"),
    ],
)
def test_the_fuzz_sees_what_should_not_be(read, what, data, monkeypatch):
    monkeypatch.setattr("tadiff_rt.readers.nifti.read_volume", read)
    assert run_files(FUZZED, data, 1)["complaints"] == ([what] if what else [])


def test_the_script_runs_what_it_is_asked_for(bundle, capfd):
    assert main(["S10", "--mode", "api", "--engine", str(bundle)]) == 0
    err = capfd.readouterr().err
    assert "api: 1 cases" in err
    assert "command" not in err
    assert err.endswith("0 runs did not end as required\n")
