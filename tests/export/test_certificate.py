"""The certificate of a bundle: its reference, its figures and its budgets."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from tadiff_export.certify.artefact import certify_artefact
from tadiff_export.certify.exact import Count, NetworkBackend
from tadiff_export.certify.explain import explain
from tadiff_export.certify.measure import BUDGETS, allowed, errors
from tadiff_export.certify.probes import CONDITIONS, head_slices, make_probes
from tadiff_export.certify.reference import Reference, Settings, draw
from tadiff_export.certify.steps import evaluate
from tadiff_rt.backends import load_backend
from tadiff_rt.bundle import open_bundle
from tadiff_rt.errors import NumericsError, UsageError
from tadiff_train.checkpoint import load_checkpoint

SIZE = 32
SETTINGS = Settings(samples=2, num_steps=3)
SLOT = torch.full((1,), 3)


@pytest.fixture(scope="module")
def loaded(checkpoint):
    net, sidecar = load_checkpoint(checkpoint)
    return net, sidecar.card


@pytest.fixture(scope="module")
def reference(loaded):
    return Reference.build(*loaded, SETTINGS)


@pytest.fixture(scope="module")
def backend(bundle):
    return load_backend("onnxruntime", open_bundle(bundle), threads=1)


class Wrapped:
    """A backend whose outputs are changed."""

    def __init__(self, inner, change):
        self._inner, self._change = inner, change
        self.name = self.runtime = self.description = "wrapped"
        self.batch, self.partial = inner.batch, inner.partial
        self.condition, self.halve = inner.condition, inner.halve

    def denoise(self, sources, x, shifts):
        return self._change(*self._inner.denoise(sources, x, shifts))


def with_noise(share, seed=5):
    """Independent errors of `share` of each output's standard deviation."""
    rng = np.random.default_rng(seed)

    def change(*outputs):
        return tuple(
            (o + share * o.std() * rng.standard_normal(o.shape)).astype(np.float32)
            for o in outputs
        )

    return change


def certified(loaded, reference, backend, precision="fp32"):
    return certify_artefact(
        *loaded, backend, precision=precision, evaluated="here", reference=reference
    )


def test_the_bundle_passes(loaded, reference, backend):
    record = certified(loaded, reference, backend)
    assert record.passed
    for figure in (
        *record.outputs.values(),
        *(f for s in record.steps for f in s.outputs.values()),
    ):
        assert 1e-8 < figure.value < figure.allowed < 1e-4
    assert [step.t for step in record.steps] == reference.sampling.plan.t.tolist()
    assert record.ensemble.keys() == {"mean", "spread", "probability", "dice", "volume"}
    assert record.ensemble["mean"].value < 1e-3 * record.floor["mean"]
    assert "float64" in record.reference


def test_a_bundle_of_one_row_has_the_same_certificate(loaded, reference, backend, bundle_of_one):
    """Buckets change which rows are repeated, not a bit of a row."""
    one = load_backend("onnxruntime", open_bundle(bundle_of_one), threads=1)
    first, second = (certified(loaded, reference, b) for b in (backend, one))
    assert first == second


def exact_forward(net, sources, x, t, days, treatments):
    """The definition: every convolution, norm and attention in float64, the shifts in fp32."""
    with torch.no_grad():
        condition = torch.tensor([[*days]]).float(), torch.tensor([[*treatments]]).float()
        shifts = net.project(*net.embed(torch.tensor([t]).float(), *condition, SLOT))
        net.double()
        y = net.unet(
            torch.from_numpy(np.concatenate([sources, x], axis=1)).double(),
            [s.double() for s in shifts],
        )
    return y.numpy()


def test_the_reference_is_float64_with_fp32_embeddings(checkpoint, reference):
    for k in (0, 3):
        net, _ = load_checkpoint(checkpoint)
        point, condition = reference.probes[k], reference.conditions[k]
        y = exact_forward(net, point.sources, point.x, point.t, *condition)
        np.testing.assert_allclose(point.exact["eps"], y[:, 4:], rtol=0, atol=1e-12)
        np.testing.assert_allclose(point.exact["mask_logits"], y[:, :4], rtol=0, atol=1e-12)


def test_own_errors_are_rounding(reference):
    for point in (*reference.probes, *reference.steps):
        assert all(1e-8 < error < 1e-4 for error in point.own.values())


