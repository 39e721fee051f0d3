"""`--backend auto`: the fastest artefact of a bundle on this machine, by a short measurement.

What is measured is kept in the user's cache, by machine and artefact: a second forecast measures
nothing, and two runs do not take different backends because one was disturbed.
"""

import hashlib
import json
import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from tadiff_rt.atomic import atomic_file
from tadiff_rt.backends import BACKENDS, CPU, Backend, open_backend, unavailable, usual
from tadiff_rt.bundle import Bundle
from tadiff_rt.cache import cache_folder
from tadiff_rt.certificate import Precision
from tadiff_rt.errors import EngineError, OutputError, ResourceError, TadiffError
from tadiff_rt.manifest import Artefact

CALLS = 5
"""Timed calls of an artefact, after one that is not; the fastest counts."""

CLEARLY = 0.8
"""Another backend than the one that bundles are certified on must take this share of its time at
most: short measurements scatter, and what is chosen is remembered."""

PASSED_OVER = {
    *("TD5003", "TD5004", "TD5006", "TD5008", "TD5013", "TD5022", "TD6011"),
    *("TD7001", "TD7003", "TD8002", "TD8003"),
}
"""What is wrong with an artefact on this machine, so that another may be taken. A file that is
damaged or foreign is not passed over: then the bundle is not what was exported."""


@dataclass(frozen=True)
class Choice:
    """The backend that was taken, and what was said of each that was not."""

    backend: Backend
    reasons: tuple[str, ...]
    """One line a backend, for people."""


@dataclass(frozen=True, eq=False)
class _Candidate:
    name: str
    artefact: Artefact

    @property
    def label(self) -> str:
        return f"{self.name} {self.artefact.precision}"


def choose(bundle: Bundle, threads: int) -> Choice:
    """Loads the fastest artefact that can run here.

    Raises:
        EngineError: TD5012, nothing can; or a file is damaged.
        ModelFileError: a file is hostile or foreign.
    """
    candidates, reasons = _candidates(bundle)
    speeds: dict[_Candidate, float] = {}
    loaded: tuple[_Candidate, Backend] | None = None
    for candidate in candidates:
        try:
            speeds[candidate], backend = _speed(candidate, bundle, threads, len(candidates) == 1)
        except TadiffError as e:
            if e.code not in PASSED_OVER or len(candidates) == 1:
                raise
            reasons.append(f"{candidate.label}: {e.code}: {e.message}")
            continue
        # At most one stays loaded, the best so far: the others would take memory from the next.
        if candidate is _best(speeds):
            loaded = (candidate, backend) if backend else None
        del backend
    figures = [f"{c.label}: {1000 * s:.1f} ms an image" for c, s in speeds.items()]
    why = "the fastest measured" if len(speeds) > 1 else "the only one that runs here"
    while speeds:
        best = _best(speeds)
        try:
            taken = loaded[1] if loaded and loaded[0] is best else _opened(best, bundle, threads)
        except TadiffError as e:  # its speed was remembered, and something has changed
            if e.code not in PASSED_OVER or len(speeds) == 1:
                raise
            reasons.append(f"{best.label}: {e.code}: {e.message}")
            del speeds[best]
            continue
        reasons = [*(figures if len(candidates) > 1 else ()), *reasons]
        return Choice(taken, (f"backend {best.label}: {why}", *reasons))
    raise EngineError(
        "TD5012",
        "no artefact of the bundle can run on this machine: " + "; ".join(reasons),
        where=str(bundle.path),
        fix="pip install 'tadiff[cpu]', and export with --target onnx --precision fp32",
    )


def _best(speeds: dict[_Candidate, float]) -> _Candidate:
    """The fastest; the certified one unless another is clearly faster."""
    for candidate, seconds in speeds.items():
        if candidate.name == CPU and seconds * CLEARLY <= min(speeds.values()):
            return candidate
    return min(speeds, key=lambda c: speeds[c])


