"""Whatever ends a forecast, what is found afterwards is a whole result or none.

F01 to F22 number the faults of the project's fault model; `tests/faults` holds the machinery.
"""

import errno
import itertools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import tadiff_rt
from tadiff_rt import console
from tadiff_rt.journal import Journal, discard_journal
from tests.faults import check, interrupts, kill, memory, order, steps
from tests.faults.server import Ended, ForkServer, session_members
from tests.faults.setting import Setting

COMMAND = (sys.executable, "-c", "from tadiff_rt.cli import main; main()")
NOBODY = 65534
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: another user, or a file system")


@pytest.fixture(scope="module")
def setting(bundle, case_folder) -> Iterator[Setting]:
    with ForkServer() as server:
        yield Setting.of(server, bundle, case_folder)


@pytest.fixture(scope="module")
def earlier(setting) -> tuple[Path, object, object]:
    """A place with an earlier result; contents of the new one and of that."""
    return steps.with_earlier(setting, "module")


def codes(ended) -> list[str]:
    return re.findall(r"TD\d{4}", ended.err)


# kill -9


@pytest.mark.parametrize("runs", [4, pytest.param(200, marks=pytest.mark.slow, id="200-slow")])
def test_a_kill_at_a_random_moment_tears_nothing(runs, setting):
    """F01, F02, F06: and the same command then ends with the bits of the unbroken run."""
    found = kill.kills(setting, runs, seed=7)
    assert found["killed with an earlier result"] == found["killed without an earlier result"]
    assert sum(found[f"killed {w} an earlier result"] for w in ("with", "without")) == runs
    if runs == 200:  # moments before, amid and after the sampling were met
        seen = ("no result", "new result whole", "earlier result whole", "kept slices")
        assert all(found[what] for what in seen), found


