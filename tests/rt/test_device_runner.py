"""The loop on a device gives what the loop on arrays gives, in any bucket, request after request.

Here the device is the CPU: the same buffers, slots and operators without a graph. `Network` is the
network of test_batches in torch, whose operations round alike.
"""

import itertools

import numpy as np
import pytest
import torch

from tadiff_rt.batches import BatchRunner, Sampling
from tadiff_rt.device.loop import DeviceLoop
from tadiff_rt.device.runner import DeviceRunner
from tadiff_rt.device.statistics import Fetched, Fetcher
from tadiff_rt.ensemble import SliceStatistics
from tadiff_rt.errors import NumericsError
from tadiff_rt.noise import NoiseSource
from tadiff_rt.runner import SampleSize, Work, run_ensemble
from tadiff_rt.solvers import STOCHASTIC, make_plan
from tests.rt import test_batches
from tests.rt.test_batches import DEPTH, SCHEDULE, SEED, SIZE, STEPS, X0_RANGE, Stub, images

SLICES = (0, 2, 3)
INSIDE = np.ones((SIZE, SIZE), bool)
INSIDE[:3] = False
WORK = [Work(at, 5) for at in SLICES]


def network(sources, x, shift, spread=0.15):
    """`test_batches.network`, without a step that a CUDA graph could not hold."""
    near = torch.roll(x, 1, 3) - torch.roll(torch.roll(x, -1, 1), 1, 2)
    eps = 0.7 * x + 0.1 * near + shift * sources[:, 6:9]
    size = x.shape[-1]
    ramp = torch.arange(size * size, dtype=torch.float32, device=x.device) / (size * size)
    logits = torch.zeros(len(x), 4, size, size, device=x.device)
    logits[:, :3] = x * sources[:, 3:6]
    level = 0.4 + spread * x[:, 1, 5, 7]
    logits[:, 3] = level[:, None, None] - ramp.reshape(size, size)
    return eps, logits


class Network:
    """A device denoiser that insists on what it was prepared for."""

    description = "stub"
    capturable = True

    def __init__(self, *buckets: int, device: str = "cpu", spread: float = 0.15) -> None:
        self.buckets = buckets or (4,)
        self.device = torch.device(device)
        self.spread = spread
        self.prepared = self.calls = 0

    def prepare(self, rows):
        assert rows in self.buckets
        self.prepared = rows

    def condition(self, t, days, treatments):
        return torch.from_numpy(Stub().condition(t, days, treatments)).to(self.device)

    def __call__(self, sources, x, shifts):
        self.calls += 1
        assert (len(sources), len(x), shifts.shape) == (self.prepared, self.prepared, (1, 2))
        for tensor in (sources, x, shifts):
            assert tensor.dtype == torch.float32
            assert tensor.is_contiguous()
            assert tensor.device.type == self.device.type
        return self.evaluate(sources, x, shifts[0, 0])

    def evaluate(self, sources, x, shift):
        return network(sources, x, shift, self.spread)


def sampling(solver="dpmpp_2m", *, noise=None, steps=STEPS, x0_range=X0_RANGE, **options):
    plan = make_plan(SCHEDULE, solver, steps, **options)
    start_lam = options.get("start_lam")
    return Sampling(plan, noise or NoiseSource(SEED), x0_range, start_lam is not None)


def on_device(
    network_or_loop,
    drawing: Sampling | None = None,
    size: SampleSize = SampleSize(5),  # noqa: B008  # frozen
    *,
    sources=None,
    days=(0, 30, 75, 160),
    slices: int = len(SLICES),
    progress=None,
) -> DeviceRunner:
    """A request on a new loop, or on one that has served others."""
    loop = network_or_loop
    if not isinstance(loop, DeviceLoop):
        loop = DeviceLoop(loop)
    drawing = drawing or sampling()
    shifts = loop.denoiser.condition(drawing.plan.t, days, (0, 0, 1, 1)) * (days[3] / 160)
    held = images() if sources is None else sources
    return DeviceRunner(
        loop, drawing, shifts, held, size, slices, runtime="stub", progress=progress
    )