def _opened(candidate: _Candidate, bundle: Bundle, threads: int) -> Backend:
    return open_backend(candidate.name, candidate.artefact, bundle, threads)


def _candidates(bundle: Bundle) -> tuple[list[_Candidate], list[str]]:
    """What may run here; and why the others may not."""
    candidates, reasons = [], []
    for name, kind in BACKENDS.items():
        held = {a.precision: a for a in bundle.manifest.denoisers if a.format == kind.format}
        if not held or not kind.auto:
            continue
        reason = _not_considered(name, held) or unavailable(name)
        if not reason and kind.alone and usual(name, held).precision != kind.alone:
            reason = f"this processor has no fast {kind.alone}"
        if reason:
            reasons.append(f"{name}: {reason}")
        else:
            candidates.append(_Candidate(name, usual(name, held)))
    return candidates, reasons


def _not_considered(name: str, held: Mapping[Precision, Artefact]) -> str:
    """Why, before the backend is imported."""
    alone = BACKENDS[name].alone
    if alone and alone not in held:
        return f"{alone} alone would be faster, which the bundle does not have"
    return "it has no bf16 on a CPU" if name == CPU and held.keys() == {"bf16"} else ""


def _speed(
    candidate: _Candidate, bundle: Bundle, threads: int, alone: bool
) -> tuple[float, Backend | None]:
    """Seconds of one image, remembered or measured; and the backend, where it was opened.

    Args:
        alone: there is nothing to compare with; not measured.
    """
    path = None if alone else _record(candidate, threads)
    if path is not None:
        with suppress(OSError, ValueError, TypeError, KeyError):
            known = float(json.loads(path.read_text())["seconds"])
            if 0 < known < float("inf"):
                return known, None
    backend = _opened(candidate, bundle, threads)
    if alone:
        return 0.0, backend
    measured = measure(backend, bundle)
    if path is not None:
        record = {"backend": candidate.label, "machine": machine(), "seconds": measured}
        with suppress(TadiffError), atomic_file(path) as file:
            file.write((json.dumps(record, indent=2) + "\n").encode())
    return measured, backend


def measure(backend: Backend, bundle: Bundle) -> float:
    """Seconds of one image, in a bucket of the backend."""
    size, rows = bundle.manifest.card.data.size, backend.batch
    sources = np.full((rows, 9, size, size), 0.5, np.float32)
    x = np.linspace(-2, 2, rows * 3 * size * size, dtype=np.float32).reshape(rows, 3, size, size)
    shifts = np.zeros((1, bundle.manifest.conditioning_width), np.float32)
    backend.denoise(sources, x, shifts)
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        backend.denoise(sources, x, shifts)
        times.append(time.perf_counter() - start)
    return min(times) / rows


def _record(candidate: _Candidate, threads: int) -> Path | None:
    """Where the speed of a candidate on this machine is kept; None where nothing can be kept."""
    versions = []
    for package in ("tadiff", "onnxruntime-gpu", *BACKENDS[candidate.name].packages):
        with suppress(PackageNotFoundError):
            versions.append(f"{package} {version(package.replace('_', '-'))}")
    parts = [candidate.artefact.sha256, candidate.label, str(threads), *versions, machine()]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    try:
        return cache_folder("speed") / f"{key}.json"
    except (OutputError, ResourceError):  # a home that cannot be written to: measure each time
        return None


def machine() -> str:
    """Processor, cores and GPUs: what a measured speed depends on."""
    cpu = platform.processor() or platform.machine()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    gpus: list[str] = []
    with suppress(OSError):
        cards = sorted(Path("/proc/driver/nvidia/gpus").iterdir())
        gpus = [(card / "information").read_text().partition("\n")[0] for card in cards]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    shown = [] if visible is None else [f"visible: {visible}"]
    return "; ".join([f"{cpu}, {os.cpu_count()} cores", *gpus, *shown])
