"""The engine bundle: a folder NAME.tadiff/ that says what it computes and refuses to be misused.

    NAME.tadiff/
      manifest.json            format, network, model card, artefacts with SHA-256, parity figures
      conditioner.onnx         (timesteps, days, treatments) -> one row of shifts a step
      denoiser.fp32.onnx       (sources, x_t, shifts) -> (eps, mask_logits), any number of rows

Files are hashed before anything parses them, and runtimes are handed the hashed bytes, so a file
cannot change between the check and its use.
"""

import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    model_validator,
)

from tadiff_rt.card import ModelCard
from tadiff_rt.errors import EngineError, UsageError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
OPEN_FLAGS = os.O_RDONLY
for _flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):  # not every system has each
    OPEN_FLAGS |= getattr(os, _flag, 0)
FIX_DAMAGED = "copy the bundle again, or export it again with `tadiff-export`"


class Artefact(BaseModel):
    """One file of the bundle that a backend can run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")
    role: Literal["conditioner", "denoiser"]
    format: Literal["onnx"] = "onnx"
    precision: Literal["fp32"] = "fp32"
    batch: int | None = None
    """Rows the denoiser takes at once; None for the conditioner."""
    dynamic_batch: bool = False
    """Whether the denoiser can be loaded for another number of rows; else `batch` is exact."""
    bytes: int = Field(ge=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    operators: dict[str, int] = {}


class Parity(BaseModel):
    """How far the artefacts are from the checkpoint, measured when they were exported."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reference: str
    """What was compared with, in words."""
    max_relative_error: dict[str, FiniteFloat]
    """max |artefact - reference| / max |reference| of each output, over all probes."""
    allowed: dict[str, FiniteFloat]
    """What was accepted: a multiple of PyTorch's own fp32 error on the same probes."""
    probes: int

    @model_validator(mode="after")
    def _each_error_has_its_limit(self) -> "Parity":
        if self.max_relative_error.keys() != self.allowed.keys():
            raise ValueError("max_relative_error and allowed name different outputs")
        return self


class OptimisedLevels(BaseModel):
    """Times of a run that `tadiff-rt certify --optimise` found for this bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    solver: str
    start_lam: float | None
    times: tuple[FiniteFloat, ...] = Field(min_length=1, max_length=100)
    """One-based, noisiest first."""
    distance: dict[str, FiniteFloat]
    """From the dense run on images that the search did not see, in units of that of other noise:
    of "these levels", of as many and of 20 levels even in log-SNR."""
    spread: dict[str, FiniteFloat]
    """Sampled over true standard deviation of Gaussians, by their standard deviation."""
    searched_on: str
    """The cases, in words; no identifiers."""


class Manifest(BaseModel):
    """Everything about a bundle but the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int
    created_by: dict[str, str]
    """Versions of tadiff, torch, onnx that wrote the bundle."""
    card: ModelCard
    network: dict[str, Any]
    """Shape of the network, for people; the artefacts do not need it."""
    conditioning_width: int = Field(ge=1)
    """Length of a row of shifts."""
    weights_sha256: str
    artefacts: tuple[Artefact, ...]
    parity: Parity
    optimised: tuple[OptimisedLevels, ...] = ()

    def artefact(self, role: str) -> Artefact:
        """The one artefact of a role."""
        found = [a for a in self.artefacts if a.role == role]
        if len(found) != 1:
            raise EngineError(
                "TD5011", f"the bundle lists {len(found)} artefacts of role {role!r}, expected one"
            )
        return found[0]


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest has been read; files are verified when they are read."""

    path: Path
    manifest: Manifest
    manifest_sha256: str

    def read(self, artefact: Artefact) -> bytes:
        """The verified bytes of an artefact.

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
        "",
    ]
    lines += [
        f"{a.file:28} {a.format} {a.precision}"
        + (f", batch {a.batch}{' or fewer' * a.dynamic_batch}" if a.batch else "")
        + f", {a.bytes / 1e6:.1f} MB"
        for a in manifest.artefacts
    ]
    lines += [
        f"levels optimised for {o.solver} with {len(o.times)} steps; distances, other noise 1: "
        + ", ".join(f"{name} {value:.3f}" for name, value in o.distance.items())
        for o in manifest.optimised
    ]
    lines += ["", f"parity with {manifest.parity.reference}, {manifest.parity.probes} probes:"]
    lines += [
        f"  {name}: relative error {error:.1e}, allowed {manifest.parity.allowed[name]:.1e}"
        for name, error in manifest.parity.max_relative_error.items()
    ]
    return "\n".join(lines)
