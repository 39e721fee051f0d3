"""A forecast that was interrupted goes on, to the bit, and no kept file is taken for another."""

import dataclasses
import errno
import io
import itertools
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tadiff_rt.ensemble import SliceStatistics
from tadiff_rt.errors import OutputError, ResourceError, TadiffError, UsageError
from tadiff_rt.forecast import Forecaster
from tadiff_rt.journal import ABOUT, Journal, discard_journal, fingerprint
from tadiff_rt.readers import read_case
from tadiff_rt.runner import SampleSize, run_ensemble
from tests.rt.test_batches import Stub, runner
from tests.rt.test_runner import EVERYWHERE, SLICES, Spread, same
from tests.rt.test_write import FailNth, every_failure

CODE = "from tadiff_rt.cli import main; main()"
FIXED, AUTO = SampleSize(5), SampleSize(24, 0.2)
STEPS = 2


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def statistics(samples: int = 3, seed: int = 0, size: int = 3) -> SliceStatistics:
    rng = np.random.default_rng(seed)
    made = SliceStatistics((3, size, size), (size, size))
    for _ in range(samples):
        made.add(rng.random((3, size, size)), rng.standard_normal((size, size)))
    return made


def bits(made: SliceStatistics) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in made.state().items()}


@pytest.fixture
def journal(tmp_path) -> Journal:
    return Journal(tmp_path / "work", "this")


# One file.


def test_what_is_kept_comes_back(journal):
    for at, samples in ((0, 1), (7, 3), (12_345, 5)):
        journal.save(at, statistics(samples, seed=at))
    again = Journal(journal.folder, "this")
    for at, samples in ((0, 1), (7, 3), (12_345, 5)):
        assert bits(again.load(at)) == bits(statistics(samples, seed=at))
    assert again.load(1) is None
    assert [again.most_samples(slices) for slices in ([0, 1], [0, 7], [1], [])] == [1, 3, 0, 0]
    assert names(journal.folder) == [
        ABOUT,
        "slice-0000.npz",
        "slice-0007.npz",
        "slice-12345.npz",
    ]


def test_a_later_state_takes_the_place_of_an_earlier(journal):
    journal.save(4, statistics(3))
    journal.save(4, statistics(5))
    assert bits(journal.load(4)) == bits(statistics(5))
    assert journal.most_samples([4]) == 5


def kept_or_none(journal: Journal, data: bytes) -> dict[str, bytes] | None:
    (journal.folder / "slice-0004.npz").write_bytes(data)
    found = journal.load(4)
    return None if found is None else bits(found)


@pytest.mark.parametrize("what", ["another forecast", "another slice", "another size"])
def test_a_whole_file_of_something_else_counts_as_none(what, tmp_path):
    """Copied or renamed by hand."""
    journal, other = Journal(tmp_path / "work", "this"), Journal(tmp_path / "other", "that")
    kept, at = (journal, 5) if what == "another slice" else (other, 4)
    kept.save(at, statistics(size=5 if what == "another size" else 3))
    source = kept.folder / f"slice-{at:04d}.npz"
    assert kept_or_none(journal, source.read_bytes()) is None


@pytest.fixture
def whole(journal) -> bytes:
    journal.save(4, statistics())
    return (journal.folder / "slice-0004.npz").read_bytes()


def test_a_file_of_any_other_length_counts_as_none(journal, whole):
    for length in [*range(0, len(whole), 13), len(whole) - 1]:
        assert kept_or_none(journal, whole[:length]) is None
    assert kept_or_none(journal, whole) == bits(statistics())


def test_a_changed_bit_is_found_or_changes_nothing(journal, whole):
    """In every byte of the first entry and of the directory; entries between are made alike."""
    expected, found = bits(statistics()), set()
    first, directory = whole.index(b"PK\x03\x04", 1), whole.index(b"PK\x01\x02")
    for at in [*range(first), *range(first, directory, 17), *range(directory, len(whole))]:
        changed = bytearray(whole)
        changed[at] ^= 1 << (at % 8)
        kept = kept_or_none(journal, bytes(changed))
        assert kept in (None, expected)
        found.add(kept is None)
    assert found == {True, False}  # times of the archive's entries are of no account