def test_steps_are_those_of_the_trajectories(loaded, reference):
    """Running the solver by hand from the recorded estimates gives the recorded x."""
    plan, low, high = reference.sampling.plan, *reference.sampling.x0_range
    assert not plan.coef_noise.any()
    history = []
    for i, point in enumerate(reference.steps[:-1]):
        x0 = (point.x - plan.sigma[i] * point.exact["eps"]) / plan.alpha[i]
        history.append(np.clip(x0, low, high))
        following = plan.coef_x[i] * point.x + plan.coef_x0[i] * history[-1]
        if i:
            following = following + plan.coef_x0_prev[i] * history[-2]
        np.testing.assert_allclose(reference.steps[i + 1].x, following, rtol=0, atol=1e-5)
    assert len({point.x[0].tobytes() for point in reference.steps}) == len(reference.steps)
    assert not np.array_equal(reference.steps[0].x[0], reference.steps[0].x[1])


def test_an_informed_start_is_honoured(loaded, backend):
    net, card = loaded
    informed = card.model_copy(update={"start_lam": -1.0, "x0_range": None})
    reference = Reference.build(net, informed, SETTINGS)
    plan = reference.sampling.plan
    assert reference.sampling.informed
    assert reference.sampling.x0_range is None
    assert plan.t[0] < 900
    start = reference.steps[0].x - plan.alpha[0] * reference.sources[:, 6:]
    assert abs(start.std() / plan.sigma[0] - 1) < 0.05  # 6144 normals: 5.5 standard errors
    assert certified((net, informed), reference, backend).passed


def test_a_short_schedule_is_run_whole(loaded):
    net, card = loaded
    schedule = card.schedule.model_copy(update={"num_train_timesteps": 2})
    short = card.model_copy(update={"schedule": schedule})
    assert len(Reference.build(net, short, Settings(2, 6)).steps) == 2


def test_the_floor_is_other_noise(loaded, reference):
    """Of an ensemble that differs from the reference by its seed, far above any rounding."""
    net, card = loaded
    other = dataclasses.replace(SETTINGS, seed=7)
    exact = NetworkBackend(net, torch.float64, Count(None, 0))
    sampling = Reference.build(net, card, other).sampling
    drawn = draw(exact, sampling, reference.sources, 2)
    apart = np.sqrt(((drawn.mean - reference.drawn.mean)[:, drawn.brain] ** 2).mean())
    assert 0.5 < reference.floor.mean / apart < 2
    assert reference.floor.mean > 0.01


@pytest.mark.parametrize("settings", [{"samples": 1}, {"num_steps": 0}])
def test_settings_that_measure_nothing_are_refused(settings):
    with pytest.raises(UsageError) as e:
        Settings(**settings)
    assert e.value.code == "TD3015"


def test_the_same_reference_twice_is_the_same(loaded, reference):
    again = Reference.build(*loaded, SETTINGS)
    for one, two in zip(reference.steps, again.steps, strict=True):
        np.testing.assert_array_equal(one.exact["eps"], two.exact["eps"])
    assert again.floor == reference.floor


def test_noise_of_half_precision_passes_its_own_budget_alone(loaded, reference, backend):
    fp16 = Wrapped(backend, with_noise(1e-3))
    assert certified(loaded, reference, fp16, "fp16").passed
    assert certified(loaded, reference, fp16, "bf16").passed
    assert not certified(loaded, reference, fp16, "fp32").passed
    bf16 = Wrapped(backend, with_noise(1e-2))
    assert certified(loaded, reference, bf16, "bf16").passed
    assert not certified(loaded, reference, bf16, "fp16").passed
    assert not certified(loaded, reference, Wrapped(backend, with_noise(0.1)), "bf16").passed


def test_an_error_of_one_voxel_is_seen(loaded, reference, backend):
    """Root mean squares and ensembles hide it; the maximum does not."""

    def change(eps, logits):
        eps[0, 1, 16, 16] += 0.15 * eps.std()
        return eps, logits

    record = certified(loaded, reference, Wrapped(backend, change), "fp16")
    assert not record.outputs["eps"].passed
    assert record.outputs["eps_l2"].passed


@pytest.mark.parametrize("wrong", [0, 2, 3])
def test_the_worst_probe_counts(wrong, loaded, reference, backend):
    calls = iter(range(1000))

    def change(eps, logits):
        return (eps * 1.01 if next(calls) == wrong else eps, logits)

    record = certified(loaded, reference, Wrapped(backend, change))
    assert not record.outputs["eps"].passed
    assert record.outputs["mask_logits"].passed


