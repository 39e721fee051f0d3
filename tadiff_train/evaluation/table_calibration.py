"""The lines of the table on calibration and on other treatment plans."""

from collections.abc import Sequence

import numpy as np

from tadiff_train.evaluation.calibration import LEVELS
from tadiff_train.evaluation.compare import TITLES
from tadiff_train.evaluation.plans import LESS, MORE, RULE, Share, order_found, treated_is_less
from tadiff_train.evaluation.pooled import (
    METHODS,
    Pooled,
    coverage,
    intervals,
    pooled,
    reachable_level,
)
from tadiff_train.evaluation.results import MIN_PLAN_DIFFERENCE_ML, Evaluation, PatientResult
from tadiff_train.metrics import Reliability, bootstrap_interval


def calibration_lines(evaluation: Evaluation) -> list[str]:
    """Whether the ensembles say how far they are off."""
    results = evaluation.results
    found = pooled(evaluation)
    b = found.brier
    lines = [
        "Calibration of the model's ensembles:",
        "",
        f"- Tumour probability, all brain voxels pooled: ECE {found.tumour.ece:.4f}; Brier score "
        f"{b.score:.4f} = reliability {b.reliability:.4f} - resolution {b.resolution:.4f} + "
        f"uncertainty {b.uncertainty:.4f} + within bins {b.within_bin:+.4f} (rounded). Ideal: ECE "
        "and reliability 0, resolution as large as uncertainty.",
        f"- Its entropy against its squared error, AUSE: "
        f"{_mean([r.calibration.tumour_ause for r in results], evaluation.seed)}. AUSE is 0 if "
        "the largest errors are the least certain, 1 for a random order.",
        *_volume_lines(results, found),
        *_image_lines(evaluation),
        "",
        *_curve(found.tumour),
        "",
    ]
    return lines


def _curve(tumour: Reliability) -> list[str]:
    """The reliability curve as a table; bins that no voxel fell into are left out."""
    seen = [k for k in range(len(tumour.count)) if tumour.count[k]]
    rows = (
        ("forecast probability", [f"{tumour.mean_probability[k]:.3f}" for k in seen]),
        ("share that is tumour", [f"{tumour.frequency[k]:.3f}" for k in seen]),
        ("voxels", [f"{tumour.count[k]:,}" for k in seen]),
    )
    head, *others = (f"| {name} | {' | '.join(cells)} |" for name, cells in rows)
    return [head, "|---" * (len(seen) + 1) + "|", *others]


def _mean(values: Sequence[float | None], seed: int) -> str:
    """Over the patients for whom it is defined."""
    known = [float(value) for value in values if value is not None]
    found = bootstrap_interval(known, seed=seed)
    if found is None:
        return "undefined"
    few = f" [{len(known)} of {len(values)}]" if len(known) < len(values) else ""
    return f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f}){few}"


def said(part: Share) -> str:
    """ "11 of 24 (46 %, 28 % to 65 %)"."""
    if part.share is None:
        return "0 of 0"
    return f"{part.count} of {part.of} ({part.share:.0%}, {part.low:.0%} to {part.high:.0%})"


def _volume_lines(results: Sequence[PatientResult], found: Pooled) -> list[str]:
    samples = len(results[0].calibration.samples_ml)
    if samples < 2:
        return ["- One sample a patient has no spread: no interval, no rank, no spread of images."]
    reach = reachable_level(samples)
    lines = [_coverage_line(results, "model")]
    if any(r.growth for r in results):
        lines.append(_coverage_line(results, "growth"))
    lines.append(
        f"- The range of {samples} samples holds a further draw with probability "
        f"{reach:.0%}, whatever the distribution; intervals of a higher level rest on volumes "
        "being normal. Volumes add up slices: where the noise of neighbouring slices is "
        "independent (coherence 0), it averages out, and their spread is too small."
    )
    if found.ranks is not None:
        p = "too few to test" if found.flatness is None else f"p = {found.flatness:.3f}"
        lines.append(
            f"- Rank of the true volume among the samples: {', '.join(map(str, found.ranks))} "
            f"patients from below all to above all (flat if calibrated: {p})."
        )
    return lines


def _coverage_line(results: Sequence[PatientResult], method: str) -> str:
    shares = coverage(results, method)
    widths = {
        level: [
            i.high_ml - i.low_ml for r in results for i in intervals(r, method) if i.level == level
        ]
        for level in LEVELS
    }
    parts = [
        f"{level:.0%}: {said(shares[level])}, {np.mean(widths[level]):.1f} ml wide on average"
        if widths[level]
        else f"{level:.0%}: none"
        for level in LEVELS
    ]
    return f"- True volume inside the interval of {METHODS[method]} at " + "; ".join(parts) + "."


def _image_lines(evaluation: Evaluation) -> list[str]:
    with_spread = [r.calibration.images for r in evaluation.results if r.calibration.images]
    if not with_spread:
        return []
    ratios, areas = [], []
    for modality, title in TITLES.items():
        found = [images[modality] for images in with_spread]
        ratio = _mean([image.spread_skill.ratio for image in found], evaluation.seed)
        ratios.append(f"{title} {ratio}")
        areas.append(f"{title} {_mean([image.ause for image in found], evaluation.seed)}")
    return [
        f"- Spread of the images over their error (1 if calibrated, below 1 overconfident): "
        f"{'; '.join(ratios)}.",
        f"- AUSE of the standard deviation of the images: {'; '.join(areas)}.",
    ]


def plan_lines(evaluation: Evaluation) -> list[str]:
    """Whether forecasts under other treatments are in the order of the truth."""
    results = evaluation.results
    if not any(result.plans for result in results):
        return []
    lines = [
        "Other treatment plans, of pairs whose true volumes differ by at least "
        f"{MIN_PLAN_DIFFERENCE_ML:g} ml (guessing: half):",
        "",
    ]
    ruled = [order for r in results for order in order_found(r, "rule")]
    lines.append(
        f"- A fixed order that needs no image, {' < '.join(RULE)}: {sum(ruled)} of {len(ruled)} "
        f"on the right side, and {LESS} < {MORE} always. An order of treatments alone shows that "
        "a method heeds them, not that it knows the patient."
    )
    for method in ("model", *(["growth"] if evaluation.with_growth else [])):
        found = [order for r in results for order in order_found(r, method)]
        lines.append(
            f"- {METHODS[method].capitalize()}: {LESS} < {MORE} holds where the truth's does: "
            f"{said(treated_is_less(results, method))}, one pair a patient, 95 % Wilson interval. "
            f"Any other plan against the one given: {sum(found)} of {len(found)} on the right "
            f"side. Dice under other plans {_mean(_other_dice(results, method), evaluation.seed)}."
        )
    return [*lines, ""]


def _other_dice(results: Sequence[PatientResult], method: str) -> list[float | None]:
    """Mean over the other plans of each patient who has any; plans are not independent."""
    means: list[float | None] = []
    for result in results:
        others = result.plans[1:]
        dices = [p.model_dice if method == "model" else p.growth_dice for p in others]
        known = [dice for dice in dices if dice is not None]
        means.append(sum(known) / len(known) if known else None)
    return means
