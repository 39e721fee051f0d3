"""Buckets: how rows are cut, which size is chosen, what it takes, and what is done without it."""

import gc
import itertools
import math
import weakref

import numpy as np
import pytest
import torch

from tadiff_rt.device.buckets import CALL_ROWS, best_bucket, cut, most_segments
from tadiff_rt.device.form import Form, Memory
from tadiff_rt.device.loop import DeviceLoop
from tadiff_rt.errors import EngineError, ResourceError, UsageError
from tadiff_rt.runner import SampleSize, Work
from tests.rt.test_device_runner import (
    INSIDE,
    STEPS,
    WORK,
    Network,
    bits,
    on_device,
    sampling,
)

# How rows are cut.


def begun(at: int, first: int, samples: int) -> Work:
    class Statistics:
        count = first

    return Work(at, samples, Statistics() if first else None)


LENGTHS = [(5,) * 4, (1,) * 9, (2, 7, 1, 3), (13,), (3, 1, 1, 1, 6)]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("first", [0, 2])
def test_every_row_is_in_one_bucket_and_in_order(lengths, first):
    work = [begun(at, first, first + n) for at, n in enumerate(lengths)]
    expected = [(at, first + k) for at, n in enumerate(lengths) for k in range(n)]
    for rows, segments in itertools.product(range(1, 9), range(1, 5)):
        buckets = list(cut(work, rows, segments))
        assert [row for bucket in buckets for row in bucket.rows] == expected
        for bucket in buckets:
            assert 1 <= len(bucket.rows) <= rows
            assert len(bucket.segments) <= segments
            starts = [s.row for s in bucket.segments]
            assert (
                starts == list(itertools.accumulate([0] + [s.count for s in bucket.segments]))[:-1]
            )
        # No bucket ends early while both limits leave room.
        for bucket in buckets[:-1]:
            assert len(bucket.rows) == rows or len(bucket.segments) == segments
        last = [s for bucket in buckets for s in bucket.segments if s.finishes]
        assert [s.item.at for s in last] == list(range(len(lengths)))


@pytest.mark.parametrize("samples", [1, 2, 3, 5, 12])
def test_segments_suffice_and_are_needed(samples):
    for rows in range(1, 20):
        touched = [
            len(bucket.segments)
            for start in range(samples)
            for bucket in cut(
                [begun(0, start, samples), *(Work(at, samples) for at in range(1, 40))], rows, 99
            )
        ]
        assert max(touched) == most_segments(rows, samples)


def test_the_best_bucket_by_hand():
    many = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64)
    assert best_bucket(many, 155 * 5, 5) == 40  # 20 calls of 43; 13 of 67 and 17 of 51 are more
    assert best_bucket(many, 5, 5) == 5
    assert best_bucket(many, 7, 7) == 8  # one row fills up
    assert best_bucket((4,), 1, 1) == 4
    assert best_bucket((1, 2, 4), 3, 3) == 4
    # 12 and 15 rows: both 60 rows in 4 or 5 calls; what calls cost decides.
    assert best_bucket((12, 15), 60, 5) == 15
    assert CALL_ROWS == 3


def test_of_equal_buckets_one_that_slices_fit_into_is_taken():
    """21 rows: 3 calls of 7 + 3 rows, or 2 calls of 12 + 3: the same cost."""
    assert best_bucket((7, 12), 21, 7) == 7
    assert best_bucket((7, 12), 21, 3) == 12
    assert best_bucket((7, 12), 21, 5) == 12


# What it takes.

FORM = Form(
    rows=4,
    segments=2,
    samples=5,
    steps=20,
    history=1,
    noisy=False,
    x0_range=(0.0, 1.0),
    start="informed",
    size=(16, 12),
    width=7,
)


