"""What goes wrong while batches are drawn: memory runs out, a batch fails, someone interrupts.

Everything here ends: a run that hangs fails after `PATIENCE_S`.
"""

import hashlib
import itertools
import json
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from tadiff_rt.backends import load_backend, ort
from tadiff_rt.bundle import MANIFEST, open_bundle
from tadiff_rt.errors import NumericsError, ResourceError
from tadiff_rt.forecast import Forecaster
from tadiff_rt.noise import NoiseSource
from tadiff_rt.readers import read_case
from tests.rt.test_batches import FEW, ROWS, SEED, STEPS, Stub, drawn, head_runner, runner

PATIENCE_S = 60
ONNX_ERRORS = onnxruntime.capi.onnxruntime_pybind11_state


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    yield
    ends = time.monotonic() + PATIENCE_S
    while pools := [t.name for t in threading.enumerate() if "ThreadPoolExecutor" in t.name]:
        assert time.monotonic() < ends, pools
        time.sleep(0.01)


def patiently(call: Callable[[], Any]) -> Any:
    """What `call` returns or raises, from a thread that is given up if it hangs."""
    ending: list[Any] = []

    def run() -> None:
        try:
            ending.append((call(), None))
        except BaseException as error:
            ending.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert ending, "it hangs"
    result, error = ending[0]
    if error is not None:
        raise error
    return result


# Memory.


class Small(Stub):
    """A machine with memory for `most` rows a call, from some call on."""

    def __init__(self, most: int, error: Exception, *, after: int = 0, batch: int = 4) -> None:
        super().__init__(batch)
        self._most, self._error, self._after = most, error, after

    def denoise(self, sources, x, shifts):
        result = super().denoise(sources, x, shifts)
        if self.batch > self._most and self.calls > self._after:
            raise self._error
        return result


class Fixed(Small):
    """A bundle for one bucket."""

    def halve(self) -> bool:
        return False


def noted(*buckets: int) -> list[str]:
    return [
        f"out of memory with {before} rows a call; went on with {after}"
        for before, after in itertools.pairwise(buckets)
    ]


ERRORS = [ResourceError("TD7001", "no memory for a batch"), MemoryError()]


@pytest.mark.parametrize("error", ERRORS, ids=["runtime", "numpy"])
@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("after", [0, 2, 7], ids=["at once", "in a batch", "in a later batch"])
@pytest.mark.parametrize(("most", "buckets"), [(3, (4, 2)), (1, (4, 2, 1))])
def test_the_bucket_is_halved_and_no_bit_changes(most, buckets, after, workers, error):
    request = runner(Small(most, error, after=after), "ddpm", workers=workers)
    assert patiently(lambda: drawn(request, ROWS)) == drawn(runner(Stub(4), "ddpm"), ROWS)
    assert request.notes == noted(*buckets)
    assert request.backend.batch == buckets[-1]


def test_an_odd_bucket_is_halved_too():
    request = runner(Small(3, MemoryError(), batch=6))
    assert drawn(request, ROWS) == drawn(runner(Stub(4)), ROWS)
    assert request.notes == noted(6, 3)


def test_a_later_run_says_nothing_again():
    request = runner(Small(2, MemoryError()))
    drawn(request, ROWS)
    assert drawn(request, ROWS[:3]) == drawn(runner(Stub(4)), ROWS[:3])
    assert request.notes == noted(4, 2)


def test_memory_may_run_out_where_noise_is_drawn():
    class Hungry:
        """Room for the noise of two rows."""

        def __init__(self) -> None:
            self._inner = NoiseSource(SEED)
            self.step = self._inner.step

        def initial(self, rows, shape):
            if len(rows) > 2:
                raise MemoryError
            return self._inner.initial(rows, shape)

    request = runner(Stub(4), noise=Hungry(), workers=2)
    assert patiently(lambda: drawn(request, ROWS)) == drawn(runner(Stub(4)), ROWS)
    assert request.notes == noted(4, 2)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize(
    ("backend", "calls_of_one_worker"), [(Small, 3), (Fixed, 1)], ids=["buckets", "fixed bucket"]
)
@pytest.mark.parametrize("error", ERRORS, ids=["runtime", "numpy"])
def test_no_memory_for_the_least_bucket_is_the_end(error, backend, calls_of_one_worker, workers):
    request = runner(backend(0, error), workers=workers)
    with pytest.raises(ResourceError) as e:
        patiently(lambda: drawn(request, ROWS))
    assert (e.value.code, e.value.exit_code) == ("TD7001", 7)
    if isinstance(error, MemoryError):
        last = 4 if backend is Fixed else 1
        assert e.value.message == f"out of memory for a batch of {last}"
        assert e.value.fix == "use fewer workers"
    if workers == 1:  # the batch that waits may begin before it is given up
        assert calls_of_one_worker <= request.backend.calls <= 2 * calls_of_one_worker
    assert request.notes == ([] if backend is Fixed else noted(4, 2, 1))