@pytest.mark.parametrize("replaces", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize("every", [97, pytest.param(1, marks=pytest.mark.slow, id="1-slow")])
def test_the_end_before_any_call_tears_nothing(every, replaces, setting):
    """F01 without chance: the process ends before its 1st, 2nd, ... call of the system."""
    found = steps.deaths(setting, replaces, every)
    assert sum(n for what, n in found.items() if what.startswith("killed")) > 100 // every
    if every == 1:
        assert found["earlier result whole, aside"] == replaces
        assert found["kept slices"] > 3
        assert found["new result whole"] > 0


# A full disk, and one that fails.


@pytest.mark.parametrize("replaces", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize(
    ("error", "calls", "code"),
    [
        (errno.ENOSPC, steps.SPACE, 7),
        (errno.EIO, ("open", "write", "fsync", "close", "replace"), 8),
    ],
    ids=["full", "failing"],
)
@pytest.mark.parametrize("every", [97, pytest.param(3, marks=pytest.mark.slow, id="3-slow")])
def test_any_failing_call_ends_with_its_code(every, error, calls, code, replaces, setting):
    """F03, F04: nothing half written, and the journal is good for the same command."""
    found = steps.failures(setting, error, calls, replaces, every)
    assert set(found) == {f"exit {code}"}
    assert found.total() > 50 // every


@pytest.mark.parametrize(("nth", "state"), [(1, "old"), (2, "old"), (3, "new")])
def test_a_rename_that_fails(nth, state, setting, earlier):
    """F06: of the earlier result aside, of the new one in its place, of the earlier one away."""
    place = steps.restored(setting, earlier[0])
    fault = ("fail_call", {"n": nth, "error": errno.EIO, "calls": ("rename",)})
    ended = setting.server.run(setting.plain(place, "--overwrite"), fault)
    assert (ended.code, codes(ended), bool(ended.fired)) == (8, ["TD8007"], True)
    assert check.whole(place / "out")
    assert check.content(place / "out") == earlier[1 if state == "new" else 2]
    assert len(check.temporaries(place)) == (state == "new")
    assert setting.server.run(setting.plain(place, "--overwrite")).code == 0
    assert os.listdir(place) == ["out"]


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@root
@pytest.mark.parametrize("kib", [4, 40, 400, 1200])
def test_a_small_disk(kib, setting, earlier):
    """F03 with a real file system: no room for a folder, a journal, the result, its last files."""
    size = f"size={kib}k"
    with mounted(setting.place("small") / "disk", "-t", "tmpfs", "-o", size, "tmpfs") as disk:
        ended = setting.server.run(setting.forecast(disk))
        assert (ended.code, codes(ended)) == (7, ["TD7002"]), ended
        assert re.search(
            r"\d+ bytes are free, the file needs \d+|needs about \d+ bytes, \d+ are free",
            ended.err,
        )
        steps.assert_clean(disk, ended, earlier[1], None)
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        assert setting.server.run(setting.forecast(disk)).code == 0
        assert check.content(disk / "out") == earlier[1]
        assert os.listdir(disk) == ["out"]


@pytest.mark.parametrize("soft", [2000, 7000, 20_000])
@pytest.mark.parametrize("journal", [False, True])
def test_a_limit_of_file_sizes(soft, journal, setting, earlier):
    """F03: the kernel refuses what goes beyond."""
    place = setting.place("limited")
    argv = (setting.forecast if journal else setting.plain)(place)
    ended = setting.server.run(argv, ("limit", {"name": "RLIMIT_FSIZE", "soft": soft}))
    # A journal is written first and its files are the largest, but for those of large cases.
    fits = not journal and soft == 20_000
    assert (ended.code, codes(ended)) == ((0, []) if fits else (7, ["TD7002"])), ended
    steps.assert_clean(place, ended, earlier[1], None)
    if not fits:
        assert re.search(r"File too large; \d+ bytes are free, the file needs \d+", ended.err)
        assert setting.server.run(argv).code == 0
    assert check.content(place / "out") == earlier[1]


# Places where nothing can be written, or no longer.


@root
def test_a_folder_of_another_user(setting, earlier):
    """F05: found before anything is loaded; of an earlier result nothing is lost."""
    place = steps.restored(setting, earlier[0])
    for argv in (
        setting.plain(place, "--overwrite"),
        setting.plain(place, "-o", str(place / "other")),
    ):
        before = time.monotonic()
        ended = setting.server.run(argv, ("become", {"user": NOBODY}), ("no_engine", {}))
        assert (ended.code, codes(ended)) == (8, ["TD8002"]), ended
        assert "Permission denied" in ended.err
    assert os.listdir(place) == ["out"]
    assert check.content(place / "out") == earlier[2]
    assert time.monotonic() > before


@root
def test_a_work_folder_that_is_read_only(setting):
    """F05: found before anything is drawn."""
    place = setting.place("kept")
    with mounted(place / "work", "-t", "tmpfs", "tmpfs") as work:
        subprocess.run(["mount", "-o", "remount,ro", str(work)], check=True)
        ended = setting.server.run(setting.forecast(place), ("no_engine", {"loaded": True}))
        assert (ended.code, codes(ended)) == (8, ["TD8002"]), ended
        assert os.listdir(place) == ["work"]


@root
def test_a_read_only_file_system(setting, earlier):
    """F05: an earlier result lies there."""
    place = steps.restored(setting, earlier[0], "readonly")
    seen = setting.server.folder / "seen"
    with mounted(seen, "--bind", str(place)):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(seen)], check=True)
        argv = setting.plain(seen, "--overwrite")
        ended = setting.server.run(argv, ("no_engine", {}))
        assert (ended.code, codes(ended)) == (8, ["TD8002"]), ended
        assert "Read-only file system" in ended.err
    assert check.content(place / "out") == earlier[2]


