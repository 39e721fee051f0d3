"""The page of figures: what is drawn is what was found."""

import dataclasses

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex

from tadiff_train.evaluation import Evaluation
from tadiff_train.evaluation.figures import INK, STYLE, draw, results_png
from tadiff_train.evaluation.pooled import pooled
from tadiff_train.evaluation.results import GrowthResult
from tests.train.toy_results import calibration, patient, score

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def evaluation() -> Evaluation:
    """Volumes, Dice and horizons that tell patients and methods apart."""
    results = []
    for i in range(9):
        scores = [
            score(0.3 + 0.05 * i + shift, volume_ml=2.0 + i + 10 * shift)
            for shift in (0.1, 0.0, 0.2)
        ]
        growth = GrowthResult(scores[2], {}, calibration((1.0, 2.0)).intervals, "")
        found = patient(i, scores[0], scores[1], true_ml=3.0 + i, horizon_days=20 + 30 * i)
        results.append(dataclasses.replace(found, growth=growth, calibration=calibration()))
    return Evaluation(tuple(results), population="toys")


def panels(evaluation: Evaluation) -> list:
    return draw(evaluation).axes


def points(axes, method: str) -> np.ndarray:
    """Of the unjoined markers of a method."""
    (line,) = [
        line
        for line in axes.lines
        if line.get_linestyle() == "None" and to_hex(line.get_color()) == INK[method].lower()
    ]
    return np.array(line.get_xydata())


def test_the_reliability_curve_is_that_of_all_voxels(evaluation: Evaluation):
    axes = panels(evaluation)[0]
    curve = pooled(evaluation).tumour
    (line,) = [line for line in axes.lines if line.get_linestyle() == "-"]
    np.testing.assert_allclose(
        line.get_xydata(), np.stack([curve.mean_probability, curve.frequency], axis=1)
    )
    heights = [bar.get_height() for bar in axes.patches]
    assert np.argmax(heights) == np.argmax(curve.count)
    assert any(f"{curve.ece:.4f}" in text.get_text() for text in axes.get_legend().texts)


def test_ranks_are_bars(evaluation: Evaluation):
    axes = panels(evaluation)[1]
    heights = [bar.get_height() for bar in axes.patches if bar.get_width() == 0.8]
    assert heights == pooled(evaluation).ranks.tolist()
    assert [line.get_ydata()[0] for line in axes.lines] == [9 / 4]


def test_spread_is_drawn_against_error_by_modality(evaluation: Evaluation):
    axes = panels(evaluation)[2]
    skill = evaluation.results[0].calibration.images["t1"].spread_skill
    lines = [line for line in axes.lines if line.get_linestyle() == "-"]
    assert len(lines) == 3
    for line in lines:
        np.testing.assert_allclose(
            line.get_xydata(), np.stack([skill.bin_spread, skill.bin_error], axis=1)
        )


def test_volumes_are_forecast_against_true(evaluation: Evaluation):
    axes = panels(evaluation)[3]
    for method in INK:
        expected = [(r.true_ml, r.score_of(method).volume_ml) for r in evaluation.results]
        np.testing.assert_allclose(points(axes, method), expected)
    interval = evaluation.results[2].calibration.intervals[-1]
    bars = [line for line in axes.lines if set(line.get_xdata()) == {5.0}]
    assert [tuple(bar.get_ydata()) for bar in bars] == [(interval.low_ml, interval.high_ml)]


def test_intervals_are_drawn_at_their_level_for_both_methods(evaluation: Evaluation):
    axes = panels(evaluation)[4]
    model, growth = axes.containers
    assert model.lines[0].get_ydata().tolist() == [1, 1, 1]
    assert growth.lines[0].get_ydata().tolist() == [0, 0, 1]
    np.testing.assert_allclose(model.lines[0].get_xdata(orig=False), [0.5, 0.8, 0.9], atol=0.01)


def test_dice_is_drawn_by_horizon_with_the_mean_of_each_group(evaluation: Evaluation):
    axes = panels(evaluation)[5]
    for method in INK:
        expected = [(r.horizon_days, r.score_of(method).dice) for r in evaluation.results]
        np.testing.assert_allclose(points(axes, method), expected)
    model = [c for c in axes.collections if to_hex(c.get_colors()[0]) == INK["model"].lower()]
    means = [float(bar.get_segments()[0][0][1]) for bar in model]
    dices = np.array([r.model.dice for r in evaluation.results])
    np.testing.assert_allclose(means, [dices[:2].mean(), dices[2:4].mean(), dices[4:].mean()])


def test_one_sample_without_growth_is_drawn_as_far_as_it_goes():
    single = calibration((5.0,))
    results = [patient(i, score(0.5), score(0.4), calibration=single) for i in range(3)]
    axes = panels(Evaluation(tuple(results)))
    for at in (1, 2):
        assert [text.get_text() for text in axes[at].texts] == ["needs 2 samples or more"]
    labels = [text.get_text() for text in axes[5].get_legend().texts]
    assert labels == ["copy of the last scan", "model", "mean of a group"]


def test_patients_without_a_dice_are_left_out():
    results = [patient(i, score(0.5), score(None)) for i in range(3)]
    axes = panels(Evaluation(tuple(results)))[5]
    assert len(points(axes, "model")) == 3
    with pytest.raises(ValueError, match="not enough values"):
        points(axes, "copy")


def test_equal_results_give_equal_bytes_whatever_the_users_style(evaluation: Evaluation):
    picture = results_png(evaluation)
    assert picture.startswith(PNG)
    with mpl.rc_context({"font.size": 30, "lines.linewidth": 9, "savefig.facecolor": "red"}):
        assert results_png(evaluation) == picture
        assert mpl.rcParams["font.size"] == 30


def test_text_is_large_and_stays_inside(evaluation: Evaluation):
    """At least 12 points on a page of 18 inches; nothing is cut off."""
    with mpl.rc_context(STYLE):
        figure = draw(evaluation)
        figure.canvas.draw()
    texts = [text for text in figure.findobj(mpl.text.Text) if text.get_text()]
    assert len(texts) > 50
    assert min(text.get_fontsize() for text in texts) >= 12
    drawn = figure.get_tightbbox()
    assert 0 <= drawn.x0 <= drawn.x1 <= 18
    assert 0 <= drawn.y0 <= drawn.y1 <= 11


def test_nothing_is_not_drawn():
    with pytest.raises(ValueError, match="no results"):
        draw(Evaluation(()))