def archive(**changes) -> bytes:
    """A whole archive with other arrays in it; None leaves one out."""
    state = {**statistics().state(), **changes}
    buffer = io.BytesIO()
    np.savez(buffer, **{k: v for k, v in state.items() if v is not None})
    return buffer.getvalue()


def other_arrays() -> dict[str, bytes]:
    state = statistics().state()
    one = io.BytesIO()
    np.save(one, np.zeros(3))
    return {
        "empty": b"",
        "text": b"hello",
        "zeros": bytes(4000),
        "one array": one.getvalue(),
        "missing": archive(_areas=None),
        "more": archive(_more=np.zeros(3)),
        "another dtype": archive(_mean=state["_mean"].astype(np.float32)),
        "another shape": archive(_squares=np.zeros((3, 4, 4))),
        "fewer overlaps": archive(_overlaps=np.zeros(1, np.int64)),
        "no samples": archive(_areas=np.zeros(0, np.int64)),
        "threshold": archive(threshold=np.array(2.0)),
    }


@pytest.mark.parametrize("name", other_arrays())
def test_an_archive_of_something_else_counts_as_none(name, journal):
    assert kept_or_none(journal, other_arrays()[name]) is None


def test_nothing_that_is_kept_is_executed(journal, tmp_path):
    """A pickled object in place of an array would run a command of a stranger."""

    class Stranger:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "hacked"),))

    objects = np.empty(3, object)
    objects[:] = [Stranger(), None, None]
    data = archive(_areas=objects)
    assert np.load(io.BytesIO(data), allow_pickle=True)["_areas"].shape == (3,)
    assert names(tmp_path).count("hacked") == 1
    (tmp_path / "hacked").rmdir()
    assert kept_or_none(journal, data) is None
    assert "hacked" not in names(tmp_path)


def test_no_object_is_kept(journal, whole):
    with zipfile.ZipFile(io.BytesIO(whole)) as kept:
        for name in kept.namelist():
            assert b"'|O'" not in kept.read(name)[:128]


# The folder.


def test_the_folder_is_made_with_those_above_it(tmp_path):
    Journal(tmp_path / "a/b/work", "this").save(1, statistics())
    assert names(tmp_path / "a/b/work") == [ABOUT, "slice-0001.npz"]


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({"thesis.doc": b""}, "holds other files, such as thesis.doc"),
        ({"slice-0001.npz": b""}, "holds other files, such as slice-0001.npz"),
        ({ABOUT: b""}, "holds other files, such as journal.json"),
        ({ABOUT: b'{"forecast": "that"}'}, "belongs to another forecast"),
        ({ABOUT: b"\x00\xff"}, "belongs to another forecast"),
        ({"\x1b[2J.doc": b""}, r"such as \\x1b\[2J.doc"),
    ],
)
def test_a_folder_of_something_else_is_refused_and_left_alone(files, what, tmp_path):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=what) as e:
        Journal(tmp_path, "this")
    assert (e.value.code, e.value.where) == ("TD3055", str(tmp_path))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == files


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "work").write_bytes(b"mine")
    with pytest.raises(OutputError) as e:
        Journal(tmp_path / "work", "this")
    assert e.value.code == "TD8001"
    with pytest.raises(OutputError) as e:
        Journal(tmp_path / "work" / "below", "this")
    assert e.value.code == "TD8003"
    assert (tmp_path / "work").read_bytes() == b"mine"