@root
def test_a_disk_that_turns_read_only_meanwhile(setting, earlier):
    """F05: as systems do with a disk that fails. The next run removes what this one could not."""
    with mounted(setting.place("turns") / "disk", "-t", "tmpfs", "tmpfs") as disk:
        shutil.copytree(earlier[0] / "out", disk / "out")
        argv = setting.plain(disk, "--overwrite")
        remount = ["mount", "-o", "remount,ro", str(disk)]
        # Where no file is open: the system refuses otherwise.
        fault = ("run_before_call", {"n": 9, "command": remount, "calls": ["replace"]})
        ended = setting.server.run(argv, fault)
        assert (ended.code, codes(ended)) == (8, ["TD8002"]), ended
        assert check.content(disk / "out") == earlier[2]
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        assert setting.server.run(argv).code == 0
        assert os.listdir(disk) == ["out"]


@pytest.mark.parametrize("n", [3, 40, 200])
@pytest.mark.parametrize("journal", [False, True])
def test_a_folder_that_vanishes_meanwhile(n, journal, setting):
    """F05: after the folder was made, while files are written, at the end."""
    place = setting.place("vanishing") / "sub"
    place.mkdir()
    argv = [*setting.plain(place), *(["--work", str(place.parent / "work")] if journal else [])]
    remove = ["rm", "-r", str(place)]
    ended = setting.server.run(argv, ("run_before_call", {"n": n, "command": remove}))
    assert (ended.code, codes(ended)) == (8, ["TD8003"]), ended
    assert "Traceback" not in ended.err
    assert not place.exists()
    place.mkdir()
    assert setting.server.run(argv).code == 0
    assert os.listdir(place) == ["out"]


@root
def test_another_file_system(setting, earlier):
    """Temporaries lie beside what they become: nothing is renamed across file systems."""
    with mounted(setting.place("other") / "disk", "-t", "tmpfs", "tmpfs") as disk:
        work = str(disk.parent / "work")
        assert setting.server.run(setting.plain(disk, "--work", work)).code == 0
        link = disk.parent / "link"
        link.symlink_to(disk / "out")
        argv = setting.plain(disk, "-o", str(link), "--overwrite")
        assert setting.server.run(argv).code == 0
        assert link.is_symlink()
        assert check.content(disk / "out") == earlier[1]
        assert os.listdir(disk) == ["out"]
        assert sorted(os.listdir(disk.parent)) == ["disk", "link"]


def test_a_standard_output_that_is_full(setting, earlier):
    """F04: the result is there and whole; that it could not be announced is an error."""
    place = setting.place("full")
    ended = setting.server.run(setting.plain(place), stdout="/dev/full")
    assert (ended.code, codes(ended)) == (8, ["TD8009"])
    assert check.whole(place / "out")
    assert check.content(place / "out") == earlier[1]


# Signals.


@pytest.mark.parametrize(
    ("number", "times", "replaces"),
    [
        (signal.SIGINT, 1, False),
        (signal.SIGINT, 3, True),
        (signal.SIGTERM, 1, True),
        (signal.SIGHUP, 3, False),
    ],
)
@pytest.mark.parametrize("every", [97, pytest.param(7, marks=pytest.mark.slow, id="7-slow")])
def test_a_signal_during_any_call_leaves_nothing(every, number, times, replaces, setting):
    """Also one that is sent again while the command cleans up."""
    found = steps.signals(setting, number, replaces, every, times)
    assert set(found) == {f"exit {interrupts.ENDINGS[number]}"}
    assert found.total() > 100 // every


@pytest.mark.parametrize(
    ("call", "n"),
    [
        *(("mkdir", 1), ("mkdir", 2), ("open", 1), ("open", 5), ("replace", 5), ("rename", 1)),
        *(("rename", 2), ("rename", 3), ("unlink", 3), ("rmdir", 1)),
    ],
)
def test_a_signal_during_a_call_that_makes_or_names(call, n, setting, earlier):
    """Python raises it when the call has returned: what it made is there."""
    place = steps.restored(setting, earlier[0])
    fault = {"n": n, "number": signal.SIGTERM, "calls": [call]}
    argv = setting.forecast(place, "--overwrite")
    ended = setting.server.run(argv, ("usual_signals", {}), ("signal_after_call", fault))
    assert (ended.code, bool(ended.fired)) == (143, True), ended
    steps.assert_clean(place, ended, earlier[1], earlier[2])


