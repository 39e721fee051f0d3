"""Metamorphic tests of the whole forecast: what must change the answer, and what must not."""

import dataclasses
import itertools

import numpy as np
import pytest
import scipy.stats

from tadiff_rt.bundle import open_bundle
from tadiff_rt.case import Case, Session
from tadiff_rt.errors import NumericsError, TableError, UsageError
from tadiff_rt.forecast import Forecast, Forecaster
from tadiff_rt.manifest import OptimisedLevels
from tadiff_rt.noise import NoiseSource, normal
from tadiff_rt.readers import read_case

REQUEST = {"day": "+90", "treatment": "TMZ", "samples": 2, "steps": 3, "slices": "4:6"}


@pytest.fixture(scope="module")
def forecaster(bundle):
    return Forecaster.load(bundle, threads=1)


@pytest.fixture(scope="module")
def case(case_folder):
    return read_case(case_folder)


@pytest.fixture(scope="module")
def before(forecaster, case):
    return forecaster.predict(case, **REQUEST)


def same(a: Forecast, b: Forecast) -> bool:
    """Every voxel of every output, bit for bit."""
    return (
        np.array_equal(a.mean, b.mean)
        and np.array_equal(a.std, b.std)
        and np.array_equal(a.tumour_probability, b.tumour_probability)
        and a.volume_ml == b.volume_ml
    )


def changed(a: Forecast, b: Forecast) -> bool:
    """By more than rounding, in image and in tumour."""
    return all(
        np.abs(x - y).max() > 1e-3 * np.abs(x).max()
        for x, y in ((a.mean, b.mean), (a.tumour_probability, b.tumour_probability))
    )


def with_session(case: Case, index: int, **fields) -> Case:
    sessions = list(case.sessions)
    sessions[index] = dataclasses.replace(sessions[index], **fields)
    return dataclasses.replace(case, sessions=tuple(sessions))


def swap(session: Session, a: str, b: str) -> Session:
    images = {**session.images, a: session.images[b], b: session.images[a]}
    return dataclasses.replace(session, images=images)


def requested(case: Case, change: str) -> tuple[Case, dict]:
    """The case and the request with one thing changed."""
    request = dict(REQUEST)
    last = case.sessions[-1]
    if change == "day":
        request["day"] = "+97"
    elif change == "treatment":
        request["treatment"] = "none"
    elif change == "source day":
        case = with_session(case, -2, day=case.sessions[-2].day + 5)
    elif change == "source treatment":
        case = with_session(case, -2, treatment="none")
    elif change.startswith("source image"):
        _, _, session, modality = change.split()
        at = -int(session)
        volume = case.sessions[at].images[modality]
        rolled = dataclasses.replace(volume, data=np.roll(volume.data, 1, axis=1))
        images = {**case.sessions[at].images, modality: rolled}
        case = with_session(case, at, images=images)
    elif change == "modalities":
        case = dataclasses.replace(case, sessions=(*case.sessions[:-1], swap(last, "t1", "flair")))
    elif change == "sessions":
        images = [s.images for s in case.sessions]
        case = with_session(case, -1, images=images[-2])
        case = with_session(case, -2, images=images[-1])
    return case, request


CHANGES = [
    "day",
    "treatment",
    "source day",
    "source treatment",
    "source image 1 t1",
    "source image 2 t1c",
    "source image 3 flair",
    "modalities",
    "sessions",
]


@pytest.mark.parametrize("change", CHANGES)
def test_everything_that_is_said_changes_the_forecast(change, forecaster, case, before):
    other_case, request = requested(case, change)
    assert changed(before, forecaster.predict(other_case, **request))