def on_arrays(drawing: Sampling | None = None, bucket: int = 4) -> BatchRunner:
    drawing, backend = drawing or sampling(), Stub(bucket)
    shifts = backend.condition(drawing.plan.t, (0, 30, 75, 160), (0, 0, 1, 1))
    return BatchRunner(backend, drawing, shifts, images())


def states(request, work=WORK, inside=INSIDE) -> dict[int, dict[str, np.ndarray]]:
    """What is kept of every slice."""
    found = list(request.statistics(work, inside))
    assert [at for at, _ in found] == [item.at for item in work]
    return {at: {k: v.copy() for k, v in made.state().items()} for at, made in found}


def bits(request, work=WORK, inside=INSIDE) -> dict[int, dict[str, bytes]]:
    return {
        at: {name: array.tobytes() for name, array in state.items()}
        for at, state in states(request, work, inside).items()
    }


SAME = ("_last_image", "_last_mask", "_areas", "_overlaps")
SUMS = ("_mean", "_squares", "_pair_sum", "_probability_sum")

DRAWINGS = {
    "noise": {},
    "informed": {"start_lam": -2.0},
    "latin": {"noise": NoiseSource(SEED, latin=5)},
    "informed latin": {"noise": NoiseSource(SEED, latin=5), "start_lam": -2.0},
    "coherent": {"noise": NoiseSource(SEED, coherence=0.5)},
    "not clipped": {"x0_range": None},
}


def test_the_network_is_that_of_the_other_loop():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 3, SIZE, SIZE), np.float32)
    sources, shift = images()[:3], np.float32(0.3)
    expected = test_batches.network(sources, x, shift)
    tensors = [torch.from_numpy(a) for a in (sources, x)]
    for a, b in zip(network(*tensors, torch.tensor(shift)), expected, strict=True):
        assert a.numpy().tobytes() == b.tobytes()


SOLVERS = ("dpmpp_2m", "unipc_3", "dpmpp_2s", "ddpm", "sde_dpmpp_2m")


@pytest.mark.parametrize(
    ("solver", "drawn"),
    [
        (solver, drawn)
        for solver, drawn in itertools.product(SOLVERS, DRAWINGS)
        # Noise of every step that only the host makes is for the other loop.
        if not (drawn == "coherent" and solver in STOCHASTIC)
    ],
)
def test_samples_are_those_of_the_loop_on_arrays(solver, drawn):
    """Images, masks, areas and overlaps to the bit; sums to what pairs of float32 hold.

    Noise that is drawn on the device may differ by 1 ulp in 1 of 2^29 numbers; here none does.
    A sum of n terms is rounded n times, by 2^-49 of what it holds, at most 1 and n <= 5; in the
    squares errors of the mean come times twice a difference, below 4.
    """
    drawing = sampling(solver, **DRAWINGS[drawn])
    expected = states(on_arrays(drawing))
    found = states(on_device(Network(4), drawing))
    for at in SLICES:
        for name in SAME:
            assert found[at][name].tobytes() == expected[at][name].tobytes(), (at, name)
        for name in SUMS:
            largest = max(1.0, np.abs(found[at]["_last_image"]).max() ** 2)
            gap = np.abs(found[at][name] - expected[at][name]).max()
            assert gap <= 40 * 2.0**-49 * largest, (at, name)
            assert found[at][name].any()
    assert expected[0]["_areas"].tolist() != expected[2]["_areas"].tolist()


@pytest.mark.parametrize("solver", ["dpmpp_2m", "ddpm"])
def test_the_bucket_changes_no_bit(solver):
    """Slices of 5 in every bucket from 1 to 16, so that they straddle in every way."""
    expected = bits(on_device(Network(5), sampling(solver)))
    for bucket in (*range(1, 9), 16):
        assert bits(on_device(Network(bucket), sampling(solver))) == expected
    work = [Work(at, 5) for at in (3, 0, 2)]
    backwards = bits(on_device(Network(4), sampling(solver)), work)
    assert backwards == {at: expected[at] for at in (3, 0, 2)}


