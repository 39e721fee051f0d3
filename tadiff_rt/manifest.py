"""What an engine bundle says of itself: its manifest, and the contract inside its ONNX files."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from tadiff_rt.card import ModelCard
from tadiff_rt.certificate import Certificate, Precision
from tadiff_rt.engines import Build
from tadiff_rt.errors import EngineError

FORMAT_VERSION = 2
FILE_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$"
SHA256 = r"^[0-9a-f]{64}$"

MOST_ALLOWED = 0.25
"""Of a canary: what is farther off is not the checkpoint in any precision."""

Role = Literal["conditioner", "denoiser"]
Format = Literal["onnx", "tensorrt", "tensorrt-rtx", "torch"]

ENGINES: tuple[Format, ...] = ("tensorrt", "tensorrt-rtx")
"""Formats that are native code, for one runtime and some GPUs."""


class File(BaseModel):
    """A file of the bundle, known by its hash."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = Field(pattern=FILE_NAME)
    bytes: int = Field(ge=1)
    sha256: str = Field(pattern=SHA256)


class Artefact(File):
    """A file that a backend can run."""

    role: Role
    format: Format = "onnx"
    precision: Precision = "fp32"
    batch: int | None = Field(None, ge=1, le=1024)
    """Rows the denoiser takes at once; None for the conditioner."""
    dynamic_batch: bool = False
    """Whether the denoiser can be loaded for another number of rows; else `batch` is exact."""
    operators: dict[str, int] = {}
    build: Build | None = None
    """Of an engine: by what, for what, from what."""
    certificate: Certificate | None = None
    """How far the denoiser is from the checkpoint; None where it could not be run when it was
    exported, and for conditioners: that in ONNX is part of every certificate, that of the torch
    backend is compared with the checkpoint at export and with the other when it is loaded."""
    graph_certificate: Certificate | None = None
    """Of an engine: of the ONNX graph that it was built from."""

    @model_validator(mode="after")
    def _fits_its_role(self) -> "Artefact":
        conditions = (self.format in ("onnx", "torch"), self.precision == "fp32")
        if self.role == "conditioner" and not all(conditions):
            raise ValueError("a conditioner is an ONNX graph or a torch program, in fp32")
        if (self.role == "denoiser") != (self.batch is not None):
            raise ValueError("a denoiser has a batch, a conditioner has none")
        if self.build is not None and self.format not in ENGINES:
            raise ValueError(f"build is for engines only ({', '.join(ENGINES)})")
        for certificate in (self.certificate, self.graph_certificate):
            if certificate is not None and certificate.precision != self.precision:
                raise ValueError(f"a certificate for {certificate.precision} is not its own")
        if self.certificate is not None and not self.certificate.passed:
            raise ValueError("an artefact that failed its certificate is not listed")
        return self

    @property
    def label(self) -> str:
        """Format and precision, for people: "onnx fp32"."""
        return f"{self.format} {self.precision}"


class Rejected(BaseModel):
    """An artefact that was asked for and is not in the bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Format
    precision: Precision
    code: str
    reason: str
    """What failed, with the first node that breaks it where that was found."""


class Canary(File):
    """Outputs of the checkpoint in float64 on one fixed input, rounded to float32.

    An artefact without a certificate, which could not be run where it was exported, is compared
    with them when it is loaded.
    """

    allowed: dict[Precision, Annotated[float, Field(gt=0, le=MOST_ALLOWED)]]
    """Largest difference of each precision, relative to the largest magnitude of an output."""


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
    source: str
    """What was exported, in words: the format of the checkpoint and what was made of it."""
    card: ModelCard
    network: dict[str, Any]
    """Shape of the network, for people; the artefacts do not need it."""
    conditioning_width: int = Field(ge=1)
    """Length of a row of shifts."""
    weights_sha256: str
    artefacts: tuple[Artefact, ...]
    canary: Canary
    attachments: tuple[File, ...] = ()
    """For people; nothing reads them: the layers of engines."""
    rejected: tuple[Rejected, ...] = ()
    optimised: tuple[OptimisedLevels, ...] = ()

    @model_validator(mode="after")
    def _each_artefact_once(self) -> "Manifest":
        files = [f.file for f in (*self.artefacts, self.canary, *self.attachments)]
        kinds = [f"{a.role} {a.label}" for a in self.artefacts]
        for what, names in (("file", files), ("artefact", kinds)):
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise ValueError(f"{what} listed twice: {', '.join(sorted(twice))}")
        return self

    @property
    def conditioner(self) -> Artefact:
        """The ONNX conditioner, which every bundle has."""
        found = self._conditioners("onnx")
        if len(found) != 1:
            what = f"the bundle lists {len(found)} ONNX conditioners, expected one"
            raise EngineError("TD5011", what)
        return found[0]

    @property
    def conditioner_program(self) -> Artefact | None:
        """The conditioner of the torch backend, where there is one."""
        return next(iter(self._conditioners("torch")), None)

    def _conditioners(self, format_: Format) -> list[Artefact]:
        return [a for a in self.artefacts if (a.role, a.format) == ("conditioner", format_)]

    @property
    def denoisers(self) -> tuple[Artefact, ...]:
        """All denoisers, in the order in which they were exported."""
        return tuple(a for a in self.artefacts if a.role == "denoiser")


def contract(card: ModelCard, weights_sha256: str, role: str, precision: str) -> dict[str, str]:
    """What an ONNX file of a bundle states in its own metadata, as "tadiff.KEY".

    A graph of other weights, another size or another convention of time, days or channels takes
    the same inputs and gives plausible images; only this tells it apart.
    """
    schedule, data = card.schedule, card.data
    return {
        "format": str(FORMAT_VERSION),
        "role": role,
        "precision": precision,
        "weights_sha256": weights_sha256,
        "size": str(data.size),
        "schedule": f"{schedule.kind} {schedule.num_train_timesteps} "
        f"{schedule.beta_start!r} {schedule.beta_end!r}",
        "time": "one-based",
        "days": "since the first session",
        "channels": "session-major; T1, T1c, FLAIR; target last",
        "data_range": "0 to 1",
    }