class Faulty:
    """A backend with one deliberate fault, for showing that the tests above would notice it."""

    def __init__(self, inner, fault):
        self._inner, self._fault = inner, fault
        self.name, self.description, self.batch = inner.name, inner.description, inner.batch
        self.partial = inner.partial

    def condition(self, t, days, treatments):
        days, treatments = list(days), list(treatments)
        if self._fault == "day":
            days[3] = days[2]  # the published script: the requested day never arrives
        if self._fault == "treatment":
            treatments[3] = 0.0
        if self._fault == "source day":
            days[:3] = [0.0, 0.0, 0.0]
        if self._fault == "source treatment":
            treatments[:3] = [0.0, 0.0, 0.0]
        return self._inner.condition(t, days, treatments)

    def denoise(self, sources, x, shifts):
        session_first = sources.reshape(len(sources), 3, 3, *sources.shape[2:])
        if self._fault.startswith("source image"):
            _, _, session, modality = self._fault.split()
            session_first = session_first.copy()
            session_first[:, 3 - int(session), ["t1", "t1c", "flair"].index(modality)] = 0
        if self._fault == "modalities":
            session_first = np.sort(session_first, axis=2)
        if self._fault == "sessions":
            session_first = np.sort(session_first, axis=1)
        return self._inner.denoise(session_first.reshape(sources.shape), x, shifts)


@pytest.mark.parametrize("change", CHANGES)
def test_each_of_these_tests_sees_its_fault(change, forecaster, case):
    faulty = Forecaster(forecaster.bundle, Faulty(forecaster.backend, change), 0.0)
    other_case, request = requested(case, change)
    assert not changed(faulty.predict(case, **REQUEST), faulty.predict(other_case, **request))


def test_same_request_same_bits(forecaster, case, before):
    assert same(before, forecaster.predict(case, **REQUEST))


def test_an_older_session_changes_nothing(forecaster, case, before):
    """Four sessions, of which the last three count; their days stay the same."""
    assert len(case.sessions) == 4
    shorter = dataclasses.replace(case, sessions=case.sessions[1:])
    assert same(before, forecaster.predict(shorter, **REQUEST))


def test_absolute_and_relative_days_agree(forecaster, case, before):
    day = case.sessions[-1].day + 90
    assert same(before, forecaster.predict(case, **{**REQUEST, "day": day}))


def test_seeds_differ(forecaster, case, before):
    assert not same(before, forecaster.predict(case, **REQUEST, seed=1))


def test_a_sample_does_not_depend_on_its_batch(bundle_of_one, case, before):
    """The graph is loaded for batches of 1 and of 4: bitwise equal."""
    alone = Forecaster.load(bundle_of_one, threads=1).predict(case, **REQUEST)
    assert (alone.report["sampling"]["batch"], before.report["sampling"]["batch"]) == (1, 4)
    assert same(alone, before)


VARIANTS = [{}, {"solver": "ddpm"}, {"solver": "unipc_3"}, {"solver": "dpmpp_2s"}]


def varied(request: dict) -> str:
    return request.get("solver", "default")


@pytest.mark.parametrize("options", VARIANTS, ids=varied)
def test_workers_threads_and_the_order_of_slices_change_no_bit(options, bundle, forecaster, case):
    request = {**REQUEST, **options, "samples": 3}
    expected = forecaster.predict(case, **request)
    two_threads = Forecaster.load(bundle, threads=2)
    for other in (
        forecaster.predict(case, **request, workers=3),
        forecaster.predict(case, **{**request, "slices": "5,4"}, workers=2),
        two_threads.predict(case, **request),
    ):
        assert same(expected, other)
        assert other.slices == (4, 5)


@pytest.mark.parametrize("options", VARIANTS, ids=varied)
def test_a_slice_does_not_depend_on_the_others(options, forecaster, case):
    """Slices 3 to 6 fill other places of the batches than 4 and 5 alone: bitwise equal."""
    request = {**REQUEST, **options}
    narrow = forecaster.predict(case, **request)
    wider = forecaster.predict(case, **{**request, "slices": "6,3:6"})
    for at in (4, 5):
        for mine, theirs in (
            (narrow.ensemble.mean[:, at], wider.ensemble.mean[:, at]),
            (narrow.ensemble.std[:, at], wider.ensemble.std[:, at]),
            (narrow.ensemble.probability[at], wider.ensemble.probability[at]),
        ):
            assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("options", VARIANTS, ids=varied)
