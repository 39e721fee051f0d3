"""The certificate of an artefact: how far it is from its checkpoint, and how far it may be.

Measured when a bundle is exported (`tadiff_export.certify`), kept in its manifest, and shown by
`tadiff-rt info`.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

Precision = Literal["fp32", "fp16", "bf16"]

_NAMES = {
    "mean": "mean image",
    "spread": "spread",
    "probability": "tumour probability",
    "dice": "1 - Dice",
    "volume": "tumour volume",
}


WIDTH = 36
"""Of the first column of the table."""


class Figure(BaseModel):
    """An error and what is allowed; both 0 or more, 0 for no difference."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: FiniteFloat | None = Field(ge=0)
    """None: the artefact gave NaN or infinity, which no limit allows."""
    allowed: FiniteFloat = Field(ge=0)

    @property
    def passed(self) -> bool:
        """Whether the error is finite and allowed."""
        return self.value is not None and self.value <= self.allowed

    @property
    def excess(self) -> float:
        """Error over what is allowed; infinity where it is not finite."""
        if self.value is None:
            return float("inf")
        if self.allowed == 0:
            return 0.0 if self.value == 0 else float("inf")
        return self.value / self.allowed

    def text(self) -> str:
        """Two columns of a table."""
        value = "not finite" if self.value is None else f"{self.value:.1e}"
        return f"{value:>10}  {self.allowed:>8.1e}"


class Step(BaseModel):
    """Errors of one evaluation at the very x that the reference's trajectory visits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    t: FiniteFloat = Field(ge=1)
    """One-based timestep."""
    outputs: dict[str, Figure]
    """As `Certificate.outputs`."""


class Certificate(BaseModel):
    """What one artefact was measured to compute.

    Raises:
        ValidationError: a figure is not finite or has no counterpart.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reference: str
    """What the artefact was compared with, in words."""
    evaluated: str
    """How the artefact was run, in words: a runtime and its device, or a simulation."""
    precision: Precision
    outputs: dict[str, Figure] = Field(min_length=1)
    """Of the worst probe. "eps" and "mask_logits": max |artefact - reference| over
    max |reference|; with the suffix "_l2": root mean squares instead, of the worst row."""
    steps: tuple[Step, ...] = Field(min_length=1)
    """Along the trajectories of the reference, noisiest first."""
    ensemble: dict[str, Figure]
    """Of an ensemble of the same noise from that of the reference. "mean" and "spread": root mean
    square difference of the mean images and of the standard deviations, in units of the data
    range; "probability": mean absolute difference; "dice": 1 - Dice of the masks; "volume":
    relative. The last two only where they are defined; see `notes`."""
    floor: dict[str, FiniteFloat]
    """The same distances for other noise: what so many samples cannot resolve."""
    samples: int = Field(ge=2)
    num_steps: int = Field(ge=1)
    probes: int = Field(ge=1)
    kept_fp32: tuple[str, ...] = ()
    """What of a half-precision artefact computes in fp32, and why; a line a reason."""
    notes: tuple[str, ...] = ()
    """What could not be measured, and why."""

    @model_validator(mode="after")
    def _figures_belong_together(self) -> "Certificate":
        if len(self.steps) != self.num_steps:
            raise ValueError(f"{len(self.steps)} steps, num_steps says {self.num_steps}")
        if any(step.outputs.keys() != self.outputs.keys() for step in self.steps):
            raise ValueError("steps and probes name different outputs")
        if self.ensemble.keys() != self.floor.keys():
            raise ValueError("ensemble and floor name different figures")
        if not {"mean", "spread", "probability"} <= self.ensemble.keys() <= _NAMES.keys():
            raise ValueError(f"ensemble has the figures {', '.join(sorted(self.ensemble))}")
        return self

    @property
    def passed(self) -> bool:
        """Whether every figure is allowed."""
        return not self.failures()

    @property
    def worst(self) -> float:
        """The largest share of what is allowed; above 1 it failed."""
        return max(figure.excess for figure in self.figures().values())

    def failures(self) -> dict[str, Figure]:
        """The figures that are not allowed, by name, worst first."""
        failed = [(name, f) for name, f in self.figures().items() if not f.passed]
        return dict(sorted(failed, key=lambda item: -item[1].excess))

    def figures(self) -> dict[str, Figure]:
        """Every figure by name."""
        every = {f"{name} of a probe": figure for name, figure in self.outputs.items()}
        for step in self.steps:
            every |= {f"{name} at t = {step.t:g}": f for name, f in step.outputs.items()}
        return every | {f"{_NAMES[name]} of the ensemble": f for name, f in self.ensemble.items()}

    def lines(self) -> list[str]:
        """A table for people."""
        verdict = "passed" if self.passed else "FAILED"
        table = [
            f"{self.precision}, {self.evaluated}: {verdict}",
            f"reference: {self.reference}",
            f"{'':{WIDTH}}{'error':>10}  {'allowed':>8}",
        ]
        table += _rows(f", worst of {self.probes} probes", self.outputs)
        for step in self.steps:
            table += _rows(f", t = {step.t:g}", step.outputs)
        table.append(
            f"{f'{self.samples} samples of {self.num_steps} steps':{WIDTH}}{'error':>10}  "
            f"{'allowed':>8}  other noise"
        )
        table += [
            f"  {_NAMES[name]:{WIDTH - 2}}{figure.text()}  {self.floor[name]:>11.1e}"
            for name, figure in self.ensemble.items()
        ]
        table += [f"note: {note}" for note in self.notes]
        if self.kept_fp32:
            table += [f"kept in fp32: {nodes}" for nodes in self.kept_fp32]
        return table


def _rows(where: str, outputs: dict[str, Figure]) -> list[str]:
    """Of maximum and root mean square the one that is nearer to its limit."""
    rows = []
    for name in sorted({name.removesuffix("_l2") for name in outputs}):
        pair = {key: outputs[key] for key in (name, f"{name}_l2") if key in outputs}
        worst = max(pair, key=lambda key: pair[key].excess)
        rows.append(f"  {worst + where:{WIDTH - 2}}{pair[worst].text()}")
    return rows
