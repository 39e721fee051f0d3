"""The engine bundle: a folder NAME.tadiff/ that says what it computes and refuses to be misused.

    NAME.tadiff/
      manifest.json            format, network, model card, artefacts with SHA-256 and certificates
      conditioner.onnx         (timesteps, days, treatments) -> one row of shifts a step
      denoiser.fp32.onnx       (sources, x_t, shifts) -> (eps, mask_logits), any number of rows
      denoiser.*               the same for other runtimes, in other precisions
      canary.bin               outputs of the checkpoint on a fixed input

Files are hashed before anything parses them, and runtimes are handed the hashed bytes, so a file
cannot change between the check and its use.
"""

import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from tadiff_rt.card import ModelCard
from tadiff_rt.errors import EngineError, UsageError
from tadiff_rt.manifest import FORMAT_VERSION, Artefact, File, Manifest

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
OPEN_FLAGS = os.O_RDONLY
for _flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):  # not every system has each
    OPEN_FLAGS |= getattr(os, _flag, 0)
FIX_DAMAGED = "copy the bundle again, or export it again with `tadiff-export`"


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest has been read; files are verified when they are read."""

    path: Path
    manifest: Manifest
    manifest_sha256: str

    def read(self, artefact: File) -> bytes:
        """The verified bytes of an artefact or another listed file.

        Raises:
            EngineError: the file is missing, a link, or not the one that was exported (TD5001).
        """
        data = _read_regular(self.path / artefact.file, artefact.bytes)
        digest = hashlib.sha256(data).hexdigest()
        if digest != artefact.sha256:
            raise EngineError(
                "TD5001",
                f"{artefact.file} has sha256 {digest[:12]}..., {MANIFEST} says "
                f"{artefact.sha256[:12]}...; the bundle is damaged or was edited",
                where=str(self.path),
                fix=FIX_DAMAGED,
            )
        return data


def open_bundle(path: str | Path) -> Bundle:
    """Reads the manifest of a bundle; no weights.

    Raises:
        UsageError: TD3053, `path` is an address.
        EngineError: there is no bundle of this format at `path`.
    """
    folder = Path(path)
    if "://" in str(path):
        raise UsageError(
            "TD3053",
            "an engine is a local folder; bundles are never fetched",
            where=str(path),
            fix="download the bundle, and give the folder NAME.tadiff",
        )
    _check_folder(folder)
    data = _read_regular(folder / MANIFEST, None)
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError):
        raw = None
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise EngineError(
            "TD5002", f"{MANIFEST} is not a manifest", where=str(folder), fix=FIX_DAMAGED
        )
    if version != FORMAT_VERSION:
        raise EngineError(
            "TD5010",
            f"the bundle has format {version}, this tadiff reads format {FORMAT_VERSION}",
            where=str(folder),
            fix="export the checkpoint again with this version, or install the other one",
        )
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as e:
        first = e.errors()[0]
        raise EngineError(
            "TD5002",
            f"{MANIFEST}: {'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}",
            where=str(folder),
            fix=FIX_DAMAGED,
        ) from None
    return Bundle(folder, manifest, hashlib.sha256(data).hexdigest())


def _check_folder(folder: Path) -> None:
    # os.stat, not Path.is_dir: that passes some errors of the system on and swallows others.
    try:
        wrong = "" if stat.S_ISDIR(os.stat(folder).st_mode) else "not a folder"
    except FileNotFoundError:
        wrong = "does not exist"
    except OSError as e:
        wrong = f"cannot be looked at: {e.strerror}"
    except ValueError as e:  # a null byte
        wrong = f"not a usable name: {e}"
    if wrong:
        raise EngineError(
            "TD5002",
            f"no engine bundle here: {wrong}",
            where=str(folder),
            fix="make one with `tadiff-export CKPT -o NAME.tadiff`",
        )


def _read_regular(path: Path, size: int | None) -> bytes:
    """A regular file, opened once, not through a link, of exactly `size` bytes if given."""
    try:
        handle = os.open(path, OPEN_FLAGS)
    except OSError as e:
        raise EngineError(
            "TD5002" if path.name == MANIFEST else "TD5001",
            f"cannot open {path.name}: {e.strerror}",
            where=str(path.parent),
            fix=FIX_DAMAGED,
        ) from None
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        limit = MAX_MANIFEST_BYTES if size is None else size
        wrong = status.st_size > limit if size is None else status.st_size != size
        if not stat.S_ISREG(status.st_mode) or wrong:
            raise EngineError(
                "TD5002" if size is None else "TD5001",
                f"{path.name} is {status.st_size} bytes, expected "
                + (f"at most {limit}" if size is None else f"{size}")
                + " in a regular file",
                where=str(path.parent),
                fix=FIX_DAMAGED,
            )
        return file.read(limit + 1)


def describe_bundle(bundle: Bundle) -> str:
    """What a bundle computes and how far it may be trusted, for people."""
    manifest = bundle.manifest
    card, data = manifest.card, manifest.card.data
    lines = [
        f"{card.name}: trained on {card.trained_on}",
        f"use: {card.intended_use}",
        f"images: {data.size} x {data.size} voxels of {data.spacing_mm:g} mm, "
        f"{data.num_sources} sources",
        f"treatments: {', '.join(card.treatments)}; trained to day {card.max_day}",
        f"schedule: {card.schedule.kind}, {card.schedule.num_train_timesteps} one-based timesteps",
        "start: "
        + (
            "pure noise"
            if card.start_lam is None
            else f"the last scan, noised to a half log-SNR of {card.start_lam:g}"
        ),
    ]
    lines += describe_sampler(card)
    lines += [f"from: {manifest.source}", ""]
    lines += describe_artefacts(manifest)
    lines += [
        f"levels optimised for {o.solver} with {len(o.times)} steps; distances, other noise 1: "
        + ", ".join(f"{name} {value:.3f}" for name, value in o.distance.items())
        for o in manifest.optimised
    ]
    for a in manifest.denoisers:
        lines += ["", f"certificate of {a.file}:"]
        lines += ["  " + line for line in _certified(a)]
    return "\n".join(lines)


def describe_sampler(card: ModelCard) -> list[str]:
    """What a distilled network is; nothing of others."""
    sampler = card.sampler
    if sampler is None:
        return []
    times = ", ".join(f"{t:.1f}" for t in sampler.times)
    measured = ", ".join(f"{name} {value:.4g}" for name, value in sampler.measured.items())
    return [
        f"distilled from weights {sampler.teacher_sha256[:12]}, {len(sampler.times)} evaluations "
        f"of {sampler.solver}, for times {times} alone",
        f"recipe: {sampler.recipe}",
        f"against its teacher: {measured or 'not measured'}",
    ]


def describe_artefacts(manifest: Manifest) -> list[str]:
    """A table of what the bundle holds, and what was asked for and is not in it."""
    lines = []
    for a in manifest.artefacts:
        rows = f"batch {a.batch}{' or fewer' * a.dynamic_batch}" if a.batch else ""
        lines.append(
            f"{a.file:34} {a.label:18} {rows:17} {a.bytes / 1e6:7.1f} MB  {_verdict(a)}".rstrip()
        )
    return lines + [
        f"not in the bundle: {r.format} {r.precision}: {r.code}: {r.reason}"
        for r in manifest.rejected
    ]


def _verdict(artefact: Artefact) -> str:
    if artefact.role == "conditioner":
        return ""
    if artefact.certificate is None:
        return "not run yet: checked when loaded"
    return f"certified, {artefact.certificate.worst:.0%} of what is allowed"


def _certified(artefact: Artefact) -> list[str]:
    if artefact.certificate is not None:
        return artefact.certificate.lines()
    lines = ["none: it could not be run where it was exported; it is checked when loaded"]
    graph = artefact.graph_certificate
    return lines if graph is None else [*lines, "of the graph it was built from:", *graph.lines()]
