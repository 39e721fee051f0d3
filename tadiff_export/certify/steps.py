"""Errors of an artefact in single evaluations: on probes, and along the reference's trajectory."""

import numpy as np
from numpy.typing import NDArray

from tadiff_export.certify.exact import Count
from tadiff_export.certify.measure import Budget, Outputs, figures
from tadiff_export.certify.probes import REQUEST
from tadiff_export.certify.reference import Point, Reference
from tadiff_rt.backends import Backend
from tadiff_rt.certificate import Figure, Step
from tadiff_rt.errors import NumericsError


def check_probes(
    reference: Reference, backend: Backend, budget: Budget, count: Count
) -> dict[str, Figure]:
    """The figures of the worst probe, worst by what is allowed."""
    worst: dict[str, Figure] = {}
    for point, condition in zip(reference.probes, reference.conditions, strict=True):
        shifts = backend.condition(np.array([point.t]), *condition)
        for name, figure in _check(backend, point, shifts, budget, count).items():
            if name not in worst or figure.excess > worst[name].excess:
                worst[name] = figure
    return worst


def check_steps(
    reference: Reference, backend: Backend, budget: Budget, count: Count
) -> tuple[Step, ...]:
    """Every step at the x that the reference visits there, so that errors do not add up.

    The shifts of all steps come from one call, as in a forecast.
    """
    shifts = backend.condition(reference.sampling.plan.t, *REQUEST)
    return tuple(
        Step(
            t=point.t,
            outputs=_check(backend, point, shifts[[point.shift_row]], budget, count),
        )
        for point in reference.steps
    )


def _check(
    backend: Backend, point: Point, shifts: NDArray[np.float32], budget: Budget, count: Count
) -> dict[str, Figure]:
    got, rows = evaluate(backend, point.sources, point.x, shifts)
    count.add(len(rows))
    exact = {name: truth[rows] for name, truth in point.exact.items()}
    return figures(got, exact, point.own, budget)


def evaluate(
    backend: Backend,
    sources: NDArray[np.float32],
    x: NDArray[np.float32],
    shifts: NDArray[np.float32],
) -> tuple[Outputs, NDArray[np.intp]]:
    """Both outputs of every row, in as few buckets as hold them; the last is filled up.

    Returns:
        The outputs, and for each of their rows which row of `sources` and `x` it belongs to.

    Raises:
        NumericsError: an output has another shape than its input implies (TD6010).
    """
    bucket = backend.batch
    rows = np.arange(-(-len(x) // bucket) * bucket) % len(x)
    parts = [
        backend.denoise(sources[at], x[at], shifts) for at in np.split(rows, len(rows) // bucket)
    ]
    outputs: Outputs = {}
    for k, (name, channels) in enumerate((("eps", 3), ("mask_logits", 4))):
        output = np.concatenate([part[k] for part in parts])
        expected = (len(rows), channels, *x.shape[2:])
        if output.shape != expected:
            raise NumericsError(
                "TD6010",
                f"{name} of {backend.description} has shape {output.shape}, expected {expected}",
                fix="export the checkpoint again",
            )
        outputs[name] = output.astype(np.float64)
    return outputs, rows