def test_a_folder_that_may_not_be_written_is_an_output_error(tmp_path, monkeypatch):
    """The error of the system is simulated: tests may run as root, who may write anywhere."""

    def denied(path, *args, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(OutputError, match="Permission denied") as e:
        Journal(tmp_path / "work", "this")
    assert e.value.code == "TD8002"


def test_what_dead_writers_left_is_no_other_file(journal):
    """A process killed in `save`: a temporary with the id of a process that is no more."""
    journal.save(1, statistics())
    dead = subprocess.Popen(["true"])
    dead.wait()
    import tadiff_rt.atomic as atomic

    left = f".slice-0002.npz.tadiff-tmp-{dead.pid}-{atomic._host_tag()}{'0' * 8}"
    (journal.folder / left).write_bytes(b"half")
    Journal(journal.folder, "this")
    assert names(journal.folder) == [ABOUT, "slice-0001.npz"]
    discard_journal(journal.folder)
    (journal.folder).mkdir()
    (journal.folder / left).write_bytes(b"half")
    Journal(journal.folder, "that")
    assert names(journal.folder) == [ABOUT]


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [(errno.ENOSPC, ResourceError, "TD7002"), (errno.EIO, OutputError, "TD8007")],
)
def test_any_failing_call_leaves_the_old_state_or_the_new(journal, error, kind, code):
    """The system fails in each call of a save in turn: the kept state is whole all the same."""
    seen = set()
    for fault in every_failure(error, ("open", "write", "fsync", "close", "replace")):
        fault.pause()
        journal.save(4, statistics(3))
        fault.resume()
        raised = None
        try:
            journal.save(4, statistics(5))
        except TadiffError as e:
            raised = (type(e), e.code)
        assert raised == ((kind, code) if fault.fired else None)
        assert names(journal.folder) == [ABOUT, "slice-0004.npz"]
        seen.add((fault.fired, journal.load(4).count))
    # The last calls flush the folder: the new state has its name by then.
    assert seen == {(True, 3), (True, 5), (False, 5)}


def test_only_what_a_journal_wrote_is_removed(journal, tmp_path):
    mine = ("notes.txt", "slice-1.npz", "slice-0001.npz.bak", "old-slice-0001.npz", "sub/x.npz")
    journal.save(1, statistics())
    journal.save(2, statistics())
    (journal.folder / "sub").mkdir()
    for name in mine:
        (journal.folder / name).write_bytes(b"mine")
    beside = tmp_path / "beside.npz"
    beside.write_bytes(b"mine")
    (journal.folder / "slice-0003.npz").symlink_to(beside)
    discard_journal(journal.folder)
    assert names(journal.folder) == sorted([*mine, "sub"])
    assert beside.read_bytes() == b"mine"


def test_a_folder_of_nothing_else_is_removed(journal, tmp_path):
    journal.save(1, statistics())
    discard_journal(journal.folder)
    assert names(tmp_path) == []
    discard_journal(journal.folder)  # which is gone


def test_a_fingerprint_sees_values_types_and_order():
    parts = [1, "a", (2, None), np.arange(6.0).reshape(2, 3), np.zeros(2, np.float32)]
    changed = np.arange(6.0).reshape(2, 3)
    changed[1, 2] = np.nextafter(5.0, 6)
    others = [
        parts[::-1],
        parts[:-1],
        ["1", *parts[1:]],
        [*parts[:2], (2, 0), *parts[3:]],
        [*parts[:3], changed, parts[4]],
        [*parts[:3], parts[3].reshape(3, 2), parts[4]],
        [*parts[:4], np.zeros(1)],
        [*parts[:4], np.zeros(2, np.int32)],
    ]
    assert len({fingerprint(p) for p in [parts, *others]}) == 1 + len(others)
    assert fingerprint(parts) == fingerprint([*parts[:3], np.asfortranarray(parts[3]), parts[4]])
    assert len(fingerprint([])) == 64


# A run that is interrupted.


class Interrupted(Exception):
    pass


class Breaking(Journal):
    """Ends the run after, or just before, so many slices have been kept."""

    left = 10**6
    before = False

    def save(self, at, made):
        self.left -= 1
        if self.left == 0 and self.before:
            raise Interrupted
        super().save(at, made)
        if self.left == 0:
            raise Interrupted


def ensemble(size: SampleSize, journal: Journal | None, backend: Stub, workers: int = 1):
    request = runner(backend, "ddpm", workers=workers, steps=STEPS)
    return run_ensemble(request, EVERYWHERE, SLICES, size, journal)