def test_bytes_of_buffers_by_hand():
    pixels = 16 * 12
    rows = 4 * (9 + 3 + 2 * 3 + 4 + 3) * pixels * 4  # sources, x, estimates, fused, guess
    words = (4 + 4 * 2 + 2 * 4 + 2) * 4  # broken, rows, segments, seed
    slots = 4 * (24 * pixels + 5 * 2) * 4
    tables = 20 * (10 + 64) * 4 + pixels
    assert FORM.bytes_of() == rows + words + slots + tables
    assert FORM.bytes_of("x", "broken") == 4 * 3 * pixels * 4 + 4 * 4
    assert FORM.slots == 4


@pytest.mark.parametrize("solver", ["dpmpp_2m", "unipc_3"])
@pytest.mark.parametrize("start_lam", [None, -2.0])
def test_bytes_are_those_that_are_allocated(solver, start_lam):
    request = on_device(Network(4), sampling(solver, start_lam=start_lam))
    loop = request._loop
    allocated = sum(buffer.nbytes for buffer in loop.buffers.values())
    assert request.report()["device"] == {
        "bucket": 4,
        "mode": "eager",
        "planned_bytes": allocated,
        "held_bytes": None,
    }
    graph = on_device(DeviceLoop(Network(4), lambda enqueue: enqueue))
    results = [graph._loop.buffers[n].nbytes for n in ("x", "fused", "broken", "sums", "counts")]
    total = sum(buffer.nbytes for buffer in graph._loop.buffers.values())
    assert graph.report()["device"]["planned_bytes"] == total + sum(results)


def test_nine_tenths_of_the_free_memory_are_planned_for():
    assert Memory(None, 10**15, 0).fits
    assert Memory(1000, 600, 300).fits
    assert not Memory(1000, 600, 301).fits


class Measured(DeviceLoop):
    """A device of so many bytes, of which a row of the network takes 10^6."""

    def __init__(self, stub, total: int) -> None:
        super().__init__(stub)
        self._total_bytes = total

    def free_bytes(self):
        held = sum(buffer.nbytes for buffer in self.buffers.values())
        return self._total_bytes - held - self.denoiser.prepared * 10**6 * bool(self.buffers)


