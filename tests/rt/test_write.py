"""Outputs are complete or absent: crashes, full disks, failing syscalls, and exact bytes.

A system call is made to fail, or the process to die, before the n-th call, for n = 1, 2, ... until
a run comes through; so no moment is left out, also not one added later.
"""

import contextlib
import errno
import gzip
import hashlib
import itertools
import json
import os
import resource
import shutil
import signal
import socket
import struct
import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from tadiff_rt.errors import (
    GeometryError,
    NumericsError,
    OutputError,
    ResourceError,
    TadiffError,
)
from tadiff_rt.write import (
    ResultFolder,
    atomic_file,
    clean_leftovers,
    nifti_bytes,
    write_bytes,
    write_json,
    write_nifti,
)

CALLS = ("open", "write", "fsync", "close", "replace", "rename", "mkdir", "unlink", "rmdir")
DEAD_PID = 999_999_999  # beyond the largest process id of any system


def write_result(out, text, overwrite=False):
    with ResultFolder(out, overwrite=overwrite) as result:
        write_bytes(result.path / "a.bin", text.encode() * 1000)
        write_json(result.subfolder("sub") / "b.json", {"text": text})
        result.complete({"files": result.files(), "text": text})


def verified_text(out):
    """The text of a result whose manifest agrees with every file and names every file."""
    manifest = json.loads((out / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        content = (out / name).read_bytes()
        assert len(content) == entry["bytes"]
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    found = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert (
        found == {*manifest["files"], "manifest.json"} == {"a.bin", "sub/b.json", "manifest.json"}
    )
    return manifest["text"]


class FailNth:
    """Makes the n-th of all calls to os.open, os.write, ... raise an error."""

    def __init__(self, monkeypatch, n, error, names=CALLS):
        self.left, self.fired, self.paused = n, False, False
        for name in names:
            monkeypatch.setattr(os, name, self.wrap(getattr(os, name), name, error))

    def pause(self):
        self.paused = True

    def resume(self):
        self.paused = False

    def wrap(self, call, name, error):
        def wrapper(*args, **kwargs):
            self.left -= not self.paused
            if self.left == 0 and not self.fired:
                self.fired = True
                if name == "close":
                    call(*args, **kwargs)
                raise OSError(error, os.strerror(error))
            return call(*args, **kwargs)

        return wrapper


def code_of(call, *args):
    """Class and code of the TadiffError that a call raises; None when it comes through."""
    try:
        call(*args)
    except TadiffError as error:
        return type(error), error.code


def every_failure(error, names=CALLS):
    """Yields a started FailNth for n = 1, 2, ... until one run does not reach its n-th call."""
    for n in itertools.count(1):
        with pytest.MonkeyPatch.context() as patch:
            fault = FailNth(patch, n, error, names)
            yield fault
        if not fault.fired:
            assert n > 3, "the fault was never injected"
            return


def test_written_bytes_replace_the_file_and_leave_nothing_else(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    data = np.random.default_rng(0).bytes(300_000)
    write_bytes(path, data)
    assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["x.bin"]


def test_the_file_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """F22, power cut: file flushed < renamed < folder flushed."""
    order = []
    for name in ("fsync", "replace"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, c=call: (order.append(n), c(*a))[1])
    write_bytes(tmp_path / "x", b"data")
    assert order == ["fsync", "replace", "fsync"]


def test_an_exception_in_the_block_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with contextlib.suppress(KeyboardInterrupt), atomic_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.bin"]


def test_a_file_that_fails_its_verification_is_not_kept(tmp_path):
    def verify(file):
        assert file.read() == b"new"
        raise OutputError("TD8008", "rejected")

    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match="rejected"), atomic_file(path, verify=verify) as file:
        file.write(b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.bin"]


def test_a_disk_that_returns_other_bytes_is_noticed(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(len(data))))
    with pytest.raises(OutputError, match="does not return what was written"):
        write_bytes(tmp_path / "x", b"data")
    assert os.listdir(tmp_path) == []


def test_short_writes_are_continued(tmp_path, monkeypatch):
    """write(2) may write less than it is given, at a signal or near a full disk."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
    write_bytes(tmp_path / "x", bytes(range(100)))
    assert (tmp_path / "x").read_bytes() == bytes(range(100))


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (errno.ENOSPC, ResourceError, "TD7002"),
        (errno.EDQUOT, ResourceError, "TD7002"),
        (errno.EIO, OutputError, "TD8007"),
        (errno.EROFS, OutputError, "TD8002"),
    ],
)
def test_any_failing_call_leaves_the_old_file_or_the_new_one(tmp_path, error, kind, code):
    """F03, F04."""
    path = tmp_path / "x.bin"
    seen = set()
    for fault in every_failure(error, ("open", "write", "fsync", "close", "replace")):
        path.write_bytes(b"old")
        raised = code_of(write_bytes, path, b"new")
        assert raised == ((kind, code) if fault.fired else None)
        assert os.listdir(tmp_path) == ["x.bin"]
        seen.add((fault.fired, path.read_bytes()))
    # The last calls flush the folder: the new file has its name by then.
    assert seen == {(True, b"old"), (True, b"new"), (False, b"new")}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_disk_full_at_any_call_leaves_no_result_or_a_whole_one(tmp_path, overwrite):
    """F03: ENOSPC from any call that can need space."""
    out = tmp_path / "out"
    seen = set()
    for fault in every_failure(errno.ENOSPC, ("write", "fsync", "mkdir")):
        shutil.rmtree(out, ignore_errors=True)
        if overwrite:
            fault.pause()
            write_result(out, "old")
            fault.resume()
        raised = code_of(write_result, out, "new", overwrite)
        assert raised == ((ResourceError, "TD7002") if fault.fired else None)
        assert os.listdir(tmp_path) in ([], ["out"])
        seen.add((fault.fired, verified_text(out) if out.exists() else None))
    # The last call flushes the parent folder: the new result has its name by then.
    assert seen == {(True, "old" if overwrite else None), (True, "new"), (False, "new")}


def fork(act):
    """Process id of a child that runs `act`; a fork needs no second import of numpy."""
    with warnings.catch_warnings():
        # Later Pythons warn that a fork copies one thread only; `act` needs no other.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            act()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return pid


def exit_status(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_at_nth_call(n):
    left = [n]

    def wrap(call):
        def wrapper(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os._exit(137)
            return call(*args, **kwargs)

        return wrapper

    for name in CALLS:
        setattr(os, name, wrap(getattr(os, name)))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_process_that_dies_before_any_call_leaves_a_whole_result_or_none(tmp_path, overwrite):
    """F01, F02, F06: after a crash at every step, cleaning leaves the old or the new result."""
    out = tmp_path / "out"
    seen = set()
    for n in itertools.count(1):
        shutil.rmtree(out, ignore_errors=True)
        if overwrite:
            write_result(out, "old")

        def act(n=n):
            die_at_nth_call(n)
            write_result(out, "new", overwrite)

        status = exit_status(fork(act))
        assert status in (0, 137)
        if out.exists():
            verified_text(out)
        clean_leftovers(tmp_path)
        assert os.listdir(tmp_path) in ([], ["out"])
        seen.add(verified_text(out) if out.exists() else None)
        if status == 0:
            break
    assert n > 20, "the process was not made to die in the middle"
    assert seen == ({"old", "new"} if overwrite else {None, "new"})


def test_a_process_killed_at_any_time_leaves_a_whole_result_or_none(tmp_path):
    """F01: kill -9 at 15 moments spread over a run."""
    out = tmp_path / "out"

    def run():
        write_result(out, "new" * 2000, overwrite=True)

    start = time.perf_counter()
    assert exit_status(fork(run)) == 0
    duration = time.perf_counter() - start
    for moment in np.linspace(0, 1.1 * duration, 15):
        pid = fork(run)
        time.sleep(moment)
        os.kill(pid, signal.SIGKILL)
        exit_status(pid)
        clean_leftovers(tmp_path)
        assert os.listdir(tmp_path) == ["out"]
        assert verified_text(out) == "new" * 2000


def test_a_file_beyond_the_size_limit_is_a_full_disk(tmp_path):
    """F03 with a real limit: the kernel refuses the write."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    code = []
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
        with pytest.raises(ResourceError) as caught:
            write_bytes(tmp_path / "x.bin", bytes(200_000))
        code.append(caught.value.code)
        with pytest.raises(ResourceError) as caught:
            write_result(tmp_path / "out", "new" * 100)
        code.append(caught.value.code)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert code == ["TD7002", "TD7002"]
    assert os.listdir(tmp_path) == []


def test_a_result_that_cannot_fit_is_refused_before_it_is_computed(tmp_path):
    def write():
        with ResultFolder(tmp_path / "out") as result:
            result.require_space(2**60)

    with pytest.raises(ResourceError, match="needs about") as caught:
        write()
    assert (caught.value.code, os.listdir(tmp_path)) == ("TD7002", [])


def test_a_signal_while_the_folder_is_made_leaves_nothing(tmp_path, monkeypatch):
    """Python raises it when the call returns: the folder is there, the block not yet entered."""
    mkdir = os.mkdir

    def interrupted(path):
        mkdir(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_result(tmp_path / "out", "new")
    assert os.listdir(tmp_path) == []


def test_a_fifth_more_than_the_result_must_be_free(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1200))
    with ResultFolder(tmp_path / "out") as result:
        result.require_space(1000)
        with pytest.raises(ResourceError, match="about 1201 bytes, 1200 are free"):
            result.require_space(1001)
        result.complete({})


def test_a_result_appears_only_when_it_is_complete(tmp_path):
    out = tmp_path / "out"
    with ResultFolder(out) as result:
        write_bytes(result.path / "a.bin", b"a")
        assert not out.exists()
        assert result.path.parent == tmp_path
        assert result.complete({"files": ["a.bin"]}) == out
    assert sorted(os.listdir(out)) == ["a.bin", "manifest.json"]
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_removes_everything_written(tmp_path, error):
    with contextlib.suppress(error), ResultFolder(tmp_path / "out") as result:
        write_bytes(result.path / "a.bin", b"a")
        assert os.listdir(result.path) == ["a.bin"]
        raise error
    assert os.listdir(tmp_path) == []


def test_a_result_without_a_manifest_is_our_own_error(tmp_path):
    with pytest.raises(RuntimeError, match="not completed"), ResultFolder(tmp_path / "out"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_manifest_names_every_file(tmp_path):
    """Otherwise the result could never be overwritten."""
    with ResultFolder(tmp_path / "out") as result:
        write_bytes(result.path / "a.bin", b"a")
        write_bytes(result.path / "b.bin", b"b")
        with pytest.raises(RuntimeError, match=r"does not name \['b.bin'\]"):
            result.complete({"artefacts": [{"file": "a.bin"}]})
        result.complete({"artefacts": [{"file": "a.bin"}, {"file": "b.bin"}]})


def test_an_empty_folder_may_become_the_result(tmp_path):
    (tmp_path / "out").mkdir()
    write_result(tmp_path / "out", "new")
    assert verified_text(tmp_path / "out") == "new"


def test_a_result_is_overwritten_only_on_request(tmp_path):
    out = tmp_path / "out"
    write_result(out, "old")
    with pytest.raises(OutputError, match="not empty") as caught:
        write_result(out, "new")
    assert caught.value.code == "TD8001"
    assert verified_text(out) == "old"
    write_result(out, "new", overwrite=True)
    assert verified_text(out) == "new"
    assert os.listdir(tmp_path) == ["out"]


def test_overwriting_keeps_the_old_result_until_the_new_one_is_complete(tmp_path):
    out = tmp_path / "out"
    write_result(out, "old")
    with contextlib.suppress(ValueError), ResultFolder(out, overwrite=True) as result:
        write_bytes(result.path / "a.bin", b"new")
        assert verified_text(out) == "old"
        raise ValueError
    assert verified_text(out) == "old"


@pytest.mark.parametrize("manifest", [None, "{}", "[" * 100_000, '{"files": {"other.txt": 1}}'])
def test_overwriting_deletes_nothing_that_no_result_names(tmp_path, manifest):
    """`-o ~ --overwrite` must not delete a home folder."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("ten years")
    if manifest:
        (out / "manifest.json").write_text(manifest)
    with pytest.raises(OutputError, match=r"thesis\.txt") as caught:
        write_result(out, "new", overwrite=True)
    assert caught.value.code == "TD8001"
    assert (out / "thesis.txt").read_text() == "ten years"


def test_a_folder_that_fills_up_meanwhile_is_not_replaced(tmp_path):
    out = tmp_path / "out"
    with contextlib.suppress(OutputError), ResultFolder(out) as result:
        out.mkdir()
        (out / "other").touch()
        with pytest.raises(OutputError, match="not empty"):
            result.complete({})
        raise OutputError("TD8001", "as a caller passes it on")
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["out", "out/other"]


def test_a_folder_that_fills_up_at_the_last_moment_is_not_replaced(tmp_path, monkeypatch):
    """Two runs with one target: the second to finish loses, whenever the first finishes."""
    out = tmp_path / "out"
    check = ResultFolder._check_replaceable

    def check_then_lose_the_race(result):
        check(result)
        if result.path.exists():
            out.mkdir()
            (out / "other").touch()

    monkeypatch.setattr(ResultFolder, "_check_replaceable", check_then_lose_the_race)
    assert code_of(write_result, out, "new") == (OutputError, "TD8001")
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["out", "out/other"]


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write_result(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert verified_text(tmp_path / "real") == "new"


def test_targets_that_cannot_be_results_are_refused(tmp_path, monkeypatch):
    """A04, A05."""
    case = tmp_path / "data" / "sub-17"
    (case / "ses-01").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "work").mkdir()
    (tmp_path / "into").symlink_to(case)
    monkeypatch.chdir(tmp_path / "work")
    expected = {
        str(tmp_path / "file"): "TD8004",
        str(tmp_path / "file" / "out"): "TD8003",
        str(tmp_path / "absent" / "out"): "TD8003",
        str(case): "TD8005",
        str(case / "ses-01" / "out"): "TD8005",
        str(tmp_path / "into" / "out"): "TD8005",
        str(tmp_path): "TD8005",
        str(tmp_path / "data"): "TD8005",
        ".": "TD8005",
        "..": "TD8005",
        "/": "TD8005",
        "/proc": "TD8005",
        "": "TD8005",
        "-": "TD8006",
        "x" * 5000: "TD8006",
        "x" * 300: "TD8006",
        "x" * 200: "TD8006",
        "x\0": "TD8006",
    }
    codes = {}
    for out in expected:
        with (
            pytest.raises(OutputError) as caught,
            ResultFolder(out, overwrite=True, inputs=[case]),
        ):
            pass
        codes[out] = caught.value.code
    assert codes == expected
    assert sorted(os.listdir(tmp_path)) == ["data", "file", "into", "work"]
    assert [p.name for p in case.rglob("*")] == ["ses-01"]


@pytest.mark.parametrize("name", ["forecast/", "x" * 180, "-rf", "a b\n\x1b[2J", "\u00e4\u4e2d"])
def test_unusual_names_are_fine(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_result(name, "new")
    assert verified_text(tmp_path / name.rstrip("/")) == "new"
    write_bytes(tmp_path / ("y" * 251 + ".bin"), b"y")
    assert len(os.listdir(tmp_path)) == 2


def test_a_folder_that_may_not_be_written_is_refused_before_any_work():
    """A04, F05. Root may write everywhere, so another user tries."""
    entered = []
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is closed to other users
        os.chmod(folder, 0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            with (
                pytest.raises(OutputError) as caught,
                ResultFolder(Path(folder, "out")),
            ):
                entered.append(1)
            with pytest.raises(OutputError) as other:
                write_bytes(Path(folder, "x"), b"")
        finally:
            if root:
                os.seteuid(0)
        assert (caught.value.code, other.value.code) == ("TD8002", "TD8002")
        assert (entered, os.listdir(folder)) == ([], [])


def test_a_folder_that_vanishes_meanwhile_is_an_output_error(tmp_path):
    """F05."""
    (tmp_path / "parent").mkdir()
    with contextlib.suppress(OutputError), ResultFolder(tmp_path / "parent" / "out") as result:
        shutil.rmtree(tmp_path / "parent")
        calls = [(write_bytes, result.path / "a", b"a"), (result.complete, {})]
        codes = [code_of(*call) for call in calls]
        raise OutputError("TD8003", "as a caller passes it on")
    assert codes == [(OutputError, "TD8003")] * 2


def host_tag(name):
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    """F02."""
    here, there = host_tag(socket.gethostname()), host_tag("another machine")
    keep = [
        f".x.tadiff-tmp-{os.getpid()}-{here}01234567",
        f".x.tadiff-tmp-1-{here}01234567",  # lives, and belongs to another user
        f".x.tadiff-tmp-{DEAD_PID}-{there}01234567",
        f"x.tadiff-tmp-{DEAD_PID}-{here}01234567",
        ".x.tadiff-tmp-notes",
    ]
    go = [
        f".x.tadiff-tmp-{DEAD_PID}-{here}01234567",
        f".a\nb.tadiff-tmp-{DEAD_PID}-{here}01234567",
    ]
    for name in keep + go:
        (tmp_path / name).touch()
    folder = f".y.tadiff-tmp-{DEAD_PID}-{here}89abcdef"
    (tmp_path / folder / "sub").mkdir(parents=True)
    (tmp_path / folder / "sub" / "a").touch()
    assert sorted(clean_leftovers(tmp_path)) == sorted([*go, folder])
    assert sorted(os.listdir(tmp_path)) == sorted(keep)


def test_a_result_that_stood_aside_comes_back_and_never_over_other_files(tmp_path):
    here = host_tag(socket.gethostname())
    write_result(tmp_path / "kept", "old")
    aside = tmp_path / f".out.tadiff-old-{DEAD_PID}-{here}01234567"
    os.rename(tmp_path / "kept", aside)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "note").touch()
    assert clean_leftovers(tmp_path) == []
    assert verified_text(aside) == "old"
    (tmp_path / "out" / "note").unlink()
    assert clean_leftovers(tmp_path) == [aside.name]
    assert verified_text(tmp_path / "out") == "old"


def test_an_earlier_result_that_was_replaced_goes(tmp_path):
    """The process died after the new result got its name and before the old one was removed."""
    aside = tmp_path / f".out.tadiff-old-{DEAD_PID}-{host_tag(socket.gethostname())}01234567"
    write_result(tmp_path / "earlier", "old")
    write_result(tmp_path / "out", "new")
    os.rename(tmp_path / "earlier", aside)
    assert clean_leftovers(tmp_path) == [aside.name]
    assert os.listdir(tmp_path) == ["out"]
    assert verified_text(tmp_path / "out") == "new"


def test_a_manifest_may_have_another_name(tmp_path):
    out = tmp_path / "out"
    for text in ("old", "new"):
        with ResultFolder(out, overwrite=True, manifest="forecast.json") as result:
            write_bytes(result.path / "a.bin", text.encode())
            result.complete({"files": result.files()})
        assert (out / "a.bin").read_text() == text
    assert sorted(os.listdir(out)) == ["a.bin", "forecast.json"]
    assert code_of(write_result, out, "other", True) == (OutputError, "TD8001")


def test_the_next_result_cleans_up_first(tmp_path):
    leftover = f".x.tadiff-tmp-{DEAD_PID}-{host_tag(socket.gethostname())}01234567"
    (tmp_path / leftover).touch()
    write_result(tmp_path / "out", "new")
    assert os.listdir(tmp_path) == ["out"]


def test_json_is_sorted_ascii_with_a_final_newline(tmp_path):
    write_json(tmp_path / "x.json", {"b": [1.5, None], "a": "\u00e4"})
    assert (tmp_path / "x.json").read_bytes() == (
        b'{\n  "a": "\\u00e4",\n  "b": [\n    1.5,\n    null\n  ]\n}\n'
    )


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_json_without_finite_numbers_is_refused(tmp_path, number):
    with pytest.raises(NumericsError, match="finite") as caught:
        write_json(tmp_path / "x.json", {"a": [number]})
    assert caught.value.code == "TD6001"
    assert os.listdir(tmp_path) == []


def orientations():
    """All 48 ways to lay three voxel axes along R, A, S."""
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = np.eye(3)[:, order] * np.array([0.9, 1.1, 2.5])[list(order)] * signs
            affine[:3, 3] = -90.5, 126.25, -71
            yield affine


def oblique(degrees):
    a, b = np.radians(degrees), np.radians(-13)
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = x @ z @ np.diag([0.5, 0.5, 6.0])
    affine[:3, 3] = 10.1, -20.2, 30.3
    return affine


AFFINE_IDS = [*("".join(nib.aff2axcodes(a)) for a in orientations()), "oblique"]


def volume():
    return np.random.default_rng(4).normal(size=(5, 6, 7)).astype(np.float32)


@pytest.mark.parametrize("affine", [*orientations(), oblique(20)], ids=AFFINE_IDS)
def test_nibabel_reads_back_voxels_and_both_forms_of_the_affine(tmp_path, affine):
    """G05, G13: qform and sform agree, to float32 rounding of a header field."""
    data = volume()
    write_nifti(tmp_path / "x.nii.gz", data, affine)
    image = nib.load(tmp_path / "x.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), data)
    np.testing.assert_array_equal(image.affine, affine.astype(np.float32))
    np.testing.assert_allclose(image.get_qform(), affine, rtol=0, atol=1e-5)
    assert (image.header["qform_code"], image.header["sform_code"]) == (1, 1)
    assert image.get_data_dtype() == np.float32
    assert image.header.get_xyzt_units()[0] == "mm"
    assert image.header["descrip"].item() == b"tadiff predicted, not acquired, research use"


def test_orientation_codes_of_the_input_are_kept_and_its_free_text_is_not(tmp_path):
    source = nib.Nifti1Header()
    source["qform_code"], source["sform_code"] = 0, 4
    source["descrip"], source["aux_file"] = "DOE^JOHN", "1970-01-01"
    source["intent_name"], source["db_name"] = "DOE", "DOE"
    write_nifti(tmp_path / "x.nii.gz", volume(), oblique(20), source)
    header = nib.load(tmp_path / "x.nii.gz").header
    assert (header["qform_code"], header["sform_code"]) == (1, 4)
    content = gzip.decompress((tmp_path / "x.nii.gz").read_bytes())
    assert b"DOE" not in content
    assert b"1970" not in content


def test_slight_shear_is_removed_and_more_is_refused():
    """G07: ITK refuses axes that are perpendicular only to a few 1e-6."""
    sheared = oblique(20)
    sheared[:3, 1] += 2e-5 * sheared[:3, 0]
    image = nib.Nifti1Image.from_bytes(gzip.decompress(nifti_bytes(volume(), sheared)))
    axes = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), rtol=0, atol=1e-6)
    np.testing.assert_allclose(image.affine, sheared, rtol=0, atol=2e-5)
    sheared[:3, 1] += 0.3 * sheared[:3, 0]
    with pytest.raises(GeometryError) as caught:
        nifti_bytes(volume(), sheared)
    assert caught.value.code == "TD3203"


def test_equal_volumes_give_equal_bytes_at_any_time_and_under_any_name(tmp_path, monkeypatch):
    write_nifti(tmp_path / "x.nii.gz", volume(), oblique(20))
    monkeypatch.setattr(time, "time", lambda: 2e9)
    write_nifti(tmp_path / "another.nii.gz", np.asfortranarray(volume()), oblique(20))
    content = (tmp_path / "x.nii.gz").read_bytes()
    assert content == (tmp_path / "another.nii.gz").read_bytes()
    # RFC 1952: magic, deflate, no flags (so no file name), no time.
    assert struct.unpack("<2sBBI", content[:8]) == (b"\x1f\x8b", 8, 0, 0)


def test_a_mask_is_written_as_whole_numbers_only(tmp_path):
    mask = (volume() > 0).astype(np.float64) * 3
    write_nifti(tmp_path / "m.nii.gz", mask, np.eye(4), dtype=np.uint8)
    image = nib.load(tmp_path / "m.nii.gz")
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), mask)
    for wrong in (mask + 0.5, mask - 1, mask + 254):
        with pytest.raises(ValueError, match="whole numbers"):
            nifti_bytes(wrong, np.eye(4), dtype=np.uint8)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39], ids=["nan", "inf", "beyond-float32"])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_voxels_that_are_not_finite_are_refused(value, dtype):
    data = np.zeros((3, 3, 3))
    data[1, 2, 0] = value
    kind = ValueError if value == 1e39 and dtype == np.uint8 else NumericsError
    with pytest.raises(kind):
        nifti_bytes(data, np.eye(4), dtype=dtype)