@pytest.fixture(scope="module")
def unbroken():
    """Results by what was asked for, and the calls of the network."""
    made = {}
    for size in (FIXED, AUTO):
        backend = Spread(1)
        made[size] = ensemble(size, None, backend), backend.calls
    return made


def test_the_open_number_takes_several_rounds(unbroken):
    assert 10 <= len(unbroken[AUTO][0].tumour_voxels) < AUTO.samples


@pytest.mark.parametrize("size", [FIXED, AUTO], ids=["fixed", "auto"])
@pytest.mark.parametrize("before", [False, True])
def test_an_interrupted_run_goes_on_to_the_same_bits(size, before, tmp_path, unbroken):
    """After every number of kept slices; with one row a call the calls count the rows."""
    expected, all_calls = unbroken[size]
    for n in itertools.count(1):
        folder = tmp_path / str(n)
        journal, first, second = Breaking(folder, "this"), Spread(1), Spread(1)
        journal.left, journal.before = n, before
        try:
            ensemble(size, journal, first)
            break
        except Interrupted:
            kept = {p.name: p.read_bytes() for p in folder.iterdir()}
        assert same(ensemble(size, Journal(folder, "this"), second), expected)
        # The interrupted slice is lost with `before`; a row or two may have been begun.
        samples = len(expected.tumour_voxels)
        rows_kept = sum(Journal(folder, "this").load(at).count for at in SLICES)
        assert rows_kept == samples * len(SLICES)
        done = sum(counts(kept).values())
        assert second.calls == all_calls - done * STEPS
    # As many interruptions as there were slices in all rounds.
    rounds = 1 if size is FIXED else 1 + (samples - 6 + 1) // 2
    assert n == rounds * len(SLICES) + 1


def counts(kept: dict[str, bytes]) -> dict[str, int]:
    """Samples in each kept file."""
    found = {}
    for name, data in kept.items():
        if name != ABOUT:
            with np.load(io.BytesIO(data)) as state:
                found[name] = len(state["_areas"])
    return found


def test_other_workers_and_buckets_go_on_to_the_same_bits(tmp_path, unbroken):
    for n, (bucket, workers) in enumerate(((4, 2), (2, 3))):
        journal = Breaking(tmp_path / str(n), "this")
        journal.left = 2
        with pytest.raises(Interrupted):
            ensemble(FIXED, journal, Spread(1))
        got = ensemble(FIXED, Journal(journal.folder, "this"), Spread(bucket), workers)
        assert same(got, unbroken[FIXED][0])


@pytest.mark.parametrize("size", [FIXED, AUTO], ids=["fixed", "auto"])
def test_a_finished_run_is_read_and_not_computed(size, tmp_path, unbroken):
    ensemble(size, Journal(tmp_path / "work", "this"), Spread(1))
    backend = Spread(1)
    assert same(ensemble(size, Journal(tmp_path / "work", "this"), backend), unbroken[size][0])
    assert backend.calls == 0


@pytest.mark.parametrize("size", [FIXED, AUTO], ids=["fixed", "auto"])
def test_only_a_damaged_slice_is_computed_again(size, tmp_path, unbroken):
    expected, _ = unbroken[size]
    ensemble(size, Journal(tmp_path / "work", "this"), Spread(1))
    damaged = tmp_path / "work" / f"slice-{SLICES[1]:04d}.npz"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    backend = Spread(1)
    assert same(ensemble(size, Journal(tmp_path / "work", "this"), backend), expected)
    assert backend.calls == len(expected.tumour_voxels) * STEPS


def test_a_failing_disk_ends_the_run_by_its_name(tmp_path, unbroken):
    journal = Journal(tmp_path / "work", "this")
    with pytest.MonkeyPatch.context() as patch:
        FailNth(patch, 2, errno.ENOSPC, ("write",))
        with pytest.raises(ResourceError) as e:
            ensemble(FIXED, journal, Spread(4), workers=2)
    assert e.value.code == "TD7002"
    assert names(journal.folder) == [ABOUT, f"slice-{SLICES[0]:04d}.npz"]
    again = ensemble(FIXED, Journal(journal.folder, "this"), Spread(4))
    assert same(again, unbroken[FIXED][0])