def test_more_samples_extend_fewer(options, forecaster, case):
    """Tumour volumes and overlaps of the first four are those of four."""
    request = {**REQUEST, **options, "slices": "5"}
    few, more = (forecaster.predict(case, **{**request, "samples": n}) for n in (4, 8))
    assert more.volume_ml.samples_ml[:4] == few.volume_ml.samples_ml
    assert len(set(more.volume_ml.samples_ml)) > 4
    overlaps = [forecast.ensemble.tumour_overlaps.tolist() for forecast in (few, more)]
    assert overlaps[1][:3] == overlaps[0]


def test_noise_drawn_by_the_batch_would_be_noticed(forecaster, case, monkeypatch):
    """The order of rows decides then: neither more slices nor more samples extend fewer."""

    def by_the_batch(self, rows, shape):
        return np.random.default_rng(0).standard_normal((len(rows), *shape)).astype(np.float32)

    monkeypatch.setattr(NoiseSource, "initial", by_the_batch)
    narrow, wider = (
        forecaster.predict(case, **{**REQUEST, "slices": slices}) for slices in ("4:6", "3:6")
    )
    assert not np.array_equal(narrow.ensemble.mean[:, 4], wider.ensemble.mean[:, 4])
    few, more = (
        forecaster.predict(case, **{**REQUEST, "samples": n}).volume_ml.samples_ml for n in (3, 5)
    )
    assert more[:3] != few


def test_an_open_number_of_samples_ends_at_a_fixed_one(forecaster, case):
    """As many as are enough (here at once), or as are allowed; bitwise the fixed run."""
    for options, n in (
        ({"volume_ci": "100%"}, 6),
        ({"volume_ci": 0.001, "max_samples": 7}, 7),
        ({"max_samples": "3", "volume_ci": 0.001}, 3),
    ):
        auto = forecaster.predict(case, **{**REQUEST, "samples": "auto"}, **options, workers=2)
        assert len(auto.volume_ml.samples_ml) == n
        assert auto.report["sampling"]["samples"] == n
        assert auto.report["sampling"]["network_evaluations"] == 3 * n * 2
        assert same(auto, forecaster.predict(case, **{**REQUEST, "samples": n}))


def test_the_report_says_how_sure_the_volume_is(forecaster, case):
    """Student's intervals and median-unbiased quantiles of the samples, by scipy."""
    auto = {**REQUEST, "samples": "auto", "volume_ci": "0.1%", "max_samples": 8}
    report = forecaster.predict(case, **auto).report
    sampling, volume = report["sampling"], report["volume_ml"]
    assert (sampling["samples"], sampling["volume_ci"]) == (8, 0.001)
    assert sampling["network_evaluations"] == 3 * 8 * 2
    assert len(volume["samples"]) == 8
    t, s = scipy.stats.t.ppf(0.95, 7), np.std(volume["samples"], ddof=1)
    mean = np.mean(volume["samples"])
    assert volume["mean"] == pytest.approx(mean)
    for name, reach in (
        ("interval_of_the_mean", t * s / np.sqrt(8)),
        ("interval", t * s * np.sqrt(1 + 1 / 8)),
    ):
        assert volume[name] == pytest.approx((max(0, mean - reach), mean + reach))
    # 8 samples support 2/25 … 23/25: not 0.05 and 0.95.
    assert list(volume["quantiles"]) == ["0.25", "0.5", "0.75"]
    expected = scipy.stats.mstats.mquantiles(volume["samples"], [0.25, 0.5, 0.75], 1 / 3, 1 / 3)
    assert list(volume["quantiles"].values()) == pytest.approx(expected.tolist())
    assert 0 < volume["pairwise_dice"] <= 1
    one = forecaster.predict(case, **{**REQUEST, "samples": 1}).report
    assert (one["sampling"]["samples"], one["sampling"]["volume_ci"]) == (1, None)
    for name in ("quantiles", "interval_of_the_mean", "pairwise_dice"):
        assert one["volume_ml"][name] is None


def test_pairwise_dice_is_that_of_the_members(forecaster, case):
    """The second member's probability is twice the mean of both less the first's."""
    one, two = (forecaster.predict(case, **{**REQUEST, "samples": n}) for n in (1, 2))
    first = one.ensemble.probability > 0.5
    second = 2 * two.ensemble.probability.astype(float) - one.ensemble.probability > 0.5
    dice = 2 * (first & second).sum() / (first.sum() + second.sum())
    assert two.report["volume_ml"]["pairwise_dice"] == pytest.approx(dice, rel=1e-3)