def test_batches_beside_the_one_without_memory_are_given_up():
    """They hold memory too: the second batch ends in the step in which the first has failed."""
    second_runs = threading.Event()
    steps_of_second, events = [], []

    class Beside(Stub):
        def denoise(self, sources, x, shifts):
            if len(x) == 4 and sources[0, 0, 0, 0] == 0:
                assert second_runs.wait(PATIENCE_S)
                raise MemoryError
            if len(x) == 4:
                steps_of_second.append(1)
                second_runs.set()
                assert request._stop.wait(PATIENCE_S)
                events.append("second ends")
            return super().denoise(sources, x, shifts)

        def halve(self):
            events.append("halved")
            return super().halve()

    rows = [(0, k) for k in range(4)] + [(1, k) for k in range(4)]
    request = runner(Beside(4), workers=2)
    assert patiently(lambda: drawn(request, rows)) == drawn(runner(Stub(4)), rows)
    assert len(steps_of_second) == 1
    assert events == ["second ends", "halved"]


# Memory, on onnxruntime.


def starve(monkeypatch, error: type[Exception]) -> None:
    """Makes runs of four rows fail as they do without memory."""
    whole = onnxruntime.InferenceSession.run

    def run(self, names, feed, *more):
        if "x_t" in feed and len(feed["x_t"]) == 4:
            raise error("[ONNXRuntimeError] : bad_alloc")
        return whole(self, names, feed, *more)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", run)


@pytest.mark.parametrize("error", [ONNX_ERRORS.Fail, ONNX_ERRORS.RuntimeException, MemoryError])
def test_onnxruntime_without_memory_goes_on_with_half(error, bundle, monkeypatch):
    """The session of four rows is gone before the next one is loaded: it holds most memory."""
    backend = load_backend("onnxruntime", open_bundle(bundle), 1)
    expected = drawn(head_runner(backend, "ddpm"), FEW)
    starve(monkeypatch, error)
    old, load, kept = weakref.ref(backend._denoiser), ort.session, []

    def watched(*args, **options):
        kept.append(old() is not None)
        return load(*args, **options)

    monkeypatch.setattr(ort, "session", watched)
    request = head_runner(backend, "ddpm", workers=2)
    assert patiently(lambda: drawn(request, FEW)) == expected
    assert (request.notes, backend.batch, kept) == (noted(4, 2), 2, [False])


def test_an_error_of_another_kind_is_not_taken_for_want_of_memory(bundle, monkeypatch):
    starve(monkeypatch, ONNX_ERRORS.InvalidArgument)
    backend = load_backend("onnxruntime", open_bundle(bundle), 1)
    with pytest.raises(ONNX_ERRORS.InvalidArgument):
        drawn(head_runner(backend, "ddpm"), FEW)