# A whole forecast.

REQUEST = {"day": "+90", "treatment": "TMZ", "samples": 3, "steps": 3, "slices": "3:6"}


@pytest.fixture(scope="module")
def case(case_folder):
    return read_case(case_folder)


@pytest.fixture
def forecaster(bundle):
    return Forecaster.load(bundle, threads=1)


def same_forecast(a, b) -> bool:
    arrays = ("mean", "std", "tumour_probability")
    return a.volume_ml == b.volume_ml and all(
        getattr(a, name).tobytes() == getattr(b, name).tobytes() for name in arrays
    )


def refused(forecaster, case, work, **change) -> None:
    before = {p.name: p.read_bytes() for p in work.iterdir()}
    with pytest.raises(UsageError, match="another forecast") as e:
        forecaster.predict(case, **{**REQUEST, **change}, work=work)
    assert e.value.code == "TD3055"
    assert {p.name: p.read_bytes() for p in work.iterdir()} == before


def calls_of(forecaster, monkeypatch) -> list[int]:
    """Grows by one a call of the network."""
    calls, denoise = [], forecaster.backend.denoise
    monkeypatch.setattr(
        forecaster.backend, "denoise", lambda *args: calls.append(1) or denoise(*args)
    )
    return calls


def test_another_request_is_another_forecast(forecaster, case, bundle_of_one, tmp_path):
    """Each thing that changes a bit of the result; what the work folder holds is not touched."""
    work = tmp_path / "work"
    forecaster.predict(case, **REQUEST, work=work)
    for change in (
        {"seed": 1},
        {"day": "+91"},
        {"treatment": "none"},
        {"samples": 4},
        {"samples": "auto"},
        {"steps": 4},
        {"solver": "ddim"},
        {"grid": "trailing"},
        {"round_times": True},
        {"coherence": 0.5},
        {"latin": True},
    ):
        refused(forecaster, case, work, **change)
    last = case.sessions[-1]
    volume = last.images["flair"]
    brighter = volume.data.copy()
    brighter[12, 14, 5] += 1
    images = {**last.images, "flair": dataclasses.replace(volume, data=brighter)}
    sessions = (*case.sessions[:-1], dataclasses.replace(last, images=images))
    refused(forecaster, dataclasses.replace(case, sessions=sessions), work)
    refused(Forecaster.load(bundle_of_one, threads=1), case, work)


def test_other_programs_and_other_cards_make_another_forecast(
    forecaster, case, tmp_path, monkeypatch
):
    """Cards of a bundle with the same manifest hash: each part counts by itself."""
    work = tmp_path / "work"
    forecaster.predict(case, **REQUEST, work=work)
    manifest = forecaster.bundle.manifest
    noisiest = float(manifest.card.schedule.build().lam(1000.0))  # the same levels, informed
    for fields in ({"x0_range": (0.0, 0.9)}, {"start_lam": -2.0}, {"start_lam": noisiest}):
        card = manifest.card.model_copy(update=fields)
        changed = dataclasses.replace(
            forecaster.bundle, manifest=manifest.model_copy(update={"card": card})
        )
        refused(Forecaster(changed, forecaster.backend, 0.0), case, work)
    with monkeypatch.context() as patch:
        patch.setattr(forecaster.backend, "runtime", "onnxruntime 0.1")
        refused(forecaster, case, work)
    monkeypatch.setattr("tadiff_rt.forecast.version", lambda name: "0.0.1")
    refused(forecaster, case, work)


def test_what_changes_no_bit_is_the_same_forecast(forecaster, case, bundle, tmp_path, monkeypatch):
    """Workers, threads, progress, and slices where each stands alone."""
    work = tmp_path / "work"
    forecaster.predict(case, **REQUEST, work=work)
    other = Forecaster.load(bundle, threads=2)
    calls = calls_of(other, monkeypatch)
    day = case.sessions[-1].day + 90
    for change in ({"workers": 2}, {"progress": lambda *said: None}, {"day": day}):
        other.predict(case, **{**REQUEST, **change}, work=work)
    assert calls == []
    wider = other.predict(case, **{**REQUEST, "slices": "7,3:6"}, work=work)
    assert len(calls) == REQUEST["steps"]  # one slice of three samples, one bucket
    assert same_forecast(wider, forecaster.predict(case, **{**REQUEST, "slices": "7,3:6"}))