def test_slices_of_different_length_fill_buckets():
    """As after an interruption: more slices than a bucket was planned for."""
    lengths = (1, 4, 1, 1, 3)
    work = [Work(at, n) for at, n in enumerate(lengths)]
    request = on_device(Network(4))
    assert request._form.segments == 2
    found = bits(request, work)
    for at, n in enumerate(lengths):
        assert found[at] == bits(on_device(Network(4)), [Work(at, n)])[at]


def test_a_slice_goes_on_where_it_was():
    """To the bit, also where it straddles; what it goes on from is left alone."""
    whole = bits(on_device(Network(4)))
    for first in (1, 2, 4):
        begun = dict(on_device(Network(4)).statistics([Work(at, first) for at in SLICES], INSIDE))
        before = {at: made.state()["_mean"].copy() for at, made in begun.items()}
        for bucket in (2, 4, 8):
            # One slice is new: its slot has held another.
            work = [Work(at, 5, begun[at] if at != 2 else None) for at in SLICES]
            assert bits(on_device(Network(bucket)), work) == whole
        assert all(np.array_equal(begun[at].state()["_mean"], before[at]) for at in SLICES)


def same(a, b) -> bool:
    names = ("mean", "std", "probability", "tumour_voxels", "tumour_overlaps")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


def assert_alike(there, here) -> None:
    """Mean, spread and probability are the float32 of sums that agree to 40 bits.

    So they may be neighbours. What is squared agrees relative to the largest value.
    """
    eps = np.finfo(np.float32).eps
    for a, b in ((there[0], here[0]), (there[2], here[2])):
        np.testing.assert_allclose(a, b, rtol=eps, atol=2.0**-40 * np.abs(b).max())
    a, b = (spread.astype(np.float64) ** 2 for spread in (there[1], here[1]))
    np.testing.assert_allclose(a, b, rtol=4 * eps, atol=2.0**-40 * np.abs(here[0]).max() ** 2)
    assert b.any()


def test_an_ensemble_is_that_of_the_loop_on_arrays():
    there = run_ensemble(on_device(Network(4)), INSIDE, SLICES, SampleSize(5))
    here = run_ensemble(on_arrays(), INSIDE, SLICES, SampleSize(5))
    assert_alike(*((r.mean, r.std, r.probability) for r in (there, here)))
    assert there.tumour_voxels.tolist() == here.tumour_voxels.tolist()
    assert there.tumour_overlaps.tolist() == here.tumour_overlaps.tolist()


def test_samples_are_added_until_the_volume_is_known():
    """In rounds of a loop that stays: every bit is that of a fixed run of that number."""
    ask = SampleSize(24, 0.2)
    drawing = sampling(noise=NoiseSource(1), steps=2)
    loop = DeviceLoop(Network(1, 2, 4, 8, spread=0.8))
    auto = run_ensemble(on_device(loop, drawing, ask), INSIDE, SLICES, ask)
    n = len(auto.tumour_voxels)
    assert 8 <= n < 24
    fixed = run_ensemble(
        on_device(Network(4, spread=0.8), drawing, SampleSize(n)), INSIDE, SLICES, SampleSize(n)
    )
    assert same(auto, fixed)


# Request after request on one loop.


def other_sources():
    return images()[::-1].copy()


