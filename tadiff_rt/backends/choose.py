"""`--backend auto`: the fastest artefact of a bundle on this machine, by a short measurement.

What is measured is kept in the user's cache, by machine and artefact: a second forecast starts at
once, and two runs do not take different backends because one was disturbed.
"""

import hashlib
import json
import os
import platform
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from tadiff_rt.atomic import atomic_file
from tadiff_rt.backends import BACKENDS, Backend, open_backend, unavailable
from tadiff_rt.bundle import Bundle
from tadiff_rt.cache import cache_folder
from tadiff_rt.errors import EngineError, OutputError, ResourceError, TadiffError
from tadiff_rt.manifest import Artefact

CALLS = 3
"""Timed calls of an artefact, after one that is not; the fastest counts."""

PASSED_OVER = {"TD5003", "TD5008", "TD5013", "TD5022", "TD6011", "TD7001"}
"""What is wrong with an artefact on this machine, so that another may be taken. A file that is
damaged or foreign is not passed over: then the bundle is not what was exported."""

CPU_BACKEND = "onnxruntime"


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
    loaded: dict[_Candidate, Backend] = {}
    seconds: dict[_Candidate, float] = {}
    for candidate in candidates:
        try:
            if len(candidates) == 1:
                loaded[candidate] = open_backend(*_pair(candidate), bundle, threads)
                seconds[candidate] = 0.0
                break
            seconds[candidate] = _seconds(candidate, bundle, threads, loaded)
        except TadiffError as e:
            if e.code not in PASSED_OVER or len(candidates) == 1:
                raise
            reasons.append(f"{candidate.label}: {e.code}: {e.message}")
    if not seconds:
        raise EngineError(
            "TD5012",
            "no artefact of the bundle can run on this machine: " + "; ".join(reasons),
            where=str(bundle.path),
            fix="pip install 'tadiff[cpu]', and export with --target onnx",
        )
    best = min(seconds, key=lambda c: seconds[c])
    if len(candidates) > 1:
        figures = [f"{c.label}: {1000 * s:.1f} ms an image" for c, s in seconds.items()]
        reasons = [*figures, *reasons]
    loaded_best = loaded.pop(best, None)
    loaded.clear()  # frees the others before a forecast needs the memory
    backend = loaded_best or open_backend(*_pair(best), bundle, threads)
    why = "the fastest measured" if len(seconds) > 1 else "the only one that runs here"
    return Choice(backend, (f"backend {best.label}: {why}", *reasons))


def _pair(candidate: _Candidate) -> tuple[str, Artefact]:
    return candidate.name, candidate.artefact


def _candidates(bundle: Bundle) -> tuple[list[_Candidate], list[str]]:
    """What may run here; and why the others may not."""
    candidates, reasons = [], []
    for name, kind in BACKENDS.items():
        held = [a for a in bundle.manifest.denoisers if a.format == kind.format]
        if name == CPU_BACKEND:
            # A CPU has no kernels in half precision: onnxruntime converts back and forth.
            held = [a for a in held if a.precision == "fp32"]
        if not held:
            continue
        reason = unavailable(name)
        if reason:
            reasons.append(f"{name}: {reason}")
        else:
            candidates += [_Candidate(name, artefact) for artefact in held]
    return candidates, reasons


def _seconds(
    candidate: _Candidate, bundle: Bundle, threads: int, loaded: dict[_Candidate, Backend]
) -> float:
    """Of one image; from the cache, else measured on the backend that is then in `loaded`."""
    path = _record(candidate, threads)
    if path is not None:
        with suppress(OSError, ValueError, TypeError, KeyError):
            known = float(json.loads(path.read_text())["seconds"])
            if 0 < known < float("inf"):
                return known
    backend = loaded[candidate] = open_backend(*_pair(candidate), bundle, threads)
    measured = measure(backend, bundle)
    if path is not None:
        record = {"backend": candidate.label, "machine": machine(), "seconds": measured}
        with suppress(TadiffError), atomic_file(path) as file:
            file.write((json.dumps(record, indent=2) + "\n").encode())
    return measured


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
    for package in BACKENDS[candidate.name].packages:
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
    return "; ".join([f"{cpu}, {os.cpu_count()} cores", *gpus])
