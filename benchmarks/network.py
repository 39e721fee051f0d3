"""What does one evaluation of the network cost, by every engine there is?

`python -m benchmarks.network`. Configuration A at 192 x 192, batches of 1 and 5, made-up weights,
all cores. Engines run in processes of their own and take turns (`benchmarks.turns`); eager PyTorch
also with an allocator that keeps its memory, which is worth as much as some engines are. "tuned"
is eager PyTorch with attention in blocks that stay in cache, channels last; torch.compile has such
blocks and an allocator that keeps its memory, which is its best. Rows are of one image. No row is
written unless its noise estimate agrees with eager PyTorch. bf16 runs where the processor
multiplies in it; its difference says what that costs.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import engines_cpu
from benchmarks.contestants import DAYS, TREATMENTS, Columns, Eager, Slice
from benchmarks.floor import Roofline, Row
from benchmarks.harness import row, save
from benchmarks.network_cost import layers, works
from benchmarks.network_cpu import attention, five_passes
from benchmarks.one_slice import ALLOWED, ALLOWED_BF16, KEPT, Size, make_bundle, say
from benchmarks.turns import KEEPING, Contestant, Gate, take_turns
from tadiff_export.split import split
from tadiff_rt.backends import ov
from tadiff_rt.backends.ort import denoiser_options, denoiser_session, load_conditioner
from tadiff_rt.backends.tensors import INPUTS
from tadiff_rt.bundle import open_bundle
from tadiff_train.network import NetworkConfig

BATCHES = (1, 5)
REPEATS = 5
T = 500.0
EAGER, OURS = "eager PyTorch", "onnxruntime (this runtime)"
TUNED, COMPILED = "eager PyTorch, tuned", "torch.compile"
FEW = 3
"""Repeats of what takes seconds and is timed by `benchmarks.one_slice` as well."""
ALL_BF16, BF16 = "openvino, all of it in bf16", "openvino, bf16 (this runtime)"
WITHIN = {ALL_BF16: ALLOWED_BF16, BF16: ALLOWED_BF16}
"""Largest difference allowed, where it is not rounding in fp32."""


def evaluation(gate: Gate, *, engine: str, bundle: str, **work: Any) -> Columns:
    """A `Contest`: REPEATS evaluations of one batch."""
    of = Slice(**work)
    with torch.no_grad(), attention(five_passes) if engine == EAGER else torch.no_grad():
        run = _run(engine, bundle, of)
        of.write(engine, eps=run())
        for _ in range(REPEATS):
            gate()
            run()
    return {}


def _run(engine: str, bundle: str, of: Slice) -> Any:
    """A call that returns the noise estimate."""
    x = of.noise()
    sources = np.repeat(of.sources(), of.samples, axis=0)
    if engine == EAGER:
        net = Eager(of)
        return lambda: net(torch.from_numpy(x), T)[0].numpy()
    opened = open_bundle(bundle)
    shifts = load_conditioner(opened).condition(np.array([T]), DAYS, TREATMENTS)
    feed = [sources, x, shifts]
    artefact, half = opened.manifest.denoisers
    if engine == OURS:
        session = denoiser_session(opened, artefact, of.samples, denoiser_options(of.threads))
        named = dict(zip(INPUTS, feed, strict=True))
        return lambda: session.run(["eps", "mask_logits"], named)[0]
    if engine == BF16:
        run = ov.Requests(opened.read(half), of.samples, of.threads).run
        return lambda: run(dict(zip(INPUTS, feed, strict=True)))[0]
    if engine.startswith("openvino"):
        precision = "bf16" if engine == ALL_BF16 else "f32"
        graph = opened.read(artefact)
        request = engines_cpu.openvino_request(graph, feed, of.threads, precision)
        return lambda: request(feed)[0]
    denoiser = split(of.net())[1]
    if engine == COMPILED:
        engines_cpu.in_blocks(denoiser, engines_cpu.QUERY_CHUNK)
        compiled = engines_cpu.compiled(denoiser, feed)
        return lambda: compiled()[0]
    tuned = engines_cpu.eager(
        denoiser.to(memory_format=torch.channels_last), feed, engines_cpu.QUERY_CHUNK
    )
    return lambda: tuned()[0]


def engines(batch: int) -> dict[str, tuple[str, bool]]:
    """Name -> engine, and whether its allocator keeps memory. Compiling takes a minute: once."""
    kept = [EAGER, TUNED]
    every = [*kept, "openvino", OURS]
    if "bf16" in ov.precisions():
        every += [ALL_BF16, BF16]
    found = {name: (name, False) for name in every}
    return found | {name + KEPT: (name, True) for name in [*kept, *[COMPILED][: batch == 1]]}


def rows_of(bundle: Path, size: Size, out: str, rates: Roofline) -> list[Row]:
    """Of one batch."""
    every: dict[str, Contestant] = {}
    arguments = {"bundle": str(bundle), **vars(size)}
    for name, (engine, keeps) in engines(size.samples).items():
        (Path(out) / name).mkdir(parents=True)
        environment = {"OMP_NUM_THREADS": str(size.threads), **(KEEPING if keeps else {})}
        given = {"engine": engine, "out": f"{out}/{name}", **arguments}
        every[name] = Contestant("benchmarks.network:evaluation", given, environment)
    slow = {EAGER, EAGER + KEPT} if size.samples > 1 else set()
    take_turns(every, {name: FEW if name in slow else REPEATS for name in every}, say)
    found = {name: _estimate(c) for name, c in every.items()}
    every_layer = layers(NetworkConfig(**size.network), size.size)
    rows = []
    for name, contestant in every.items():
        differs = np.abs(found[name] - found[EAGER]).max() / np.abs(found[EAGER]).max()
        if not differs <= WITHIN.get(name, ALLOWED):
            raise SystemExit(f"{name} is wrong by {differs:.1e}")
        case = f"one evaluation, A, {size.size} x {size.size}, batch {size.samples}"
        entry = row(case, name, [s / size.samples for s in contestant.seconds])
        dtype = "bf16" if name in WITHIN else "fp32"
        work = works(every_layer, size.samples, dtype)
        one = [w.times(1 / size.samples) for w in work]
        rows.append(
            {
                **entry,
                **rates.columns(entry["ms"], one),
                "setup_seconds": round(contestant.setup_seconds, 2),
                "peak_mb": contestant.peak_mb,
                "page_faults": contestant.page_faults // len(contestant.seconds),
                "quality": {"estimate_differs": float(f"{differs:.1e}")},
            }
        )
    return rows


def _estimate(contestant: Contestant) -> Any:
    arguments = contestant.arguments
    return np.load(Path(arguments["out"]) / f"{arguments['engine']} eps.npy")


def rows(size: Size, folder: str, batches: tuple[int, ...] = BATCHES) -> list[Row]:
    """All batches, after the rates that their floors are of."""
    bundle, _ = make_bundle(Path(folder), size)
    rates = Roofline.of_this_cpu(size.threads)
    found = [rates.as_row("one evaluation")]
    for batch in batches:
        found += rows_of(bundle, replace(size, samples=batch), f"{folder}/{batch}", rates)
    return found


def main() -> None:
    """Writes results/network.jsonl."""
    with tempfile.TemporaryDirectory() as folder:
        save("network", rows(Size(), folder))


if __name__ == "__main__":
    main()
