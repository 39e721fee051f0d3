"""What is bundled: small, marked as simulated, and its forecast is a picture of that head."""

from pathlib import Path

import numpy as np
import pytest

from tadiff_rt import Forecaster, read_case
from tadiff_rt.bundle import open_bundle
from tadiff_rt.commands import DEMO_BUNDLE, DEMO_CASE, DEMO_DAYS, DEMO_TREATMENTS

DATA = Path(__file__).parents[2] / "tadiff_rt" / "data"


@pytest.fixture(scope="module")
def forecaster():
    return Forecaster.load(DATA / DEMO_BUNDLE)


@pytest.fixture(scope="module")
def case():
    return read_case(DATA / DEMO_CASE)


def test_it_is_small():
    assert sum(p.stat().st_size for p in DATA.rglob("*") if p.is_file()) < 25_000_000


def test_it_says_that_no_patient_was_involved():
    card = open_bundle(DATA / DEMO_BUNDLE).manifest.card
    assert "simulated" in card.trained_on
    assert "no real patient" in card.trained_on
    assert "Research only" in card.intended_use
    assert "no real person" in (DATA / DEMO_CASE / "dataset_description.json").read_text()


def test_the_case_is_one_the_model_accepts(forecaster, case):
    """Days, treatments and horizon of the demo lie inside what the model was trained on."""
    card = forecaster.bundle.manifest.card
    assert max(map(int, DEMO_DAYS)) <= card.max_horizon_days
    assert case.sessions[-1].day + max(map(int, DEMO_DAYS)) <= card.max_day
    assert set(DEMO_TREATMENTS) <= set(card.treatments)
    assert all(session.mask is not None for session in case.sessions)


@pytest.mark.slow
def test_the_forecast_looks_like_the_patient(forecaster, case):
    """One slice: nearer to the last scan than its mirror image is, and tumour where it was."""
    last = case.sessions[-1]
    at = int(np.argmax((last.mask.data > 0).sum((0, 1))[::-1]))
    forecast = forecaster.predict(
        case, day=DEMO_DAYS[-1], treatment="TMZ", samples=2, slices=str(at)
    )
    scan, predicted = forecast.prepared.sources[at, 6:9], forecast.ensemble.mean[:, at]
    brain = (scan > 0).any(axis=0)
    mirrored = scan[..., ::-1]
    assert np.abs(predicted - scan)[:, brain].mean() < np.abs(mirrored - scan)[:, brain].mean()
    tumour = forecast.prepared.masks[-1, at]
    assert forecast.ensemble.probability[at][tumour].mean() > 0.5
    assert forecast.ensemble.probability[at][~tumour].mean() < 0.1