@pytest.mark.parametrize("rows", [16, 8, 4])
def test_the_largest_bucket_that_fits_is_taken(rows):
    """Of the memory for a bucket of `rows`, 90 % are left as by the rule."""
    wide = dict(on_device(Network(rows))._loop.buffers)
    needed = sum(buffer.nbytes for buffer in wide.values()) + rows * 10**6
    for spare, taken in ((2, rows), (-2, rows // 2)):
        loop = Measured(Network(2, 4, 8, 16), math.ceil(needed / 0.9) + spare)
        request = on_device(loop, slices=100)
        assert request.batch == taken
        assert request.notes == []
        assert loop.memory.workspace == taken * 10**6
        list(request.statistics(WORK, INSIDE))
        said = request.report()["device"]
        assert said["held_bytes"] == said["planned_bytes"] == loop.memory.planned


def test_the_smallest_bucket_is_tried_however_little_is_free():
    request = on_device(Measured(Network(2, 4), 10))
    assert request.batch == 2
    assert bits(request) == bits(on_device(Network(4)))


# Without memory.

ERRORS = {
    "backend": lambda: ResourceError("TD7001", "no memory for a batch"),
    "numpy": MemoryError,
    "torch": lambda: torch.OutOfMemoryError("CUDA out of memory"),
    "driver": lambda: RuntimeError("CUDA error: out of memory"),
    "cpu": lambda: RuntimeError("DefaultCPUAllocator: not enough memory"),
}


class Small(Network):
    """Memory for `most` rows, which ends in `prepare` or in a later call."""

    def __init__(self, *buckets, most, error, after=None) -> None:
        super().__init__(*buckets)
        self._most, self._error, self._after = most, error, after

    def prepare(self, rows):
        if self._after is None and rows > self._most:
            raise self._error()
        super().prepare(rows)

    def evaluate(self, sources, x, shift):
        if self._after is not None and len(x) > self._most and self.calls > self._after:
            raise self._error()
        return super().evaluate(sources, x, shift)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("after", [None, 0, 2, 1 + STEPS], ids=str)
def test_the_bucket_becomes_half_and_no_bit_changes(error, after):
    """Getting ready, in the call that measures, in the first bucket, in the second."""
    loop = DeviceLoop(Small(1, 2, 4, 8, most=2, error=ERRORS[error], after=after))
    request = on_device(loop)
    assert bits(request) == bits(on_device(Network(5)))
    assert request.batch == 2
    assert request.notes == [
        "out of memory with 8 rows a call; went on with at most 4",
        "out of memory with 4 rows a call; went on with at most 2",
    ]
    again = on_device(loop)
    assert bits(again) == bits(on_device(Network(5)))
    assert again.notes == []


def test_slices_that_came_before_come_once():
    """Memory ends in the fourth bucket of 4; the second, with the end of slice 0, is read."""
    stub = Small(2, 4, most=2, error=MemoryError, after=1 + 3 * STEPS)
    came = [(at, stub.prepared) for at, _ in on_device(stub).statistics(WORK, INSIDE)]
    assert came == [(0, 4), (2, 2), (3, 2)]


def test_progress_ends_at_the_total_also_where_rows_are_drawn_again():
    said = []
    stub = Small(2, 4, most=2, error=MemoryError, after=1 + 2 * STEPS)
    bits(on_device(stub, progress=lambda done, total: said.append(done / total)))
    assert said == sorted(said)
    assert said[-1] == 1


def test_memory_ends_while_a_graph_is_captured():
    def capture(enqueue):
        if loop.form.rows > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return enqueue

    loop = DeviceLoop(Network(2, 4), capture)
    request = on_device(loop)
    assert bits(request) == bits(on_device(Network(5)))
    assert request.batch == 2


def test_no_memory_for_the_smallest_bucket_is_the_end():
    for after in (None, 0):
        stub = Small(2, 4, 8, most=1, error=lambda: MemoryError("planted"), after=after)
        loop = DeviceLoop(stub)
        with pytest.raises(ResourceError, match="out of memory for 2 rows on cpu: planted") as e:
            bits(on_device(loop))
        assert e.value.code == "TD7001"
        assert not loop.buffers


def test_an_engine_of_one_bucket_cannot_go_on():
    stub = Small(6, most=5, error=MemoryError)
    with pytest.raises(ResourceError, match="for 6 rows"):
        on_device(stub)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("expected scalar type Half"),
        LookupError("a bug"),
        UsageError("TD3050", "asked for"),
        EngineError("TD5022", "CUDA out of memory is not what this is"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_an_error_of_another_kind_is_not_taken_for_want_of_memory(error):
    for after in (None, 0, 2):
        stub = Small(2, 4, most=1, error=lambda: error, after=after)
        with pytest.raises(type(error)) as e:
            bits(on_device(stub))
        assert e.value is error


def test_buffers_are_given_back_before_others_are_made():
    """Those of the failed bucket and what the failing call held."""
    alive = []

    class Watched(Small):
        def prepare(self, rows):
            alive.append([rows, sum(ref() is not None for ref in held)])
            super().prepare(rows)

        def evaluate(self, sources, x, shift):
            mine = torch.zeros(3)
            held.extend(weakref.ref(t) for t in (sources, x, mine) if len(x) == 4)
            del mine
            return super().evaluate(sources, x, shift)

    held: list[weakref.ref] = []
    gc.collect()
    bits(on_device(Watched(2, 4, most=2, error=MemoryError, after=3)))
    assert alive == [[4, 0], [2, 0]]
    assert len(held) >= 6


def test_rounds_of_few_samples_choose_the_bucket_of_an_open_number():
    """6 and then 2 samples of 3 slices at a time: 6 rows, not 18 or 72."""
    request = on_device(Network(1, 2, 4, 6, 8, 16), size=SampleSize(24, 0.1))
    assert request.batch == 6
    assert request._form.segments == most_segments(6, 2)
    assert np.prod(request._loop.buffers["counts"].shape) == request._form.slots * 24 * 2