@pytest.mark.parametrize("number", interrupts.ENDINGS)
def test_a_signal_again_and_again_does_not_stop_the_clean_up(number, setting, earlier):
    """From the hundredth call on, amid the files, after each of the next."""
    place = steps.restored(setting, earlier[0])
    fault = ("signal_after_call", {"n": 100, "number": number, "times": 50})
    ended = setting.server.run(setting.plain(place, "--overwrite"), ("usual_signals", {}), fault)
    assert (ended.code, bool(ended.fired)) == (interrupts.ENDINGS[number], True), ended
    steps.assert_clean(place, ended, earlier[1], earlier[2])


def test_a_journal_whose_removal_is_interrupted_is_one_still(tmp_path, monkeypatch):
    """Else the same command would refuse its own slices as someone else's."""
    unlink = os.unlink
    for n in itertools.count(1):
        journal = Journal(tmp_path / str(n), "this")
        for at in range(3):
            (journal.folder / f"slice-{at:04d}.npz").touch()
        left = itertools.count(1)

        def interrupted(path, **options):
            if next(left) == n:  # noqa: B023
                raise KeyboardInterrupt
            unlink(path, **options)

        monkeypatch.setattr(os, "unlink", interrupted)
        try:
            discard_journal(journal.folder)
            break
        except KeyboardInterrupt:
            monkeypatch.undo()
            Journal(journal.folder, "this")
    assert n == 5


@pytest.mark.parametrize(
    "more",
    [
        ("--samples", "8", "--workers", "2"),
        ("--samples", "auto", "--volume-ci", "30%", "--max-samples", "12"),
    ],
    ids=["workers", "auto"],
)
@pytest.mark.parametrize("runs", [3, pytest.param(36, marks=pytest.mark.slow, id="36-slow")])
def test_a_signal_at_a_random_moment_leaves_nothing(runs, more, setting):
    found = interrupts.interrupts(setting, runs, seed=runs, more=more)
    assert found.total() == runs
    if runs > 30:
        assert {f"exit {code}" for code in interrupts.ENDINGS.values()} <= set(found)


