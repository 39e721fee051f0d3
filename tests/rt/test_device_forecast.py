"""Whole forecasts by the loop on a device: the same request, answered by either loop."""

import pytest
import torch

from tadiff_rt.backends import load_backend
from tadiff_rt.batches import BatchRunner
from tadiff_rt.bundle import open_bundle
from tadiff_rt.device.runner import DeviceRunner
from tadiff_rt.device.runners import Runners
from tadiff_rt.errors import UsageError
from tadiff_rt.forecast import Forecaster
from tadiff_rt.journal import Journal
from tadiff_rt.noise import NoiseSource
from tadiff_rt.readers import read_case
from tadiff_rt.runner import SampleSize, run_ensemble
from tests.rt.test_batches import Stub, images
from tests.rt.test_device_runner import (
    INSIDE,
    SLICES,
    STEPS,
    Network,
    assert_alike,
    bits,
    on_arrays,
    on_device,
    same,
    sampling,
)
from tests.rt.test_journal import Breaking, Interrupted

REQUEST = {"day": "+90", "treatment": "TMZ", "samples": 3, "steps": 3, "slices": "4:6"}


class Tensors:
    """A device denoiser that is a backend for arrays inside."""

    device = torch.device("cpu")
    capturable = False

    def __init__(self, inner) -> None:
        self._inner = inner
        self.description = inner.description
        self.buckets = (inner.batch,)

    def prepare(self, rows):
        assert rows == self._inner.batch

    def condition(self, t, days, treatments):
        return torch.from_numpy(self._inner.condition(t, days, treatments))

    def __call__(self, sources, x, shifts):
        made = self._inner.denoise(sources.numpy(), x.numpy(), shifts.numpy())
        return tuple(torch.from_numpy(a) for a in made)


class OnDevice:
    """A backend that is asked for tensors alone."""

    def __init__(self, inner, denoiser=None) -> None:
        self._denoiser = denoiser or Tensors(inner)
        self.name, self.runtime, self.batch = inner.name, inner.runtime, 99
        self.description = inner.description

    def on_device(self):
        return self._denoiser


@pytest.fixture(scope="module")
def forecaster(bundle):
    return Forecaster.load(bundle, threads=1)


@pytest.fixture(scope="module")
def device_forecaster(forecaster):
    return Forecaster(forecaster.bundle, OnDevice(forecaster.backend), 0.0)


@pytest.fixture(scope="module")
def case(case_folder):
    return read_case(case_folder)


def assert_same_forecast(a, b) -> None:
    assert_alike(*((f.mean, f.std, f.tumour_probability) for f in (a, b)))
    assert a.volume_ml == b.volume_ml


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"solver": "ddpm"},
        {"latin": True},
        {"coherence": 0.5},
        {"samples": "auto", "volume_ci": 0.01, "max_samples": 9},
        {"samples": 5, "seed": 2**63 + 5},
    ],
    ids=str,
)
def test_a_forecast_is_that_of_the_loop_on_arrays(change, forecaster, device_forecaster, case):
    request = {**REQUEST, **change}
    there = device_forecaster.predict(case, **request)
    here = forecaster.predict(case, **request)
    assert_same_forecast(there, here)
    assert there.report["notes"] == here.report["notes"]
    said = there.report["device"]
    assert (said["bucket"], said["mode"], said["held_bytes"]) == (4, "eager", None)
    assert said["planned_bytes"] > 0
    assert "device" not in here.report
    alike = {"sampling", "request", "sources", "volume_ml"}
    assert {k: there.report[k] for k in alike} == {k: here.report[k] for k in alike}


@pytest.mark.slow
def test_a_program_of_the_bundle_runs_on_the_device_loop(bundle_of_targets, case):
    from tadiff_rt.backends.program import device_denoiser

    bundle = open_bundle(bundle_of_targets)
    backend = load_backend("torch:fp32", bundle, 1)
    denoiser = device_denoiser(backend)
    on_tensors = OnDevice(backend, denoiser)
    # As the other loop has it: other buckets and another conditioner round otherwise.
    denoiser.buckets, denoiser._conditioner = (4,), None
    there = Forecaster(bundle, on_tensors, 0.0).predict(case, **REQUEST)
    assert_same_forecast(there, Forecaster(bundle, backend, 0.0).predict(case, **REQUEST))


def test_workers_are_noted(device_forecaster, case):
    two = device_forecaster.predict(case, **REQUEST, workers=2)
    assert "2 workers: not used on a device" in two.report["notes"]


# Which loop.


class Both(Stub):
    """Arrays and tensors."""

    def __init__(self, denoiser=None) -> None:
        super().__init__(4)
        self.denoiser = denoiser or Network(4)

    def on_device(self):
        return self.denoiser


def runner_of(runners: Runners, drawing, **options):
    days = (0, 30, 75, 160), (0, 0, 1, 1)
    return runners.runner(drawing, days, images(), SampleSize(5), len(SLICES), **options)