def for_four_rows(bundle, tmp_path):
    """The bundle with a graph for exactly four rows."""
    copy = shutil.copytree(bundle, tmp_path / "static.tadiff")
    model = onnx.load(copy / "denoiser.fp32.onnx")
    for value in (*model.graph.input, *model.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param == ort.BATCH:
                dimension.dim_value = 4
    data = model.SerializeToString()
    (copy / "denoiser.fp32.onnx").write_bytes(data)
    manifest = json.loads((copy / MANIFEST).read_text())
    artefact = next(a for a in manifest["artefacts"] if a["role"] == "denoiser")
    artefact.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    del artefact["dynamic_batch"]
    (copy / MANIFEST).write_text(json.dumps(manifest))
    return copy


def test_a_bundle_for_one_bucket_gives_the_same_bits_and_cannot_go_on(
    bundle, tmp_path, monkeypatch
):
    static, dynamic = (
        load_backend("onnxruntime", open_bundle(path), 1)
        for path in (for_four_rows(bundle, tmp_path), bundle)
    )
    assert drawn(head_runner(static, "dpmpp_2m"), FEW) == drawn(
        head_runner(dynamic, "dpmpp_2m"), FEW
    )
    starve(monkeypatch, ONNX_ERRORS.Fail)
    with pytest.raises(ResourceError, match=r"a batch of 4: .*bad_alloc") as e:
        drawn(head_runner(static, "dpmpp_2m"), FEW)
    assert e.value.code == "TD7001"
    assert static.batch == 4


STARVED = """
    import resource
    import sys
    import numpy as np
    from tadiff_rt.backends import load_backend
    from tadiff_rt.bundle import open_bundle
    from tadiff_rt.errors import ResourceError
    from tests.rt.test_batches import drawn, head_runner

    backend = load_backend("onnxruntime", open_bundle(sys.argv[1]), 1)
    rows = [(4, k) for k in range(4)]
    request = head_runner(backend, "dpmpp_2m")
    shifts = request.shifts[:1]
    feed = np.zeros((4, 9, 32, 32), np.float32), np.zeros((4, 3, 32, 32), np.float32)
    pages = int(open("/proc/self/statm").read().split()[0])
    limit, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**20, hard))
    try:
        backend.denoise(*feed, shifts)
        code = "none"
    except ResourceError as error:
        code = error.code
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    assert backend.halve()
    drawn(request, rows)
    print(code, backend.batch)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="address space limits of Linux")
def test_a_real_failure_to_allocate_is_recognised(bundle):
    """An address space with 1 MiB to spare; four rows of the tiny network need megabytes."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(STARVED), str(bundle)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.stdout.split() == ["TD7001", "2"], done.stderr


def test_a_forecast_says_that_memory_ran_out(bundle, case_folder, monkeypatch):
    case, request = (
        read_case(case_folder),
        {"day": "+90", "treatment": "TMZ", "samples": 3, "steps": 2, "slices": "4:6"},
    )
    forecaster = Forecaster.load(bundle, threads=1)
    whole = forecaster.predict(case, **request)
    assert whole.report["sampling"]["batch"] == 4
    starve(monkeypatch, ONNX_ERRORS.Fail)
    starved = forecaster.predict(case, **request, workers=2)
    assert starved.report["notes"] == [*whole.report["notes"], *noted(4, 2)]
    assert starved.report["sampling"]["batch"] == 2
    assert starved.mean.tobytes() == whole.mean.tobytes()
    assert starved.std.tobytes() == whole.std.tobytes()
    assert starved.tumour_probability.tobytes() == whole.tumour_probability.tobytes()
    again = forecaster.predict(case, **request)
    assert again.report["notes"] == whole.report["notes"]


# Company.


class Together(Stub):
    """Every evaluation waits until another one runs."""

    def __init__(self, inner=None) -> None:
        super().__init__(4)
        self._inner, self._barrier = inner or Stub(4), threading.Barrier(2, timeout=PATIENCE_S)

    def condition(self, *args):
        return self._inner.condition(*args)

    def denoise(self, sources, x, shifts):
        self._barrier.wait()
        return self._inner.denoise(sources, x, shifts)


def test_workers_work_at_the_same_time():
    rows = ROWS[:8]
    assert patiently(lambda: drawn(runner(Together(), workers=2), rows)) == drawn(
        runner(Stub(4)), rows
    )


def test_workers_of_a_forecast_work_at_the_same_time(bundle, case_folder):
    forecaster = Forecaster.load(bundle, threads=1)
    together = Forecaster(forecaster.bundle, Together(forecaster.backend), 0.0)
    request = {"day": "+9", "treatment": "TMZ", "samples": 4, "steps": 1, "slices": "4:6"}
    case = read_case(case_folder)
    patiently(lambda: together.predict(case, **request, workers=2))


# Errors.


class Spoilt(Stub):
    """Gives no number in the batch that begins with slice `at`; counts the calls of each.

    Others wait in every call for `stopped`.
    """

    def __init__(self, at: int) -> None:
        super().__init__(4)
        self._at = at
        self.stopped = threading.Event()
        self.calls_of: dict[int, int] = {}

    def denoise(self, sources, x, shifts):
        at = int(sources[0, 0, 0, 0])
        with self.lock:
            self.calls_of[at] = self.calls_of.get(at, 0) + 1
        eps, logits = super().denoise(sources, x, shifts)
        if at == self._at:
            eps[2, 1, 3, 4] = np.nan
        else:
            assert self.stopped.wait(PATIENCE_S)
        return eps, logits


WIDE = [(at, k) for at in range(5) for k in range(4)]
"""Five batches of four, a slice each."""


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_batch_that_fails_stops_the_others(workers):
    """Those that run end at their next step, the one that waits in its first."""
    request = runner(Spoilt(0), workers=workers)
    request.backend.stopped = request._stop
    with pytest.raises(NumericsError, match="sample 2 of slice 0 is not finite at step 0") as e:
        patiently(lambda: list(request.run(WIDE)))
    assert e.value.code == "TD6002"
    assert request.backend.calls_of[0] == 1
    assert request.backend.calls <= workers + 1
    assert max(request.backend.calls_of.values()) == 1


def test_rows_before_the_one_that_fails_have_come():
    backend, found = Spoilt(2), []
    backend.stopped.set()  # nobody waits

    def take() -> None:
        for row, _, _ in runner(backend, workers=2).run(WIDE):
            found.append(row)

    with pytest.raises(NumericsError, match="sample 2 of slice 2"):
        patiently(take)
    assert found == WIDE[:8]


def test_errors_that_are_bugs_come_through():
    class Wrong(Stub):
        def denoise(self, sources, x, shifts):
            raise LookupError("a bug")

    with pytest.raises(LookupError, match="a bug"):
        patiently(lambda: drawn(runner(Wrong(4), workers=3), ROWS))


@pytest.mark.parametrize("workers", [1, 3])
def test_a_runner_can_be_used_again_after_an_error(workers):
    request = runner(Spoilt(0), "ddpm", workers=workers)
    request.backend.stopped.set()
    for _ in range(2):
        with pytest.raises(NumericsError):
            patiently(lambda: list(request.run(WIDE)))
    request.backend = Stub(4)
    assert patiently(lambda: drawn(request, WIDE)) == drawn(runner(Stub(4), "ddpm"), WIDE)


# Interrupts.


class Endless(Stub):
    """Evaluations take a while; the eighth calls `act`."""

    def __init__(self, act: Callable[[], object] = lambda: None) -> None:
        super().__init__(2)
        self._act, self._numbers = act, itertools.count(1)

    def denoise(self, sources, x, shifts):
        number = next(self._numbers)
        time.sleep(0.05)
        if number == 8:
            self._act()
        return super().denoise(sources, x, shifts)


MANY = [(at, k) for at in range(5) for k in range(40)]


def press_control_c() -> None:
    """To the thread that waits for the workers, as the system would."""
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_stops_the_workers(workers):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        request = runner(Endless(press_control_c), workers=workers)
        with pytest.raises(KeyboardInterrupt):
            drawn(request, MANY)
    finally:
        signal.signal(signal.SIGINT, before)
    assert 7 <= request.backend.calls < 8 + 8 * workers  # of 400; the signal takes its time


@pytest.mark.parametrize("workers", [1, 2])
def test_who_wants_no_more_rows_stops_the_workers(workers):
    request = runner(Endless(), workers=workers)
    rows = request.run(MANY)
    row, _, _ = next(rows)
    rows.close()
    calls = request.backend.calls
    assert row == MANY[0]
    assert calls <= (workers + 2) * STEPS  # the first batch, and what ran beside and after it
    assert patiently(lambda: drawn(request, ROWS)) == drawn(runner(Stub(4)), ROWS)


def test_an_error_of_who_takes_the_rows_stops_the_workers():
    request = runner(Endless(), workers=2)

    def take() -> None:
        for _ in request.run(MANY):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        patiently(take)
    assert request.backend.calls <= 4 * STEPS