def with_levels(forecaster, *times, solver="dpmpp_2m"):
    """The same network with optimised levels in its manifest."""
    held = OptimisedLevels(
        solver=solver, start_lam=None, times=times, distance={}, spread={}, searched_on="nothing"
    )
    manifest = forecaster.bundle.manifest.model_copy(update={"optimised": (held,)})
    return Forecaster(
        dataclasses.replace(forecaster.bundle, manifest=manifest), forecaster.backend, 0.0
    )


def test_optimised_levels_of_the_bundle_are_run(forecaster, case, before):
    """What the network is asked for are exactly these times."""
    asked = []

    class Watching(Faulty):
        def condition(self, t, days, treatments):
            asked.append(t.tolist())
            return self._inner.condition(t, days, treatments)

    watching = Forecaster(forecaster.bundle, Watching(forecaster.backend, ""), 0.0)
    times = (1000.0, 613.25, 2.5)
    held = with_levels(watching, *times)
    forecast = held.predict(case, **REQUEST, grid="optimised")
    assert asked == [list(times)]
    assert forecast.report["sampling"]["times"] == list(times)
    assert forecast.report["sampling"]["grid"] == "optimised"
    assert not same(forecast, before)
    assert same(held.predict(case, **REQUEST), before)


@pytest.mark.parametrize("change", [{"steps": 4}, {"solver": "ddim"}])
def test_a_bundle_without_such_levels_says_so(change, forecaster, case):
    held = with_levels(forecaster, 1000.0, 613.25, 2.5)
    for other in (held, forecaster):
        request = {**REQUEST, "grid": "optimised", **(change if other is held else {})}
        with pytest.raises(UsageError, match="no optimised levels") as e:
            other.predict(case, **request)
        assert e.value.code == "TD3056"


def test_statistics_are_those_of_the_samples(forecaster, case):
    """Mean and spread of two samples from the means of one and of two."""
    one, two = (forecaster.predict(case, **{**REQUEST, "samples": n}) for n in (1, 2))
    first, mean = one.ensemble.mean, two.ensemble.mean
    second = 2 * mean - first
    spread = np.abs(first - second) / np.sqrt(2)
    rounding = 4 * np.finfo(np.float32).eps * np.abs(mean).max()
    np.testing.assert_allclose(two.ensemble.std, spread, rtol=0, atol=rounding)
    assert one.std is None
    assert one.volume_ml.low_ml is None


def test_volumes_add_up_to_millilitres(forecaster, case):
    """One sample: the mask is its own, and a voxel of 2 mm is 0.008 ml."""
    one = forecaster.predict(case, **{**REQUEST, "samples": 1})
    assert one.volume_ml.mean_ml == pytest.approx(one.tumour_mask.sum() * 0.008)
    assert one.tumour_mask.any()


def test_slices_not_asked_for_are_background(before, case):
    """The file's axis 2 runs up, canonical slices run down: 4 and 5 of 10 are 5 and 4 there."""
    for at in range(10):
        assert before.mean[:, :, :, at].any() == (at in (9 - 4, 9 - 5))


def test_the_result_lies_on_the_last_session(before, case):
    last = case.sessions[-1].images["t1"]
    assert before.mean.shape[1:] == last.data.shape
    np.testing.assert_array_equal(before.affine, last.affine)


def reoriented(case: Case, flips: tuple[int, ...], order: tuple[int, int, int]) -> Case:
    """The same head stored on other axes, affines accordingly (checked against nibabel)."""
    import nibabel as nib

    def move(volume):
        ornt = np.array([[order[i], flips[i]] for i in range(3)], float)
        image = nib.Nifti1Image(volume.data, volume.affine).as_reoriented(ornt)
        return dataclasses.replace(
            volume, data=np.asarray(image.dataobj, np.float32), affine=image.affine
        )

    sessions = tuple(
        dataclasses.replace(
            s,
            images={m: move(v) for m, v in s.images.items()},
            mask=move(s.mask) if s.mask else None,
        )
        for s in case.sessions
    )
    return dataclasses.replace(case, sessions=sessions)


