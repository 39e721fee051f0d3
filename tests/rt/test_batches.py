"""Rows of an ensemble have the same bits in any bucket, order and company, and the right ones.

`Stub` stands for a network: operations on each row alone that round exactly, so none of its bits
depends on the batch. The other half runs the exported network on onnxruntime.
"""

import threading
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest

from tadiff_rt import batches
from tadiff_rt.backends import load_backend
from tadiff_rt.batches import BatchRunner, Row, Sampling
from tadiff_rt.bundle import open_bundle
from tadiff_rt.noise import NoiseSource, normal
from tadiff_rt.schedule import NoiseSchedule
from tadiff_rt.solvers import make_plan, noised, solve

SCHEDULE = NoiseSchedule.linear()
SEED, STEPS, SIZE, DEPTH = 7, 4, 16, 5
X0_RANGE = (0.0, 1.0)
SOLVERS = ("dpmpp_2m", "ddpm", "unipc_3", "dpmpp_2s")
"""Multistep, drawing noise, of order 3, of two stages."""

ROWS = [(at, sample) for at in range(DEPTH) for sample in range(3)]
"""15: no bucket of 2 or 4 divides them."""


def images(depth: int = DEPTH, size: int = SIZE) -> np.ndarray:
    """Sources; the first voxel of each says which slice it is."""
    sources = np.random.default_rng(3).random((depth, 9, size, size)).astype(np.float32)
    sources[:, 0, 0, 0] = np.arange(depth)
    return sources


def network(sources, x, shift, spread=0.15):
    """Noise estimate and mask logits; area of the tumour and its spread follow from one voxel."""
    near = np.roll(x, 1, axis=3) - np.roll(x[:, [1, 2, 0]], 1, axis=2)
    eps = np.float32(0.7) * x + np.float32(0.1) * near + shift * sources[:, 6:9]
    size = x.shape[-1]
    ramp = np.arange(size * size, dtype=np.float32).reshape(size, size) / np.float32(size * size)
    logits = np.zeros((len(x), 4, size, size), np.float32)
    logits[:, :3] = x * sources[:, 3:6]
    level = np.float32(0.4) + np.float32(spread) * x[:, 1, 5, 7]
    logits[:, 3] = level[:, None, None] - ramp
    return eps, logits


class Stub:
    """A backend of `network` that insists on full buckets, unless it is told to take fewer."""

    name = runtime = description = "stub"

    def __init__(self, batch: int = 4, *, partial: bool = False) -> None:
        self.batch = batch
        self.partial = partial
        self.calls = 0
        self.rows: list[int] = []
        self.lock = threading.Lock()

    def condition(self, t, days, treatments):
        return np.stack([t / 2000, t], axis=1).astype(np.float32)

    def denoise(self, sources, x, shifts):
        with self.lock:
            self.calls += 1
            self.rows.append(len(x))
        assert shifts.shape == (1, 2)
        if not (self.partial and 0 < len(x) <= self.batch):
            assert (len(sources), len(x)) == (self.batch, self.batch)
        for array in (sources, x, shifts):
            assert array.dtype == np.float32
            assert array.flags.c_contiguous
        return network(sources, x, shifts[0, 0])

    def halve(self) -> bool:
        if self.batch > 1:
            self.batch //= 2
            return True
        return False


def runner(backend, solver="dpmpp_2m", *, start_lam=None, noise=None, **options) -> BatchRunner:
    """A request on `backend`; `options` are those of the runner."""
    plan = make_plan(SCHEDULE, solver, options.pop("steps", STEPS), start_lam=start_lam)
    sampling = Sampling(plan, noise or NoiseSource(SEED), X0_RANGE, start_lam is not None)
    shifts = backend.condition(plan.t, (0, 30, 75, 160), (0, 0, 1, 1))
    sources = options.pop("sources", None)
    return BatchRunner(
        backend, sampling, shifts, images() if sources is None else sources, **options
    )


def drawn(request: BatchRunner, rows: Sequence[Row]) -> dict[Row, bytes]:
    """Every bit of every row."""
    found = list(request.run(rows))
    assert [row for row, _, _ in found] == list(rows)
    return {row: image.tobytes() + logits.tobytes() for row, image, logits in found}


def orders() -> list[list[Row]]:
    """As asked for, backwards, mixed, and a part that fills other places."""
    mixed = np.random.default_rng(1).permutation(len(ROWS))
    return [ROWS, ROWS[::-1], [ROWS[k] for k in mixed], ROWS[2:9]]