CHANGES = {
    "nothing": {},
    "seed": {"drawing": sampling(noise=NoiseSource(2**40 + SEED))},
    "high half of the seed": {"drawing": sampling(noise=NoiseSource(2**33 + SEED))},
    "table": {"drawing": sampling(grid="linspace")},
    "noise in the table": {"drawing": sampling("ddpm")},
    "longer history": {"drawing": sampling("unipc_3")},
    "steps": {"drawing": sampling(steps=STEPS + 2)},
    "range": {"drawing": sampling(x0_range=(0.2, 0.7))},
    "informed": {"drawing": sampling(start_lam=-2.0)},
    "latin": {"drawing": sampling(noise=NoiseSource(SEED, latin=5))},
    "day": {"days": (0, 30, 75, 190)},
    "sources": {"sources": other_sources()},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_request_does_not_depend_on_the_one_before(change):
    """Neither the other's table, seed, conditioning or sources, nor its sums and flags."""
    loop = DeviceLoop(Network(4))
    first = bits(on_device(loop))
    second = bits(on_device(loop, **CHANGES[change]))
    assert second == bits(on_device(Network(4), **CHANGES[change]))
    assert (second == first) == (change == "nothing")
    assert bits(on_device(loop)) == first


def test_two_requests_may_be_asked_for_before_either_is_drawn():
    loop = DeviceLoop(Network(4))
    one, two = on_device(loop), on_device(loop, sampling("ddpm", steps=2))
    assert bits(one) == bits(on_device(Network(4)))
    assert bits(two) == bits(on_device(Network(4), sampling("ddpm", steps=2)))


def test_voxels_outside_hold_no_tumour_in_any_request():
    loop = DeviceLoop(Network(4))
    assert sum(states(on_device(loop), inside=INSIDE)[0]["_areas"]) > 0
    assert states(on_device(loop), inside=~INSIDE)[0]["_areas"].any()
    nowhere = states(on_device(loop), inside=np.zeros_like(INSIDE))[0]
    assert not nowhere["_areas"].any()
    assert not nowhere["_probability_sum"].any()


def test_seeds_differ_in_every_row():
    found = [states(on_device(Network(4), sampling(noise=NoiseSource(s)))) for s in (1, 2)]
    for at in SLICES:
        assert (found[0][at]["_mean"] != found[1][at]["_mean"]).mean() > 0.5


def test_what_fills_a_bucket_up_is_not_looked_at():
    class Restless(Network):
        """15 rows in buckets of 4: the last row of the last call of every step fills up."""

        def evaluate(self, sources, x, shift):
            eps, logits = network(sources, x, shift)
            if self.calls > 1 + 3 * STEPS:  # one call to measure, three full buckets
                eps[3], logits[3] = torch.nan, torch.nan
            return eps, logits

    assert bits(on_device(Restless(4))) == bits(on_device(Network(5)))


def test_no_work_is_no_run():
    stub = Network(4)
    assert list(on_device(stub).statistics([], INSIDE)) == []
    assert stub.calls == 1  # which measures


def test_progress_is_told_by_the_bucket_and_ends_at_the_total():
    said = []
    request = on_device(Network(4), progress=lambda done, total: said.append((done, total)))
    bits(request)
    assert said == [(rows * STEPS, 15 * STEPS) for rows in (4, 8, 12, 15)]
    bits(request, [Work(1, 2)])
    assert said[4:] == [(17 * STEPS, 17 * STEPS)]


# Results that are fetched while the next bucket runs.


class LateFetcher(Fetcher):
    """Reads the slots as late as is allowed: in `wait`."""

    def fetch(self, buffers, slots, *, logits=False):
        fetch, broken = super().fetch, buffers["broken"].clone()

        class Late(Fetched):
            def wait(self) -> None:
                made = fetch(buffers, slots)
                object.__setattr__(self, "sums", made.sums)
                object.__setattr__(self, "counts", made.counts)

        return Late(broken, torch.empty(0), torch.empty(0), None, None)


@pytest.mark.parametrize("samples", [1, 2, 3])
@pytest.mark.parametrize("bucket", [1, 2, 4])
def test_a_slot_is_not_used_again_before_it_was_fetched(samples, bucket, monkeypatch):
    work = [Work(at, samples) for at in range(DEPTH)]
    size = SampleSize(samples)
    expected = bits(on_device(Network(bucket), size=size), work)
    monkeypatch.setattr("tadiff_rt.device.runner.Fetcher", LateFetcher)
    request = on_device(Network(bucket), size=size)
    assert isinstance(request._fetcher, LateFetcher)
    assert bits(request, work) == expected


def test_slices_of_a_bucket_come_while_the_next_runs():
    """The second bucket is enqueued before the slices of the first are handed out."""
    stub = Network(5)
    found = on_device(stub).statistics(WORK, INSIDE)
    at, made = next(found)
    assert (at, made.count, stub.calls) == (0, 5, 1 + 2 * STEPS)
    assert isinstance(made, SliceStatistics)


# Numbers that are none.


class Spoilt(Network):
    """NaN or infinity at chosen (slice, step): in the rows of the slice that `rows` tells."""

    def __init__(self, *buckets, at, step, rows, part="eps", value=np.nan):
        super().__init__(*buckets)
        self._at, self._step, self._rows, self._part, self._value = at, step, rows, part, value

    def evaluate(self, sources, x, shift):
        made = dict(zip(("eps", "logits"), network(sources, x, shift), strict=True))
        step = (self.calls - 2) % STEPS
        rows = (sources[:, 0, 0, 0] == self._at).nonzero().flatten().tolist()
        if self.calls > 1 and step >= self._step:
            for row in rows[self._rows]:
                made[self._part][row, -1, 3, 4] = self._value
        return made["eps"], made["logits"]


@pytest.mark.parametrize(("part", "value"), [("eps", np.nan), ("logits", np.inf)])
@pytest.mark.parametrize("step", range(STEPS))
def test_a_row_that_is_not_finite_is_named(part, value, step):
    """The fifth slice of five samples in buckets of 4; its samples 2 and 3 are in one bucket."""
    stub = Spoilt(4, at=4, step=step, rows=slice(1, 3), part=part, value=value)
    came = []

    def take() -> None:
        for at, _ in on_device(stub).statistics([Work(at, 5) for at in (0, 2, 4)], INSIDE):
            came.append(at)

    with pytest.raises(NumericsError) as e:
        take()
    assert e.value.code == "TD6002"
    assert e.value.message == f"sample 1 of slice 4 is not finite at step {step} (stub)"
    assert came == [0]  # slice 2 ends in the bucket that fails


def test_the_first_step_that_fails_is_named():
    """Of whichever row it is; NaN spreads within a row and never to another."""

    class Twice(Network):
        def evaluate(self, sources, x, shift):
            eps, logits = network(sources, x, shift)
            for row, step in ((0, 2), (3, 1), (2, 1)):
                if self.calls == 2 + step:
                    eps[row, 0, 0, 0] = torch.nan
            return eps, logits

    with pytest.raises(NumericsError, match="sample 2 of slice 0 is not finite at step 1"):
        bits(on_device(Twice(4)))


def test_what_is_said_is_what_the_loop_on_arrays_says():
    class Broken(Stub):
        def denoise(self, sources, x, shifts):
            eps, logits = super().denoise(sources, x, shifts)
            eps[2, 0, 0, 0] = np.inf
            return eps, logits

    class BrokenNetwork(Network):
        def evaluate(self, sources, x, shift):
            eps, logits = network(sources, x, shift)
            eps[2, 0, 0, 0] = torch.inf
            return eps, logits

    said = []
    arrays = on_arrays()
    arrays.backend = Broken(4)
    for request in (arrays, on_device(BrokenNetwork(4))):
        with pytest.raises(NumericsError) as e:
            list(request.statistics(WORK, INSIDE))
        said.append((e.value.code, e.value.message, e.value.fix))
    assert said[0] == said[1]
    assert "sample 2 of slice 0 is not finite at step 0" in said[0][1]


def test_flags_of_a_failed_request_are_gone_in_the_next():
    stub = Spoilt(4, at=2, step=1, rows=slice(1))
    loop = DeviceLoop(stub)
    with pytest.raises(NumericsError):
        bits(on_device(loop))
    stub._at = -1
    assert bits(on_device(loop)) == bits(on_device(Network(4)))