ORIENTATIONS = list(
    itertools.product(itertools.product((1, -1), repeat=3), itertools.permutations(range(3)))
)


@pytest.mark.parametrize(("flips", "order"), ORIENTATIONS[::7])
def test_orientation_of_the_files_does_not_matter(flips, order, forecaster, case, before):
    import nibabel as nib

    turned = forecaster.predict(reoriented(case, flips, order), **REQUEST)
    expected = nib.Nifti1Image(before.tumour_probability, before.affine)
    ornt = np.array([[order[i], flips[i]] for i in range(3)], float)
    moved = expected.as_reoriented(ornt)
    assert np.array_equal(turned.tumour_probability, np.asarray(moved.dataobj, np.float32))
    np.testing.assert_array_equal(turned.affine, moved.affine)
    assert turned.volume_ml == before.volume_ml


def with_card(forecaster, **fields):
    """The same network under another model card."""
    manifest = forecaster.bundle.manifest
    card = manifest.card.model_copy(update=fields)
    bundle = dataclasses.replace(
        forecaster.bundle, manifest=manifest.model_copy(update={"card": card})
    )
    return Forecaster(bundle, forecaster.backend, 0.0)


def test_an_informed_run_starts_from_the_noised_last_scan(forecaster, case):
    """What the network is shown at the first step, rebuilt from the sources and the noise."""
    seen = []

    class Watching(Faulty):
        def denoise(self, sources, x, shifts):
            seen.append((sources.copy(), x.copy()))
            return self._inner.denoise(sources, x, shifts)

    watching = Forecaster(forecaster.bundle, Watching(forecaster.backend, ""), 0.0)
    informed = with_card(watching, start_lam=-2.0)
    forecast = informed.predict(case, **REQUEST)
    sources, x = seen[0]
    alpha, sigma = (1 / np.sqrt(1 + np.exp(s * 4.0)) for s in (1, -1))  # of half log-SNR -2
    noise = np.stack([normal(0, k, at, 0, x.shape[1:]) for at in (4, 5) for k in (0, 1)])
    np.testing.assert_allclose(x, alpha * sources[:, 6:9] + sigma * noise, rtol=0, atol=1e-6)
    assert forecast.report["sampling"]["start_lam"] == -2.0


def test_a_run_from_noise_does_not_look_at_the_last_scan_first(forecaster, case, before):
    assert before.report["sampling"]["start_lam"] is None
    assert not same(before, with_card(forecaster, start_lam=-2.0).predict(case, **REQUEST))


def test_estimates_stay_in_the_range_of_the_card(forecaster, case):
    """Random weights leave [0, 1] far behind; clipped, every sample is a picture in it."""
    free = with_card(forecaster, x0_range=None).predict(case, **REQUEST)
    clipped = with_card(forecaster, x0_range=(0.0, 1.0)).predict(case, **REQUEST)
    assert np.abs(free.ensemble.mean).max() > 2
    assert clipped.ensemble.mean.min() >= 0
    assert clipped.ensemble.mean.max() <= 1


def test_short_history_is_padded_and_said(forecaster, case):
    one = dataclasses.replace(case, sessions=(dataclasses.replace(case.sessions[0], day=0),))
    three = dataclasses.replace(case, sessions=one.sessions * 3)
    padded = forecaster.predict(one, **REQUEST)
    assert any("fewer than 3 sessions" in note for note in padded.report["notes"])
    assert np.array_equal(padded.mean, forecaster.predict(three, **REQUEST).mean)


def test_tumour_slices_follow_the_masks(forecaster, case):
    """Masks fill slices 4 to 6 of the file (from below), so 3 to 5 from above, plus two."""
    predicted = forecaster.predict(case, **{**REQUEST, "slices": "tumour", "samples": 1})
    assert set(predicted.slices) <= set(range(1, 8))
    assert {3, 4, 5} <= set(predicted.slices)