def test_with_an_open_number_other_slices_are_another_forecast(forecaster, case, tmp_path):
    """How many samples are enough depends on all slices: those kept of others mislead."""
    work, auto = tmp_path / "work", {"samples": "auto", "volume_ci": "100%"}
    forecaster.predict(case, **{**REQUEST, **auto}, work=work)
    refused(forecaster, case, work, **auto, slices="4")
    refused(forecaster, case, work, **auto, slices="3:7")
    refused(forecaster, case, work, **{**auto, "volume_ci": "99%"})
    refused(forecaster, case, work, **auto, max_samples=63)


@pytest.fixture
def command(bundle, case_folder, tmp_path):
    """Arguments of a forecast with a work folder."""
    line = "--day +90 --treatment TMZ --slices 2:8 --samples 4 --steps 8 --threads 1 -q"
    folders = ["--work", str(tmp_path / "work"), "-o", str(tmp_path / "out")]
    inputs = ["--engine", str(bundle), "--case", str(case_folder)]
    return ["predict", *inputs, *line.split(), *folders]


def files_of(folder: Path) -> dict[str, bytes]:
    """All but the manifest, which holds times."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {p.name: p.read_bytes() for p in files if p.name != "forecast.json"}


def test_a_killed_command_goes_on_where_it_was(command, tmp_path):
    """kill -9 once two of six slices are kept; the same command ends with the same files."""
    plain = [*command[: command.index("--work")], "-o", str(tmp_path / "plain")]
    run_in_process(plain)
    process = subprocess.Popen([sys.executable, "-c", CODE, *command])
    deadline = time.monotonic() + 100
    while len(list((tmp_path / "work").glob("slice-*.npz"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path.name for path in (tmp_path / "work").glob("slice-*.npz")}
    assert 2 <= len(kept) < 6
    times = {name: (tmp_path / "work" / name).stat().st_mtime_ns for name in kept}

    forecaster_calls = []
    with pytest.MonkeyPatch.context() as patch:
        from tadiff_rt.backends import ort

        denoise = ort.OrtBackend.denoise
        patch.setattr(
            ort.OrtBackend,
            "denoise",
            lambda *args: forecaster_calls.append(1) or denoise(*args),
        )
        patch.setattr("tadiff_rt.commands.discard_journal", lambda folder: None)
        run_in_process(command)
    assert len(forecaster_calls) == 8 * (6 - len(kept))
    for name, written in times.items():
        assert (tmp_path / "work" / name).stat().st_mtime_ns == written
    assert files_of(tmp_path / "out") == files_of(tmp_path / "plain")
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def run_in_process(command: list[str]) -> None:
    from tadiff_rt.cli import app

    app(command, standalone_mode=False)


def test_the_work_folder_goes_when_the_result_is_written(command, tmp_path):
    run_in_process(command)
    assert sorted(os.listdir(tmp_path)) == ["out"]
    assert str(tmp_path) not in (tmp_path / "out/forecast.json").read_text()


def test_the_work_folder_stays_when_the_result_is_not_written(command, tmp_path, monkeypatch):
    """Its slices are all there: only the writing is repeated."""

    def full(*args, **options):
        raise ResourceError("TD7002", "the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("tadiff_rt.commands.write_comparison", full)
        with pytest.raises(ResourceError):
            run_in_process(command)
    assert names(tmp_path / "work") == [ABOUT, *(f"slice-{at:04d}.npz" for at in range(2, 8))]
    (tmp_path / "work/mine.txt").write_bytes(b"mine")
    from tadiff_rt.backends import ort

    monkeypatch.setattr(ort.OrtBackend, "denoise", None)
    run_in_process(command)
    assert names(tmp_path / "work") == ["mine.txt"]
    assert "forecast.json" in names(tmp_path / "out")