@pytest.mark.parametrize("number", interrupts.ENDINGS)
@pytest.mark.parametrize("after_s", np.linspace(0.02, 1.6, 12).round(2))
@pytest.mark.slow
def test_a_signal_to_a_fresh_process(after_s, number, setting):
    """From the start of the interpreter on: imports, which take longest, then as above.

    Before the command has taken over, a signal does what it does to any Python: the shell sees
    the same code.
    """
    place = setting.place("fresh")
    process = subprocess.Popen(
        [*COMMAND, *setting.forecast(place)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    time.sleep(after_s)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    if "init_import_site" not in err:  # Python itself has not begun
        assert process.returncode in (0, interrupts.ENDINGS[number], -number), err
        assert process.returncode < 0 or "Traceback" not in err
    # A signal may come when all is written.
    assert check.whole(place / "out") or process.returncode != 0
    assert check.temporaries(place) == []
    assert session_members(process.pid) == []


# Memory, descriptors, order.


def test_no_memory_at_the_start(setting):
    """F07: before any library is asked for what it cannot do."""
    place = setting.place("none")
    fault = ("limit", {"name": "RLIMIT_AS", "soft": 64 << 20, "above_present": True})
    ended = setting.server.run(setting.forecast(place), fault, ("no_engine", {}))
    assert (ended.code, codes(ended)) == (7, ["TD7001"]), ended
    assert "less than 128 MiB of memory can be had" in ended.err
    assert os.listdir(place) == []


@pytest.mark.parametrize(("left", "code"), [(True, 70), (False, 7)])
def test_an_error_of_any_kind_without_memory_is_one_of_memory(left, code, monkeypatch, capsys):
    """F07: as matplotlib and Python itself fail then, by an ImportError or a SystemError."""
    monkeypatch.setattr(console, "_memory_is_left", lambda: left)
    assert console._failed(SystemError("returned NULL"), "tadiff-rt", False, False) == code
    assert ("TD7001" in capsys.readouterr().err) != left


@pytest.mark.slow
def test_memory_from_too_little_to_enough():
    """F07: with the bundled network, whose forecasts take more than is left of the imports."""
    data = Path(tadiff_rt.__file__).parent / "data"
    with ForkServer(pictures=True) as server:
        setting = Setting.of(server, data / "demo.tadiff", data / "demo_case" / "sub-demo")
        found = memory.limits(setting)
    assert found["exit 7"] > 0
    assert found["exit 0"] >= memory.ENOUGH
    assert found["exit 7"] + found["exit 0"] + found["ended by a library"] == found.total()


@pytest.mark.slow
def test_memory_of_a_fresh_process(setting):
    """F07: from what a version needs to be printed on."""
    place, well, endings = setting.place("memory"), 0, Counter()
    for limit in itertools.count(memory.STEP_BYTES, memory.STEP_BYTES):
        if fresh(["--version"], limit).code != 0:
            continue
        ended = fresh(setting.plain(place, "--overwrite"), limit)
        endings[memory.ending(ended)] += 1
        assert check.whole(place / "out") == (ended.code == 0 or well > 0)
        well = well + 1 if ended.code == 0 else 0
        if well == memory.ENOUGH:
            break
    assert endings["exit 7"] > 0


def fresh(argv: list[str], limit: int) -> Ended:
    start = time.monotonic()
    done = subprocess.run(
        [*COMMAND, *argv],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    seconds = time.monotonic() - start
    return Ended(done.returncode, seconds, done.stdout, done.stderr, "")


def grown(setting: Setting, runs: int) -> np.ndarray:
    argv = setting.plain(setting.place("growth"), "--overwrite")
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.growth", str(runs), *argv],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    return np.array(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("runs", [4, pytest.param(100, marks=pytest.mark.slow, id="100-slow")])
def test_forecasts_in_one_process_take_no_more_and_more(runs, setting):
    """F18, F19: descriptors and threads stay; memory by less than 50 kB a forecast."""
    code, descriptors, threads, resident = grown(setting, runs).T
    assert set(code) == {0}
    assert set(descriptors) == {descriptors[0]}
    assert set(threads) == {threads[0]}
    if runs == 100:
        slope = np.polyfit(np.arange(50), resident[50:], 1)[0]
        assert slope < 50_000


def ordered(events: list[order.Event], place: Path) -> list[str]:
    files = json.loads((place / "out" / check.MANIFEST).read_text())["files"]
    return order.problems(events, place / "out", files, check.MANIFEST)


@pytest.mark.parametrize("replaces", [False, True], ids=["new", "replacing"])
def test_what_is_named_was_flushed(replaces, setting, earlier):
    """F22, a power cut: data, name, folder; the manifest last; then the result."""
    place = steps.restored(setting, earlier[0] if replaces else None)
    path = setting.server.folder / "order"
    argv = setting.plain(place, *(["--overwrite"] if replaces else []))
    assert setting.server.run(argv, ("record_order", {"path": str(path)})).code == 0
    events = order.recorded(path)
    assert ordered(events, place) == []
    # The check notices each flush that is left out.
    flushed = [event for event in events if event[0] == "fsync"]
    for event in flushed[:: max(1, len(flushed) // 20)]:
        if flushed.count(event) == 1:
            assert ordered([e for e in events if e != event], place) != [], event


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_kernel_sees_the_same_order(setting):
    """F22, without relying on which functions of Python were recorded."""
    place = setting.place("traced")
    calls = "trace=fsync,rename,renameat,renameat2,mkdir,mkdirat"
    line = ["strace", "-f", "-y", "-s", "4096", "-e", calls, "-o", str(place.parent / "strace")]
    done = subprocess.run([*line, *COMMAND, *setting.plain(place)], capture_output=True, text=True)
    if "ptrace" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()[:80]}")
    assert done.returncode == 0, done.stderr
    assert ordered(order.traced((place.parent / "strace").read_text()), place) == []