def test_a_long_horizon_is_refused_unless_it_is_asked_for(forecaster, case):
    """The card says 400 days; the last session is on day 160, and day 561 is before day 1100."""
    assert forecaster.bundle.manifest.card.max_horizon_days == 400
    forecaster.predict(case, **{**REQUEST, "day": "+400"})
    with pytest.raises(TableError, match="day 561 is 401 days after") as e:
        forecaster.predict(case, **{**REQUEST, "day": "+401"})
    assert (e.value.code, len(e.value.findings)) == ("TD3313", 1)
    beyond = forecaster.predict(case, **{**REQUEST, "day": "+401"}, extrapolate=True)
    assert any("401 days after the last session" in note for note in beyond.report["notes"])


def test_progress_counts_every_evaluation(forecaster, case):
    calls = []
    forecaster.predict(case, **REQUEST, progress=lambda done, total: calls.append((done, total)))
    # 2 slices x 2 samples fill one batch of 4, which takes 3 steps
    assert calls == [(4, 12), (8, 12), (12, 12)]


class Broken(Faulty):
    """A network whose second evaluation gives one value of one row that is no number."""

    value = np.nan
    output = 0
    calls = 0

    def denoise(self, sources, x, shifts):
        outputs = [a.copy() for a in self._inner.denoise(sources, x, shifts)]
        self.calls += 1
        if self.calls == 2:
            outputs[self.output][2, 0, 5, 7] = self.value
        return tuple(outputs)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("output", [0, 1])
def test_a_sample_that_is_not_finite_is_named(value, output, forecaster, case):
    """Infinity too, which clipping to the range of the images would hide."""
    backend = Broken(forecaster.backend, "")
    backend.value, backend.output = value, output
    broken = Forecaster(forecaster.bundle, backend, 0.0)
    with pytest.raises(NumericsError, match="sample 0 of slice 5 is not finite at step 1") as e:
        broken.predict(case, **REQUEST)
    assert e.value.code == "TD6002"


@pytest.mark.parametrize(
    ("change", "error", "code"),
    [
        ({"day": 160}, TableError, "TD3312"),
        ({"day": "+5000"}, TableError, "TD3313"),
        ({"treatment": "tmz"}, TableError, "TD3314"),
        ({"samples": 0}, UsageError, None),
        ({"steps": 1001}, UsageError, None),
        ({"seed": -1}, UsageError, None),
        ({"slices": "5:5"}, UsageError, None),
        ({"slices": "8:12"}, UsageError, None),
        ({"grid": "even"}, UsageError, "TD3041"),
        ({"workers": 0}, UsageError, "TD3022"),
        ({"solver": "euler"}, UsageError, "TD3042"),
        ({"volume_ci": "10%"}, UsageError, "TD3021"),
        ({"samples": "auto", "volume_ci": "0%"}, UsageError, "TD3021"),
        ({"samples": "auto", "max_samples": 0}, UsageError, "TD3015"),
        ({"samples": "auto", "latin": True}, UsageError, "TD3049"),
        ({"coherence": 1.0}, UsageError, "TD3048"),
    ],
)
def test_requests_that_cannot_be_answered(change, error, code, forecaster, case):
    with pytest.raises(error) as e:
        forecaster.predict(case, **{**REQUEST, **change})
    assert code is None or e.value.code == code


def test_malformed_parts_of_a_request_are_reported_together(forecaster, case):
    with pytest.raises(UsageError) as e:
        forecaster.predict(case, **{**REQUEST, "samples": 0, "steps": 0, "slices": "x"})
    assert [f.code for f in e.value.findings] == ["TD3015", "TD3016", "TD3018"]


def test_report_holds_the_request_and_no_names(before, case):
    text = str(before.report)
    assert before.report["request"] == {"day": 250, "treatment": "TMZ"}
    assert before.report["sampling"]["network_evaluations"] == 3 * 2 * 2
    assert case.name not in text


def test_bundle_of_the_fixture_is_the_one_described(bundle):
    manifest = open_bundle(bundle).manifest
    assert manifest.card.name == "tiny"
    assert [a.role for a in manifest.artefacts] == ["conditioner", "denoiser"]