def one_by_one(solver: str, start_lam: float | None = None) -> dict[Row, bytes]:
    """Rows as they are defined: one solver run each, on noise by its identity."""
    plan = make_plan(SCHEDULE, solver, STEPS, start_lam=start_lam)
    shift = (plan.t / 2000).astype(np.float32)
    sources, shape = images(), (3, SIZE, SIZE)

    def alone(at, sample):
        def denoise(x, t, i):
            return network(sources[at : at + 1], x, shift[i])

        start = normal(SEED, sample, at, 0, shape)[None]
        if start_lam is not None:
            start = noised(sources[at : at + 1, 6:9], start, plan)
        image, logits = solve(
            denoise,
            start,
            plan,
            lambda i: normal(SEED, sample, at, i + 1, shape)[None],
            x0_range=X0_RANGE,
        )
        return image.tobytes() + logits.tobytes()

    return {row: alone(*row) for row in ROWS}


@pytest.mark.parametrize("start_lam", [None, -2.0], ids=["noise", "informed"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_row_is_one_solver_run_in_any_bucket_order_and_company(solver, start_lam):
    expected = one_by_one(solver, start_lam)
    assert len(set(expected.values())) == len(ROWS)
    for workers in (1, 2, 3):
        for bucket in (4, 3, 2, 1):
            for rows in orders():
                request = runner(Stub(bucket), solver, start_lam=start_lam, workers=workers)
                assert drawn(request, rows) == {row: expected[row] for row in rows}


@pytest.mark.parametrize("options", [{"coherence": 0.5}, {"latin": 3}], ids=["coherent", "latin"])
def test_rows_of_dependent_noise_do_not_depend_on_their_batch_either(options):
    noise = NoiseSource(SEED, **options)
    alone = {row: drawn(runner(Stub(1), "ddpm", noise=noise), [row])[row] for row in ROWS}
    assert alone != drawn(runner(Stub(1), "ddpm"), ROWS)
    for rows in orders():
        request = runner(Stub(4), "ddpm", noise=noise, workers=2)
        assert drawn(request, rows) == {row: alone[row] for row in rows}


class PerBatch:
    """Noise as it is often drawn: from one generator, for whatever batch comes."""

    def __init__(self) -> None:
        self._generator = np.random.default_rng(SEED)

    def initial(self, rows, shape):
        return self._generator.standard_normal((len(rows), *shape)).astype(np.float32)

    def step(self, rows, shape):
        return lambda i: self.initial(rows, shape)


def test_noise_drawn_by_the_batch_would_be_noticed():
    one, two, backwards = (
        drawn(runner(Stub(bucket), "ddpm", noise=PerBatch()), rows)
        for bucket, rows in ((4, ROWS), (2, ROWS), (4, ROWS[::-1]))
    )
    assert one == drawn(runner(Stub(4), "ddpm", noise=PerBatch()), ROWS)
    assert one != two
    assert one != backwards


class RoundsByBatch(Stub):
    """A runtime whose kernels add up in an order that depends on the number of rows."""

    def denoise(self, sources, x, shifts):
        eps, logits = network(sources, x, shifts[0, 0])
        return eps * np.float32(1 + 2.0**-20 * len(x)), logits


def test_a_batch_that_is_not_filled_up_would_be_noticed(monkeypatch):
    """Bits that depend on the number of rows a call are the reason for buckets."""
    alone = {row: drawn(runner(RoundsByBatch(4)), [row])[row] for row in ROWS}
    for rows in orders():
        assert drawn(runner(RoundsByBatch(4)), rows) == {row: alone[row] for row in rows}
    monkeypatch.setattr(batches, "_pad", lambda rows, count: np.ascontiguousarray(rows))
    assert {row: drawn(runner(RoundsByBatch(4)), [row])[row] for row in ROWS} != drawn(
        runner(RoundsByBatch(4)), ROWS
    )


def test_what_fills_a_bucket_up_is_not_looked_at():
    class Restless(Stub):
        def denoise(self, sources, x, shifts):
            eps, logits = super().denoise(sources, x, shifts)
            filling = ~sources.any(axis=(1, 2, 3))
            eps[filling], logits[filling] = np.nan, np.nan
            return eps, logits

    assert drawn(runner(Restless(4)), ROWS) == drawn(runner(Stub(1)), ROWS)


def test_no_rows_are_no_work():
    backend = Stub()
    assert drawn(runner(backend), []) == {}
    assert backend.calls == 0


@pytest.mark.parametrize("workers", [1, 3])
def test_progress_counts_rows_and_ends_at_the_total(workers):
    said = []
    request = runner(
        Stub(4), workers=workers, progress=lambda done, total: said.append((done, total))
    )
    drawn(request, ROWS)
    total = len(ROWS) * STEPS
    done = [number for number, _ in said]
    assert done == sorted(set(done))
    assert said[-1] == (total, total)
    assert len(said) == 4 * STEPS  # four batches
    assert {b - a for a, b in zip([0, *done], done, strict=False)} == {3, 4}
    drawn(request, ROWS[:2])  # a further round of the same ensemble
    assert said[len(done) :] == [(total + 2 * k, total + 2 * STEPS) for k in range(1, STEPS + 1)]


# On onnxruntime.

FEW = [(at, sample) for at in (4, 5) for sample in range(3)]


def exported(bundle, threads: int = 1, halvings: int = 0):
    backend = load_backend("onnxruntime", open_bundle(bundle), threads)
    for _ in range(halvings):
        assert backend.halve()
    return backend


@pytest.fixture(scope="module")
def buckets(bundle):
    """Backends of the exported network by their bucket, on one thread but for the last."""
    each = {4 >> halvings: exported(bundle, halvings=halvings) for halvings in range(3)}
    return {**each, "4, two threads": exported(bundle, threads=2)}


def head_runner(backend, solver, workers=1):
    sources = np.random.default_rng(5).random((6, 9, 32, 32)).astype(np.float32)
    return runner(backend, solver, workers=workers, sources=sources, steps=3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_row_of_the_exported_network_has_the_same_bits_anywhere(solver, buckets):
    assert buckets[1].batch == 1
    alone = {row: drawn(head_runner(buckets[1], solver), [row])[row] for row in FEW}
    assert len(set(alone.values())) == len(FEW)
    for bucket, rows, workers in (
        (4, FEW, 1),
        (4, [FEW[k] for k in (5, 0, 3, 1, 4)], 2),
        (2, FEW[::-1], 3),
        ("4, two threads", FEW, 1),
    ):
        found = drawn(head_runner(buckets[bucket], solver, workers), rows)
        assert found == {row: alone[row] for row in rows}, f"bucket {bucket}, {rows}"


def test_a_backend_of_any_rows_is_given_no_padding():
    backend = Stub(4, partial=True)
    assert drawn(runner(backend), ROWS) == drawn(runner(Stub(4)), ROWS)
    assert len(ROWS) % 4
    assert backend.rows.count(len(ROWS) % 4) == STEPS
    assert set(backend.rows) == {4, len(ROWS) % 4}


def test_the_last_batch_of_the_exported_network_has_a_session_of_its_own(bundle, monkeypatch):
    backend = exported(bundle)
    assert backend.partial
    loaded = []
    load = backend._load_denoiser
    monkeypatch.setattr(backend, "_load_denoiser", lambda n: (loaded.append(n), load(n))[1])
    request = head_runner(backend, "dpmpp_2m", workers=2)
    seven = drawn(request, [(at, sample) for at in (1, 2, 3) for sample in range(2)] + [(0, 0)])
    assert loaded == [3]
    drawn(request, [(0, 0), (0, 1), (0, 2)])
    assert loaded == [3]  # kept
    one = drawn(request, [(0, 0)])
    assert loaded == [3, 1]
    assert one[0, 0] == seven[0, 0]


# Memory.


class Lean(Stub):
    """Takes nothing beside its result."""

    def denoise(self, sources, x, shifts):
        logits = np.zeros((len(x), 4, *x.shape[2:]), np.float32)
        np.subtract(x[:, 0], sources[:, 3], out=logits[:, 3])
        return x * np.float32(0.5), logits


def peak_channels(call, size: int) -> float:
    """Most memory that `call` takes at a time, in float32 images of one channel."""
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    call()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (peak - before) / (4 * size * size)


def runner_channels(request: BatchRunner) -> float:
    """What the docstring of `BatchRunner` allows."""
    batch, history = request.backend.batch, request.sampling.plan.history
    return request.workers * (batch * (51 + 3 * history) + 18) + 14 * batch


def exhaust(request: BatchRunner, rows: Sequence[Row]) -> None:
    for _ in request.run(rows):
        pass


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("batch", "workers"), [(1, 1), (4, 1), (8, 1), (4, 2), (2, 3)])
def test_memory_is_what_is_said(solver, batch, workers):
    """With one worker at least 0.6 of it: all but the noise and finished batches, at the least."""
    size = 48
    sources = images(4, size)
    rows = [(at, sample) for at in range(4) for sample in range(12)]
    request = runner(Lean(batch), solver, sources=sources, workers=workers)
    exhaust(request, rows[:4])  # numpy fills caches of its own in the first run
    peak = peak_channels(lambda: exhaust(request, rows), size)
    assert peak < runner_channels(request) + 3  # some Python objects
    assert workers > 1 or peak > 0.6 * runner_channels(request)
