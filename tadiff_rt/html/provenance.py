"""How the forecast was made, what is unusual about it, and what it cannot say."""

import re
from collections.abc import Mapping
from typing import Any

from tadiff_rt.html import words
from tadiff_rt.html.nodes import Node, node
from tadiff_rt.scenarios import Comparison

SIMULATED = re.compile(r"simulat|synthetic|phantom", re.IGNORECASE)
"""In the words on what a model was trained on."""

LIMITS = (
    "The images and volumes are predictions of a statistical model. None of them was acquired.",
    "The intervals show how far the model's own samples scatter. They hold no error that all "
    "samples share, such as one of a patient unlike those the model was trained on.",
    "Differences between treatments are how the model responds to its treatment input. They are "
    "no evidence that a treatment causes the change in this patient.",
    "A treatment is one of few labels for the time from the last scan to the forecast day. Dose, "
    "cycles, surgery and changes of plan are not known to the model.",
    "The tumour outline is where the model gives a probability of one half.",
)


def training_banner(comparison: Comparison) -> list[Node]:
    """A warning that cannot be overlooked, where no patient was in the training data."""
    trained_on = str(_model(comparison).get("trained_on", ""))
    if not SIMULATED.search(trained_on):
        return []
    text = node("p", node("strong", "The model was trained on simulated patients. "))
    text.append(node("span", f"Trained on: {trained_on}."))
    return [node("div", text, class_="banner", role="note")]


def notes(comparison: Comparison) -> list[Node]:
    """What was assumed, relaxed or remarkable, such as days beyond those of the training."""
    reports = [forecast.report for forecast in comparison.forecasts.values()]
    every = [note for report in (comparison.report, *reports) for note in report.get("notes", [])]
    items = [node("li", str(note)) for note in dict.fromkeys(every)]
    if not items:
        return []
    title = node("h2", "Notes on this forecast")
    return [node("section", title, node("ul", *items), class_="card notes")]


def how_made(comparison: Comparison) -> Node:
    """The model, the way of sampling, the sources and the hashes that identify all of them."""
    rows: list[tuple[str, str]] = []
    model = _model(comparison)
    for title, key in (
        ("model", "name"),
        ("trained on", "trained_on"),
        ("intended use", "intended_use"),
        ("run by", "backend"),
        ("program", "tadiff"),
        ("weights, SHA-256", "weights_sha256"),
        ("engine manifest, SHA-256", "bundle_manifest_sha256"),
    ):
        if key in model:
            name = "tadiff " if key == "tadiff" else ""
            rows.append((title, f"{name}{model[key]}"))
    rows += _sampling(comparison.first.report.get("sampling", {}))
    rows += _sources(comparison)
    parts = [part for title, text in rows for part in (node("dt", title), node("dd", text))]
    return node("dl", *parts)


def limits() -> Node:
    """What must not be read out of the page."""
    return node("ul", *(node("li", text) for text in LIMITS))


def _model(comparison: Comparison) -> Mapping[str, Any]:
    model: Mapping[str, Any] = comparison.first.report.get("model", {})
    return model


def _sampling(sampling: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [
        (title, str(sampling[key]))
        for title, key in (
            ("solver", "solver"),
            ("noise levels", "grid"),
            ("steps", "steps"),
            ("samples", "samples"),
            ("network evaluations a scenario", "network_evaluations"),
            ("seed", "seed"),
        )
        if key in sampling
    ]
    if "slices" in sampling:
        rows.append(("axial slices forecast", str(len(sampling["slices"]))))
    return rows


def _sources(comparison: Comparison) -> list[tuple[str, str]]:
    rows = []
    for source in comparison.first.report.get("sources", []):
        hashes = source.get("sha256", {})
        text = ", ".join(
            f"{words.TITLES.get(modality, modality)} {digest[:16]}…"
            for modality, digest in hashes.items()
        )
        title = f"source, day {source['day']}, {words.treatment(source['treatment'])}"
        rows.append((title, f"voxels SHA-256 {text}"))
    return rows