def test_the_device_is_used_where_there_is_one():
    class NoDevice(Stub):
        def on_device(self):
            return None

    runners = Runners(Both())
    assert isinstance(runner_of(runners, sampling()), DeviceRunner)
    for backend in (Stub(4), NoDevice(4)):
        request = runner_of(Runners(backend), sampling(), workers=3)
        assert isinstance(request, BatchRunner)
        assert (request.workers, request.notes) == (3, [])


@pytest.mark.parametrize(("solver", "arrays"), [("ddpm", True), ("dpmpp_2m", False)])
def test_coherent_noise_of_every_step_is_drawn_on_the_host_and_that_is_said(solver, arrays):
    drawing = sampling(solver, noise=NoiseSource(7, coherence=0.5))
    request = runner_of(Runners(Both()), drawing)
    assert isinstance(request, BatchRunner) == arrays
    said = f"solver {solver!r} with coherent noise: the loop ran on the host"
    assert request.notes == ([said] if arrays else [])
    found = run_ensemble(request, INSIDE, SLICES, SampleSize(5))
    here = run_ensemble(on_arrays(drawing), INSIDE, SLICES, SampleSize(5))
    assert_alike(*((r.mean, r.std, r.probability) for r in (found, here)))
    assert found.notes == request.notes


def test_the_loop_stays_for_the_next_request_and_is_shared():
    """By all who use one backend: its denoiser is ready for one bucket at a time."""
    backend = Both()
    one, two = Runners(backend), Runners(backend)
    first = runner_of(one, sampling())
    expected = bits(first)
    buffers = first._loop.buffers
    again = runner_of(one, sampling())
    assert again._loop is first._loop
    assert again._loop.buffers is buffers
    assert runner_of(two, sampling())._loop is first._loop
    assert bits(again) == expected
    assert runner_of(Runners(Both()), sampling())._loop is not first._loop


def test_the_device_is_given_back_before_the_host_calls_the_backend():
    backend = Both()
    runners = Runners(backend)
    first = runner_of(runners, sampling())
    expected = bits(first)
    runner_of(runners, sampling("ddpm", noise=NoiseSource(7, coherence=0.5)))
    assert not first._loop.buffers
    backend.denoiser.prepared = 0  # as the backend may, when it is called with arrays
    assert bits(runner_of(runners, sampling())) == expected


def test_more_samples_than_strata_are_refused_on_a_device_too():
    drawing = sampling(noise=NoiseSource(7, latin=4))
    for request in (on_arrays(drawing), on_device(Network(4), drawing)):
        with pytest.raises(UsageError) as e:
            run_ensemble(request, INSIDE, SLICES, SampleSize(5))
        assert e.value.code == "TD3049"


# Interruptions.


@pytest.mark.parametrize(
    "size", [SampleSize(5), SampleSize(24, 0.2)], ids=["fixed", "open number"]
)
def test_an_interrupted_ensemble_goes_on_to_the_same_bits(size, tmp_path):
    def ensemble(journal):
        drawing = sampling("ddpm", steps=2)
        request = on_device(Network(4, spread=0.5), drawing, size)
        return run_ensemble(request, INSIDE, SLICES, size, journal)

    whole = ensemble(None)
    for kept in (1, 2, 3, 4, 8):
        journal = Breaking(tmp_path / str(kept), "this")
        journal.left = kept
        if size.volume_ci is None and kept > len(SLICES):
            break
        with pytest.raises(Interrupted):
            ensemble(journal)
        assert same(ensemble(Journal(journal.folder, "this")), whole)


@pytest.mark.parametrize("call", [1, 2, STEPS, 2 * STEPS + 1, 4 * STEPS])
def test_control_c_leaves_whole_slices(call, tmp_path):
    class Stopped(Network):
        def evaluate(self, sources, x, shift):
            if self.calls == 1 + call:
                raise KeyboardInterrupt
            return super().evaluate(sources, x, shift)

    def ensemble(stub, journal):
        return run_ensemble(on_device(stub), INSIDE, SLICES, SampleSize(5), journal)

    with pytest.raises(KeyboardInterrupt):
        ensemble(Stopped(4), Journal(tmp_path / "work", "this"))
    journal = Journal(tmp_path / "work", "this")
    held = [journal.load(at) for at in SLICES]
    # Slice k ends in bucket k + 1 of four rows, and comes when the next has been enqueued.
    buckets_done = (call - 1) // STEPS
    assert sum(made is not None for made in held) == max(0, min(3, buckets_done - 2))
    assert all(made is None or made.count == 5 for made in held)
    assert same(ensemble(Network(4), journal), ensemble(Network(4), None))


def test_a_journal_of_another_loop_or_bucket_is_not_gone_on_with(
    forecaster, device_forecaster, case, tmp_path
):
    """Their bits may differ."""
    device_forecaster.predict(case, **REQUEST, work=tmp_path / "work")
    with pytest.raises(UsageError) as e:
        forecaster.predict(case, **REQUEST, work=tmp_path / "work")
    assert e.value.code == "TD3055"
    found = [runner.runtime for runner in (on_device(Network(4)), on_device(Network(5)))]
    assert found == ["stub, device loop, 4 rows", "stub, device loop, 5 rows"]