def test_an_error_along_the_trajectory_alone_is_seen(loaded, reference, backend):
    """A backend that is right on probes and drifts when it is used again."""
    probes = len(reference.probes)
    calls = iter(range(1000))

    def change(eps, logits):
        return (eps, logits) if next(calls) < probes else (eps * 1.01, logits)

    record = certified(loaded, reference, Wrapped(backend, change))
    assert all(figure.passed for figure in record.outputs.values())
    assert not any(step.outputs["eps"].passed for step in record.steps)
    assert not record.ensemble["mean"].passed or record.ensemble["mean"].value > 1e-4
    text = explain(*loaded, Wrapped(backend, lambda *o: o), None, None, record)
    assert "agree with the checkpoint on every probe" in text


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("output", [0, 1])
def test_what_is_not_finite_fails(value, output, loaded, reference, backend):
    def change(*outputs):
        outputs[output][1, 0, 3, 4] = value
        return outputs

    record = certified(loaded, reference, Wrapped(backend, change), "bf16")
    name = ("eps", "mask_logits")[output]
    assert record.outputs[name].value is None
    assert all(step.outputs[name].value is None for step in record.steps)
    assert all(figure.value is None for figure in record.ensemble.values())
    assert not record.passed


def test_another_shape_is_refused(loaded, reference, backend):
    with pytest.raises(NumericsError, match=r"eps of wrapped has shape \(4, 1, 32, 32\)") as e:
        certified(loaded, reference, Wrapped(backend, lambda eps, m: (eps[:, :1], m)))
    assert e.value.code == "TD6010"


def test_rows_are_given_back_with_their_numbers(backend):
    probe = make_probes_of_tests(5)
    shifts = backend.condition(np.array([probe.t]), probe.days, probe.treatments)
    outputs, rows = evaluate(backend, probe.sources, probe.x, shifts)
    assert rows.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    np.testing.assert_array_equal(outputs["eps"][rows == 0][0], outputs["eps"][rows == 0][1])
    single, _ = evaluate(backend, probe.sources[4:], probe.x[4:], shifts)
    np.testing.assert_array_equal(single["eps"][0], outputs["eps"][4])


def make_probes_of_tests(rows):
    from tadiff_rt.card import ScheduleConfig

    return make_probes(ScheduleConfig().build(), rows, SIZE)[2]


def test_an_empty_mask_is_said_and_not_measured(loaded, backend):
    net, card = loaded
    quiet = load_again(net, logit_bias=-100.0)
    reference = Reference.build(quiet, card, SETTINGS)
    exact = NetworkBackend(quiet, torch.float32, Count(None, 0))
    record = certified((quiet, card), reference, exact)
    assert record.passed
    assert record.ensemble.keys() == {"mean", "spread", "probability"}
    assert "the reference's mask is empty: Dice says nothing" in record.notes
    assert any("volume" in note for note in record.notes)


def test_a_full_mask_is_said_and_not_measured(loaded):
    net, card = loaded
    everywhere = load_again(net, logit_bias=100.0)
    reference = Reference.build(everywhere, card, SETTINGS)
    exact = NetworkBackend(everywhere, torch.float32, Count(None, 0))
    record = certified((everywhere, card), reference, exact)
    assert record.ensemble.keys() == {"mean", "spread", "probability", "volume"}
    assert record.notes == ("the reference's mask is the whole image: Dice says nothing",)


def load_again(net, logit_bias):
    import copy

    other = copy.deepcopy(net)
    other.out[2].bias.data[:4] += logit_bias
    return other


def test_an_untrained_network_is_certified(loaded):
    """Its outputs are 0 throughout, so that no error is relative to them."""
    net, card = loaded
    silent = load_again(net, 0.0)
    for p in silent.out[2].parameters():
        p.data.zero_()
    reference = Reference.build(silent, card, SETTINGS)
    exact = NetworkBackend(silent, torch.float32, Count(None, 0))
    assert certified((silent, card), reference, exact).passed
    wrong = Wrapped(exact, lambda eps, logits: (eps + 1e-3, logits))
    assert certified((silent, card), reference, wrong).outputs["eps"].value == pytest.approx(1e-3)


def test_errors_against_the_definition():
    rng = np.random.default_rng(3)
    exact = {"eps": rng.standard_normal((3, 2, 4, 4))}
    got = {"eps": exact["eps"].copy()}
    got["eps"][1, 0, 2, 2] += 0.5
    found = errors(got, exact)
    assert found["eps"] == pytest.approx(0.5 / np.abs(exact["eps"]).max())
    assert found["eps_l2"] == pytest.approx(0.5 / np.sqrt((exact["eps"][1] ** 2).sum()))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_limits_of_half_precision(precision):
    rng = np.random.default_rng(4)
    exact = {"eps": rng.standard_normal((2, 3, 8, 8))}
    budget = BUDGETS[precision]
    limits = allowed(budget, exact, {"eps": 0.0, "eps_l2": 0.0})
    peak, std = np.abs(exact["eps"]).max(), exact["eps"].std()
    assert limits["eps"] == pytest.approx({"fp16": 0.05, "bf16": 0.2}[precision] * std / peak)
    assert limits["eps_l2"] == {"fp16": 5e-3, "bf16": 3e-2}[precision]
    # The smallest cosine that the root mean square error leaves.
    assert np.sqrt(1 - budget.l2**2) >= {"fp16": 0.9999, "bf16": 0.999}[precision]


