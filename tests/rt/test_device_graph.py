"""Replays of a captured loop compute what the loop computes, of whatever lies in the buffers.

Without a GPU a capture is a function: `exact` stands for a graph as it should be, the others for
graphs that went wrong.
"""

import numpy as np
import pytest
import torch

from tadiff_rt.device import loop as device_loop
from tadiff_rt.device.buckets import cut
from tadiff_rt.device.loop import DeviceLoop
from tadiff_rt.errors import EngineError
from tadiff_rt.noise import NoiseSource
from tadiff_rt.runner import SampleSize, Work
from tests.rt.test_device_runner import (
    CHANGES,
    DEPTH,
    INSIDE,
    SEED,
    Network,
    bits,
    images,
    network,
    on_device,
    sampling,
)


class Exact:
    """Graphs as they should be; counts them."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, enqueue):
        self.captures += 1

        def replay():
            self.replays += 1
            enqueue()

        return replay


def captured(stub=None, capture=None) -> DeviceLoop:
    return DeviceLoop(stub or Network(4), capture or Exact())


def test_replays_are_the_loop_bit_for_bit():
    capture = Exact()
    request = on_device(captured(capture=capture))
    assert request.report()["device"]["mode"] == "graph"
    assert bits(request) == bits(on_device(Network(4)))
    assert (capture.captures, capture.replays) == (1, 4)


def test_a_first_slice_that_goes_on_is_counted_once():
    """The loop runs twice on the first bucket: once to compare with."""
    begun = dict(on_device(Network(4)).statistics([Work(at, 2) for at in (0, 1)], INSIDE))
    work = [Work(at, 5, begun[at]) for at in (0, 1)]
    expected = bits(on_device(Network(4)), [Work(0, 5), Work(1, 5)])
    assert bits(on_device(captured()), work) == expected


SAME_FORM = ("seed", "high half of the seed", "table", "day", "sources")
"""Changes of a request that no graph depends on."""


@pytest.mark.parametrize("change", [name for name in CHANGES if name != "nothing"])
def test_a_graph_is_captured_again_where_its_form_changes_and_only_there(change):
    capture = Exact()
    loop = captured(capture=capture)
    bits(on_device(loop))
    assert bits(on_device(loop, **CHANGES[change])) == bits(
        on_device(Network(4), **CHANGES[change])
    )
    assert capture.captures == (1 if change in SAME_FORM else 2)
    bits(on_device(loop, **CHANGES[change]))
    assert capture.captures == (1 if change in SAME_FORM else 2)


def test_rounds_of_an_open_number_are_of_one_form():
    capture = Exact()
    request = on_device(captured(capture=capture), size=SampleSize(24, 0.2))
    begun = dict(request.statistics([Work(at, 6) for at in range(3)], INSIDE))
    bits(request, [Work(at, 8, made) for at, made in begun.items()])
    assert capture.captures == 1


# Graphs that went wrong.


def idle(loop):
    """Nothing was captured."""
    return lambda enqueue: lambda: None


def constant(loop):
    """What was computed at the capture comes back every time."""

    def capture(enqueue):
        enqueue()
        kept = {name: loop.buffers[name].clone() for name in device_loop.RESULTS}

        def replay():
            for name, tensor in kept.items():
                loop.buffers[name].copy_(tensor)

        return replay

    return capture


def frozen(name):
    """One buffer is read as it was at the capture."""

    def of(loop):
        def capture(enqueue):
            kept = loop.buffers[name].clone()

            def replay():
                loop.buffers[name].copy_(kept)
                enqueue()

            return replay

        return capture

    return of


def without_statistics(loop):
    """The last operation is missing."""

    def capture(enqueue):
        def replay():
            sums, counts = loop.buffers["sums"].clone(), loop.buffers["counts"].clone()
            enqueue()
            loop.buffers["sums"].copy_(sums)
            loop.buffers["counts"].copy_(counts)

        return replay

    return capture


FROZEN = ("table", "shifts", "seed", "rows", "segments", "inside", "sources")
WRONG = {
    "idle": idle,
    "constant": constant,
    "no statistics": without_statistics,
    **{f"stale {name}": frozen(name) for name in FROZEN},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_graph_that_is_wrong_is_found_out_on_its_first_bucket(wrong):
    loop = captured()
    loop._given = WRONG[wrong](loop)
    with pytest.raises(EngineError, match="graph of stub does not compute what") as e:
        bits(on_device(loop))
    assert e.value.code == "TD5022"


def test_a_stale_start_is_found_out():
    """x that is uploaded, of noise from the host."""
    loop = captured()
    loop._given = frozen("x")(loop)
    with pytest.raises(EngineError):
        bits(on_device(loop, sampling(noise=NoiseSource(SEED, latin=5))))


def test_after_a_wrong_graph_the_loop_is_not_taken_for_checked():
    loop = captured()
    loop._given = idle(loop)
    for _ in range(2):
        with pytest.raises(EngineError):
            bits(on_device(loop))


def test_a_denoiser_that_cannot_be_captured_runs_eagerly():
    class Eager(Network):
        capturable = False

    assert on_device(Eager(4)).report()["device"]["mode"] == "eager"


# On a GPU.


def on_gpu(loop_or_stub=None, *args, **options):
    return on_device(loop_or_stub or Network(4, device="cuda"), *args, **options)


def eager_loop(*buckets) -> DeviceLoop:
    stub = Network(*buckets, device="cuda")
    stub.capturable = False
    return DeviceLoop(stub)


@pytest.mark.gpu
@pytest.mark.parametrize("solver", ["dpmpp_2m", "unipc_3", "dpmpp_2s", "ddpm"])
def test_gpu_replays_are_the_eager_loop_bit_for_bit(solver):
    """Over many buckets, a request that comes after another, and one that goes on."""
    loop, other = DeviceLoop(Network(4, device="cuda")), eager_loop(4)
    work = [Work(at, 5) for at in range(DEPTH)]
    for seed in (SEED, 2**40 + 1):
        drawing = sampling(solver, noise=NoiseSource(seed))
        expected = bits(on_gpu(other, drawing, slices=DEPTH), work)
        assert bits(on_gpu(loop, drawing, slices=DEPTH), work) == expected
        begun = dict(on_gpu(loop, drawing).statistics([Work(at, 2) for at in range(3)], INSIDE))
        assert bits(on_gpu(loop, drawing), [Work(at, 5, begun[at]) for at in range(3)]) == {
            at: expected[at] for at in range(3)
        }


@pytest.mark.gpu
def test_gpu_images_are_those_of_the_cpu_from_the_same_noise():
    """Every operation rounds alike. Statistics are pairs there and float64 here."""
    drawing = sampling("unipc_3", noise=NoiseSource(SEED, latin=5))
    there, here = bits(on_gpu(None, drawing)), bits(on_device(Network(4), drawing))
    for at, state in here.items():
        for name in ("_last_image", "_last_mask", "_areas", "_overlaps"):
            assert there[at][name] == state[name], (at, name)


@pytest.mark.gpu
def test_gpu_seeds_differ_and_a_seed_is_the_same_again():
    loop = DeviceLoop(Network(4, device="cuda"))
    found = [bits(on_gpu(loop, sampling(noise=NoiseSource(s)))) for s in (1, 2, 1)]
    assert found[0] == found[2]
    assert all(found[0][at]["_last_image"] != found[1][at]["_last_image"] for at in found[0])


@pytest.mark.gpu
def test_gpu_the_bucket_changes_no_bit_and_nothing_is_read_too_early():
    """Many small buckets: slots are used again while copies to the host run."""
    work = [Work(at, 5) for at in range(DEPTH)]
    expected = bits(on_gpu(Network(16, device="cuda")), work)
    for bucket in (1, 2, 3, 5):
        assert bits(on_gpu(Network(bucket, device="cuda")), work) == expected


@pytest.mark.gpu
def test_gpu_no_step_waits_for_the_device():
    """In a bucket after the first, from its inputs to the copies of its results."""
    request = on_gpu()
    bits(request)
    form, loop = request._form, request._loop
    bucket = next(cut([Work(1, 4)], form.rows, form.segments))
    torch.cuda.set_sync_debug_mode("error")
    try:
        loop.run(request._feed.inputs(form, bucket, {1: 0}, INSIDE))
        fetched = request._fetcher.fetch(loop.buffers, [0])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    fetched.wait()
    assert fetched.statistics(0, 4).areas


@pytest.mark.gpu
def test_gpu_memory_is_planned_and_bounded():
    size = 96
    sources = images(8, size)
    inside = np.ones((size, size), bool)

    class Wide(Network):
        """Takes 64 images a row."""

        def evaluate(self, sources, x, shift):
            eps, logits = network(sources, x, shift)
            wide = eps.repeat(1, 64, 1, 1)
            return eps + 0 * wide[:, :3], logits

    request = on_gpu(Wide(8, device="cuda"), sources=sources, slices=8)
    list(request.statistics([Work(at, 5) for at in range(8)], inside))
    said = request.report()["device"]
    assert said["planned_bytes"] > 8 * 64 * 3 * 4 * size * size
    # The allocator takes whole blocks of 20 MiB, for the eager run and for the graph.
    assert 0 < said["held_bytes"] <= said["planned_bytes"] + 64 * 2**20


@pytest.mark.gpu
def test_gpu_without_memory_goes_on_with_half():
    size = 192
    sources, inside = images(2, size), np.ones((size, size), bool)
    work = [Work(at, 5) for at in range(2)]
    expected = bits(on_gpu(Network(2, device="cuda"), sources=sources), work, inside)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    taken = torch.cuda.memory_reserved()
    # The buffers of 64 rows are 64 * 30 planes of 147 kB and more: beyond 200 MB.
    torch.cuda.set_per_process_memory_fraction((taken + 200e6) / total)
    try:
        request = on_gpu(Network(2, 4, 64, device="cuda"), sources=sources, slices=100)
        assert bits(request, work, inside) == expected
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert request.batch < 64
    assert request.notes[0].startswith("out of memory with 64 rows a call; went on with")
