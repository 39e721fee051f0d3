"""One device for several requests, and what is checked before the first bucket is believed."""

import gc
import threading

import numpy as np
import pytest
import torch

from tadiff_rt import canary
from tadiff_rt.backends import find_artefact, program
from tadiff_rt.backends.program import device_denoiser
from tadiff_rt.bundle import open_bundle
from tadiff_rt.device import runners as runners_module
from tadiff_rt.device.fit import ran_out
from tadiff_rt.device.loop import DeviceLoop
from tadiff_rt.device.runners import Runners
from tadiff_rt.errors import NumericsError, ResourceError
from tadiff_rt.noise import NoiseSource
from tadiff_rt.runner import SampleSize, Work
from tests.rt.test_batches import images
from tests.rt.test_device_forecast import Both, runner_of
from tests.rt.test_device_memory import Small
from tests.rt.test_device_runner import INSIDE, WORK, Network, bits, on_device, sampling


def test_requests_of_two_threads_take_turns():
    """A loop has one set of buffers: interleaved requests would write into each other's."""
    loop, seeds = DeviceLoop(Network(2, 4)), (1, 2**40)
    expected = [bits(on_device(Network(2, 4), sampling(noise=NoiseSource(s)))) for s in seeds]
    found: dict[int, list[object]] = {0: [], 1: []}
    together = threading.Barrier(2)

    def work(k: int) -> None:
        for _ in range(4):
            together.wait()
            found[k].append(bits(on_device(loop, sampling(noise=NoiseSource(seeds[k])))))

    threads = [threading.Thread(target=work, args=(k,)) for k in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: [expected[0]] * 4, 1: [expected[1]] * 4}


def test_a_request_within_a_request_is_refused():
    """It would wait for itself, or write into the buffers of the first."""
    loop = DeviceLoop(Network(4))
    first = on_device(loop).statistics(WORK, INSIDE)
    next(first)
    with pytest.raises(RuntimeError, match="finish the forecast"):
        on_device(loop)
    first.close()
    assert bits(on_device(loop)) == bits(on_device(Network(4)))


def test_the_smallest_bucket_is_tried_where_half_is_smaller_still():
    """An engine for 5 and 8 rows: half of 8 is below both."""
    request = on_device(Small(5, 8, most=5, error=MemoryError))
    assert request.batch == 5
    assert request.notes == ["out of memory with 8 rows a call; went on with at most 5"]


def test_memory_is_named_behind_the_error_that_it_led_to():
    def failed(first, second):
        try:
            try:
                raise first
            finally:
                raise second
        except Exception as error:
            return error

    bug = RuntimeError("a capture was ended")
    assert ran_out(failed(torch.OutOfMemoryError("CUDA"), bug))
    assert not ran_out(failed(ValueError("a bug"), RuntimeError("a capture was ended")))


def test_sources_that_do_not_fit_beside_an_earlier_request_get_its_memory(monkeypatch):
    loop = DeviceLoop(Network(4))
    expected = bits(on_device(loop))
    upload, loaded = torch.from_numpy, []

    def full(array):
        if array.shape == images().shape and loop.buffers:
            raise torch.OutOfMemoryError("CUDA out of memory")
        loaded.append(array.shape)
        return upload(array)

    monkeypatch.setattr("tadiff_rt.device.feed.torch.from_numpy", full)
    assert bits(on_device(loop)) == expected
    assert images().shape in loaded


def test_sources_that_do_not_fit_at_all_are_an_error_of_memory(monkeypatch):
    upload = torch.from_numpy

    def full(array):
        if array.shape == images().shape:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return upload(array)

    monkeypatch.setattr("tadiff_rt.device.feed.torch.from_numpy", full)
    with pytest.raises(ResourceError, match="sources of 5 slices") as e:
        on_device(Network(4))
    assert e.value.code == "TD7001"


def test_collecting_is_on_again_after_a_capture(monkeypatch):
    """And off within: to free another graph would end the capture."""
    seen = []

    class Graph:
        replay = None

    class Captured:
        def __init__(self, graph, **options):
            seen.append(options)

        def __enter__(self):
            seen.append(gc.isenabled())

        def __exit__(self, *error):
            return False

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Captured)
    loop = DeviceLoop(Network(4))
    loop._cuda_graph(lambda: None)
    with pytest.raises(LookupError):
        loop._cuda_graph(lambda: {}["a fault"])
    assert seen == [{"stream": None, "capture_error_mode": "thread_local"}, False] * 2
    assert gc.isenabled()


class Wrong:
    """A denoiser that is right but in buckets of `rows`."""

    def __init__(self, denoiser, rows):
        self._denoiser, self._rows, self.prepared = denoiser, rows, 0

    def __getattr__(self, name):
        return getattr(self._denoiser, name)

    def prepare(self, rows):
        self.prepared = rows
        self._denoiser.prepare(rows)

    def __call__(self, *given):
        eps, logits = self._denoiser(*given)
        return (eps * 1.5 if self.prepared == self._rows else eps), logits


@pytest.mark.parametrize("rows", [1, 2])
def test_every_bucket_of_the_device_gives_the_canarys_answer(bundle_of_targets, rows):
    """Each is a program of its own, and none is the one that arrays were checked with."""
    bundle = open_bundle(bundle_of_targets)
    backend = program.load(bundle, find_artefact("torch:fp32", bundle)[1], 1)
    backend.on_device = lambda: Wrong(device_denoiser(backend), 2)
    size = bundle.manifest.card.data.size
    runners = Runners(backend, bundle)
    sources = np.zeros((2, 9, size, size), np.float32)

    def ask():
        days = (0, 30, 75, 160), (0, 0, 1, 1)
        return runners.runner(sampling(), days, sources, SampleSize(rows), 1)

    if rows == 1:
        assert ask().batch == 1
        return
    with pytest.raises(NumericsError, match="2 rows on the device is") as e:
        ask()
    assert e.value.code == "TD6011"


def test_without_triton_the_loop_runs_on_the_host(monkeypatch):
    monkeypatch.setattr(runners_module, "has_triton", lambda: False)
    backend = Both()
    backend.denoiser.device = torch.device("cuda")
    request = runner_of(Runners(backend), sampling())
    assert request.notes == ["the package triton is not installed: the loop ran on the host"]
    assert [at for at, _ in request.statistics([Work(0, 2)], INSIDE)] == [0]


def test_the_canary_asks_what_the_conditioner_is_compared_on():
    codes = (0.0, 1.0, 2.0)
    inputs = canary.canary_inputs(16, codes)
    assert canary.canary_request(codes) == (inputs.t, inputs.days, inputs.treatments)