def test_limits_of_fp32_follow_rounding():
    limits = allowed(BUDGETS["fp32"], {"eps": np.ones((1, 1))}, {"eps": 1e-6, "eps_l2": 0.0})
    assert limits == {"eps": pytest.approx(1.8e-5), "eps_l2": pytest.approx(1e-5)}


def test_one_voxel_of_a_small_mask_is_allowed(loaded, reference, backend):
    """Its loss must not fail a mask of 40 voxels, nor two of them pass."""
    from tadiff_export.certify.ensemble import check_ensemble

    probability = np.zeros((1, SIZE, SIZE), np.float32)
    probability[0, 10:15, 10:18] = 1
    small = dataclasses.replace(
        reference.drawn, probability=probability, voxels=np.array([40, 40])
    )
    changed = dataclasses.replace(reference, drawn=small)
    limits = check_ensemble(changed, backend, BUDGETS["fp32"], Count(None, 0))
    assert limits["dice"].allowed == pytest.approx(1 - 2 * 39 / 79)
    assert limits["volume"].allowed == pytest.approx(1 / 80)


def test_progress_counts_to_the_end(loaded, backend):
    seen = []
    certify_artefact(
        *loaded,
        backend,
        precision="fp32",
        evaluated="here",
        settings=SETTINGS,
        progress=lambda done, total: seen.append((done, total)),
    )
    ends = [k for k, (done, total) in enumerate(seen) if done == total]
    assert len(ends) == 2
    assert ends[-1] == len(seen) - 1
    reference_total, total = seen[ends[0]][1], seen[-1][1]
    assert reference_total == 2 * 4 * 2 + 3 * 2 * 3
    # Buckets of 4 on four probes and three steps, then 2 samples of 3 steps.
    assert total == 4 * (4 + 3) + 6
    for part in (seen[: ends[0] + 1], seen[ends[0] + 1 :]):
        assert [done for done, _ in part] == sorted({done for done, _ in part})


def test_head_slices_look_like_heads():
    images = head_slices(1, 3, 48)
    assert images.shape == (3, 12, 48, 48)
    assert images.dtype == np.float32
    assert images.min() == 0
    assert 0.5 < images.max() <= 1
    assert (images[:, :, 0] == 0).all()
    assert ((images > 0).mean(axis=(2, 3)) > 0.3).all()
    inside = (images > 0).all(axis=(0, 1))
    assert images[:, :, inside].std(axis=-1).min() > 0.02
    distinct = {images[row, channel].tobytes() for row in range(3) for channel in range(12)}
    assert len(distinct) == 36
    np.testing.assert_array_equal(images, head_slices(1, 3, 48))


def test_probes_cover_the_schedule(loaded):
    schedule = loaded[1].schedule.build()
    probes = make_probes(schedule, 2, SIZE)
    assert [round(p.t, 1) for p in probes] == [1.0, 9.7, 600.4, 1000.0]
    assert {code for p in probes for code in p.treatments} == {0.0, 1.0, 2.0}
    assert len(CONDITIONS) == 4
    for k, probe in enumerate(probes):
        # The share of the image, by regression; the noise leaves an error of 0.04 at most.
        image = head_slices(k, 2, SIZE)[:, 9:]
        share = (probe.x * image).sum() / (image**2).sum()
        assert abs(share - math.sqrt(schedule.alpha_bar(probe.t))) < 0.2
    first, last = probes[0], probes[-1]
    assert np.abs(first.x).max() < 1.2  # almost an image
    assert abs(last.x.std() - 1) < 0.05  # noise; 6144 values: 5.5 standard errors


def test_figures_of_the_ensemble_are_distances(loaded, reference):
    """The reference against itself is at distance 0."""
    net, _ = loaded
    exact = NetworkBackend(net, torch.float64, Count(None, 0))
    record = certified(loaded, reference, exact, "fp16")
    assert {figure.value for figure in record.ensemble.values()} == {0.0}
    assert all(figure.value < 1e-7 for figure in record.outputs.values())
