"""The page: one file that loads nothing, whose volumes and numbers are those of the comparison."""

import base64
import dataclasses
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise

import nibabel as nib
import numpy as np
import pytest
from skimage.measure import block_reduce

from tadiff_rt.html import report_html, words
from tadiff_rt.html.curve import growth_curve, legend, ticks
from tadiff_rt.html.page import MAX_BYTES
from tadiff_rt.html.viewer import DETAILS, IMAGE_LEVELS, SHARE_LEVELS, Detail, viewer_data
from tadiff_rt.html.voxels import bounding_box
from tadiff_rt.scenarios import PastVolume, Scenario, VolumeDifference
from tests.rt.comparisons import made_up_comparison

HTML = files("tadiff_rt.html")
TMZ = Scenario(84, "TMZ")
LATE = Scenario(144, "none")
HOSTILE = (
    "<script>document.title='owned'</script>",
    "</script><script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "$data ${data} {{data}} $$ \\u003c &lt; ]]> <!-- \x00\x08\ud800",
)


class Page(HTMLParser):
    """Elements, texts and scripts of a page."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self.open.append(tag)
        self.texts.setdefault(tag, []).append("")

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1]][-1] += data

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def all(self, tag, **wanted):
        return [a for t, a in self.elements if t == tag and wanted.items() <= a.items()]

    @property
    def text(self) -> str:
        shown = (t for tag, ts in self.texts.items() if tag not in ("script", "style") for t in ts)
        return "\n".join(shown)

    @property
    def data(self) -> dict:
        (at,) = (i for i, a in enumerate(self.all("script")) if "type" in a)
        return json.loads(self.texts["script"][at])


@pytest.fixture(scope="module")
def comparison():
    return made_up_comparison()


@pytest.fixture(scope="module")
def raw(comparison):
    return report_html(comparison)


@pytest.fixture(scope="module")
def page(raw):
    return Page(raw)


def image_of(data: dict, name: str) -> nib.Nifti1Image:
    """A volume of the page, read as NIfTI, with what it is stored as a difference to."""
    entry = data["volumes"][name]
    kind = data["kinds"][entry["kind"]]

    def levels(at: str) -> np.ndarray:
        stored = data["volumes"][at]
        own = np.frombuffer(gzip.decompress(base64.b64decode(stored["gzip"])), np.uint8)
        return own + levels(stored["like"]) if stored["like"] else own

    return nib.Nifti1Image.from_bytes(base64.b64decode(kind["header"]) + levels(name).tobytes())


def cropped_ras(forecast, volume: np.ndarray, box) -> np.ndarray:
    """A volume on the patient's voxels in RAS, by nibabel, and cropped."""
    return nib.as_closest_canonical(nib.Nifti1Image(volume, forecast.affine)).get_fdata()[box]


def last_image(forecast, modality: int) -> np.ndarray:
    prepared = forecast.prepared
    return prepared.to_patient_grid(prepared.sources[:, modality - 3])


def head_box(forecast):
    brain = np.any([last_image(forecast, m) > 0 for m in range(3)], axis=0)
    return bounding_box(cropped_ras(forecast, brain.astype(np.uint8), ...) > 0)


# One file that loads nothing.


def test_nothing_is_loaded_from_anywhere(page):
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form", "video")
        for name in ("src", "href", "srcset", "action", "poster", "xlink:href", "data"):
            assert attributes.get(name, "data:").startswith("data:")
        assert not any(name.startswith("on") for name in attributes)
        assert "style" not in attributes  # the policy of the page would not apply it
    style = "".join(page.texts["style"])
    assert "url(" not in style
    assert "@import" not in style
    ours = [(HTML / name).read_text() for name in ("report.js", "volumes.js", "overlays.js")]
    assert not re.search(r"https?:|fetch\(|XMLHttpRequest|innerHTML|eval\(", "".join(ours))


def test_the_browser_may_run_only_what_is_in_the_file(page):
    """Hashes as browsers compute them: of the text between the tags."""
    (meta,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    policy = dict(part.split(maxsplit=1) for part in meta["content"].split("; "))
    tags = zip(page.all("script"), page.texts["script"], strict=True)
    scripts = [text for a, text in tags if "type" not in a]
    assert policy["default-src"] == "'none'"
    assert policy["script-src"].split() == [csp_hash(text) for text in scripts]
    assert policy["style-src"].split() == [csp_hash(text) for text in page.texts["style"]]
    assert policy["img-src"] == "data: blob:"
    assert not re.search(r"unsafe|\*|http", meta["content"])


def csp_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_the_viewer_is_the_released_one_with_its_licence(raw):
    """The digest is that of dist/niivue.umd.js in the npm package @niivue/niivue 0.69.0."""
    script = (HTML / "niivue.umd.js").read_bytes()
    digest = hashlib.sha256(script).hexdigest()
    assert digest == "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
    assert (HTML / "niivue.umd.js.sha256").read_text().split() == [digest, "niivue.umd.js"]
    assert b'version:"0.69.0"' in script
    licence = "Copyright (c) 2021, Niivue"
    assert licence in (HTML / "niivue.LICENSES.txt").read_text()
    assert licence.encode() in raw  # the page redistributes it


def test_equal_comparisons_give_equal_bytes(raw):
    assert report_html(made_up_comparison()) == raw


def test_neither_names_nor_paths_are_in_it(raw):
    assert b"sub-secret" not in raw
    assert b"nii.gz" not in raw.split(b'id="data">')[0]


# Escaping.


def test_what_comes_from_data_is_text_and_nothing_else(comparison, page):
    hostile = made_up_comparison(
        notes=HOSTILE, trained_on=f"simulated {HOSTILE[1]}", name=HOSTILE[0]
    )
    spoiled = Page(report_html(hostile))
    plain = [tag for tag, _ in page.elements]
    added = [tag for tag, _ in spoiled.elements]
    for note in range(len(HOSTILE)):
        assert added.count("li") == plain.count("li") + len(HOSTILE), note
    assert len(added) == len(plain) + len(HOSTILE) + 3  # the section of the notes
    for text in HOSTILE[:3]:
        assert text in spoiled.text
    assert "$data ${data} {{data}} $$ \\u003c &lt; ]]> <!-- \ufffd\ufffd\ufffd" in spoiled.text
    assert all("onerror" not in a for _, a in spoiled.elements)


def test_json_holds_no_end_of_its_script(comparison):
    """Names of treatments come from a model card."""
    name = "</script ><!--<script >&"
    forecasts = {Scenario(84, name): comparison.forecasts[TMZ]}
    odd = dataclasses.replace(comparison, forecasts=forecasts, differences=())
    raw = report_html(odd)
    assert Page(raw).data["plans"][0]["treatment"] == name
    block = raw.split(b'id="data">')[1].split(b"</script>\n<script>")[0]
    assert not {b"<", b">", b"&"} & {bytes([letter]) for letter in block}


# The volumes.


def test_images_are_those_of_the_forecast(comparison, page):
    box = head_box(comparison.first)
    for scenario, forecast in comparison.forecasts.items():
        for m, modality in enumerate(("t1", "t1c", "flair")):
            shown = image_of(page.data, f"{scenario.name} {modality}").get_fdata()
            mean = forecast.mean[m] / forecast.prepared.intensity_scale[m]
            expected = cropped_ras(forecast, mean, box)
            assert np.abs(shown - expected).max() <= 0.5 / IMAGE_LEVELS + 1e-6
            last = image_of(page.data, f"last {modality}").get_fdata()
            expected = cropped_ras(forecast, last_image(forecast, m), box)
            assert np.abs(last - expected).max() <= 0.5 / IMAGE_LEVELS + 1e-6


def test_tumours_and_differences_are_those_of_the_forecast(comparison, page):
    data, box = page.data, head_box(comparison.first)
    for scenario, forecast in comparison.forecasts.items():
        shown = image_of(data, f"{scenario.name} probability").get_fdata()
        expected = cropped_ras(forecast, forecast.tumour_probability, box)
        assert np.abs(shown - expected).max() <= 0.5 / SHARE_LEVELS + 1e-6
    (*_, last) = comparison.differences
    shown = image_of(data, f"{last.scenario.name} difference").get_fdata()
    expected = cropped_ras(comparison.first, last.probability, box)
    assert np.abs(shown - expected).max() <= 0.005 + 1e-6
    assert shown.min() < -0.5  # less tumour under TMZ: the sign is kept
    mask = comparison.first.prepared
    known = mask.to_patient_grid(mask.masks[-1]).astype(np.uint8)
    shown = image_of(data, "last mask").get_fdata()
    assert np.array_equal(shown > 0.5, cropped_ras(comparison.first, known, box) > 0)


def test_standard_deviations_are_clipped_only_where_the_bar_says_so(comparison, page):
    data, box = page.data, head_box(comparison.first)
    high = data["kinds"]["std"]["high"]
    clipped = 0
    for scenario, forecast in comparison.forecasts.items():
        for m, modality in enumerate(("t1", "t1c", "flair")):
            shown = image_of(data, f"{scenario.name} std {modality}").get_fdata()
            std = forecast.std[m] / forecast.prepared.intensity_scale[m]
            expected = cropped_ras(forecast, std, box)
            assert np.abs(shown - np.minimum(expected, high)).max() <= high / 126 + 1e-6
            clipped += (expected[expected > 0] > high).mean()
    assert clipped / len(comparison.forecasts) / 3 < 0.02


def test_voxels_lie_where_they_were(comparison, page):
    """The tumour's centre in millimetres, from all voxels of the patient and from those shown."""
    forecast = comparison.forecasts[LATE]
    shown = image_of(page.data, f"{LATE.name} probability")
    patient = nib.Nifti1Image(forecast.tumour_probability, forecast.affine)
    assert np.allclose(centre_mm(shown), centre_mm(patient), atol=0.05)


def centre_mm(image: nib.Nifti1Image) -> np.ndarray:
    weights = image.get_fdata()
    at = np.array([(i * weights).sum() for i in np.indices(weights.shape)]) / weights.sum()
    return nib.affines.apply_affine(image.affine, at)


@pytest.mark.parametrize("detail", [Detail(4, 6, 4), Detail(2, 4, 6)])
def test_blocks_are_averaged(comparison, monkeypatch, detail):
    monkeypatch.setattr("tadiff_rt.html.viewer.DETAILS", (detail,))
    data = viewer_data(comparison, 1)
    forecast, box = comparison.forecasts[LATE], head_box(comparison.first)
    for name, volume, edge, levels in (
        ("probability", forecast.tumour_probability, detail.in_plane_mm, SHARE_LEVELS),
        ("t1", forecast.mean[0] / forecast.prepared.intensity_scale[0], detail.in_plane_mm, 127),
    ):
        blocks = (int(edge // 2), int(edge // 2), int(detail.slice_mm // 2))
        expected = block_reduce(cropped_ras(forecast, volume, box), blocks, np.mean, cval=0)
        image = image_of(data, f"{LATE.name} {name}")
        assert image.header.get_zooms() == (edge, edge, detail.slice_mm)
        assert np.abs(image.get_fdata() - expected).max() <= 0.5 / levels + 1e-6
    spread = data["kinds"]["std"]["spacing_mm"]
    assert spread == [detail.spread_mm, detail.spread_mm, detail.slice_mm]
    shown = image_of(data, f"{LATE.name} probability")
    patient = nib.Nifti1Image(forecast.tumour_probability, forecast.affine)
    assert np.allclose(centre_mm(shown), centre_mm(patient), atol=0.1)


@pytest.mark.parametrize("axcodes", ["LPS", "PLI", "SAR"])
def test_the_page_does_not_depend_on_how_files_are_stored(page, axcodes):
    stored = Page(report_html(made_up_comparison(axcodes=axcodes))).data
    assert stored == page.data


def test_it_opens_at_the_largest_slice_of_the_tumour(comparison, page):
    data = page.data
    shown = image_of(data, f"{TMZ.name} probability").get_fdata() > 0.5
    x, y, z = data["start"]
    assert shown[:, :, z].sum() == shown.sum(axis=(0, 1)).max()
    assert shown[x, y, z]


# The size.


def test_the_finest_detail_within_the_budget_is_taken(comparison):
    sizes = {}
    for budget in (10**9, 400_000, 150_000, 60_000, 1):
        data = viewer_data(comparison, budget)
        size = sum(len(entry["gzip"]) for entry in data["volumes"].values())
        sizes[budget] = (size, data["kinds"]["image"]["spacing_mm"])
        assert size <= budget or budget == 1
    assert sizes[10**9][1] == [2, 2, 2]
    assert sizes[1][1] == [6, 6, 6]
    voxels = [np.prod(mm) for _, mm in sizes.values()]
    assert all(a <= b for a, b in pairwise(voxels))
    assert len(set(voxels)) >= 3


def test_details_go_from_fine_to_coarse():
    edges = [(d.in_plane_mm**2 * d.slice_mm, d.spread_mm) for d in DETAILS]
    assert edges == sorted(edges)


def test_the_page_says_at_which_resolution_it_shows_volumes(comparison, page, monkeypatch):
    assert "Shown at 2 × 2 × 2 mm" in page.text
    assert "averaged over" not in page.text
    monkeypatch.setattr("tadiff_rt.html.viewer.DETAILS", (Detail(4, 6, 8),))
    coarse = Page(report_html(comparison)).text
    assert "Shown at 4 × 4 × 6 mm" in coarse
    assert "standard deviations are averaged over 8 × 8 × 6 mm" in coarse


@pytest.mark.slow
def test_a_large_case_with_nine_plans_is_below_15_mb():
    """192 voxels of 1 mm a side; the forecasts hold as much noise of their own as is common."""
    large = made_up_comparison(
        (192, 192, 192),
        days=(84, 144, 234),
        treatments=("CRT", "TMZ", "none"),
        spacing_mm=1.0,
        samples=5,
    )
    raw = report_html(large)
    assert len(raw) <= MAX_BYTES < 15_000_000
    data = Page(raw).data
    assert len(data["plans"]) == 9
    x, y, z = data["kinds"]["image"]["spacing_mm"]
    assert x == y == 1
    assert z <= 3


# Words and numbers.


def test_every_picture_says_that_it_is_predicted(comparison, page):
    """The viewer burns the labels of the plans into its canvas."""
    for scenario, plan in zip(comparison.forecasts, page.data["plans"], strict=True):
        words_of_day = f"predicted, day {scenario.day}, not acquired, research use"
        assert plan["label"].endswith(words_of_day)
        assert any(f"{words_of_day}" in title for title in page.texts["title"])
    every = "predicted, days 84 to 144, not acquired, research use"
    (picture,) = page.all("img")
    assert every in picture["alt"]
    assert any(every in text for text in page.texts["figcaption"])
    assert any(every in text for text in page.texts["text"])  # in the drawing of the curve
    assert every in page.texts["caption"][0]
    assert page.data["last"]["label"] == "last scan, day 54, acquired"
    assert "forecast: tumour probability one half" in page.text


def test_a_model_of_simulated_patients_is_marked(page):
    marked = "The model was trained on simulated patients."
    assert page.all("div", **{"class": "banner"})
    assert marked in page.text
    real = Page(report_html(made_up_comparison(trained_on="27 patients of SAILOR")))
    assert marked not in real.text
    assert "27 patients of SAILOR" in real.text


def test_differences_are_in_plain_words(comparison):
    volume = VolumeDifference(-14.21, -16.94, -11.48, 0.9, (-14.0, -14.42))
    apart = dataclasses.replace(comparison.differences[0], volume_ml=volume)
    told = dataclasses.replace(comparison, differences=(apart,))
    page = Page(report_html(told))
    sentence = "with the same noise, TMZ minus none: −14.2 ml (90 % −16.9 to −11.5)"
    assert any(text.endswith(sentence) for text in page.texts["li"])
    assert "−14.2 ml (90 % −16.9 to −11.5)" in page.texts["td"]
    assert "the reference" in page.texts["td"]


@pytest.mark.parametrize(
    ("value", "text"), [(-0.04, "0.0"), (0.0, "0.0"), (-0.05001, "−0.1"), (12.25, "12.2")]
)
def test_numbers_have_one_minus_sign(value, text):
    assert words.number(value) == text


def test_the_table_has_the_numbers_of_every_scenario(comparison, page):
    cells = page.texts["td"]
    per_row = len(cells) // len(comparison.forecasts)
    for i, (scenario, forecast) in enumerate(comparison.forecasts.items()):
        row, volume = cells[i * per_row : (i + 1) * per_row], forecast.volume_ml
        low, high = volume.mean_interval_ml
        assert row[:6] == [
            str(scenario.day),
            "no treatment" if scenario.treatment == "none" else scenario.treatment,
            f"{volume.mean_ml:.1f}",
            f"{volume.low_ml:.1f} to {volume.high_ml:.1f}",
            f"{low:.1f} to {high:.1f}",
            "3",
        ]


def test_notes_and_origin_are_told_once(comparison):
    note = "target: day 900 is beyond the trained range; extrapolated on request"
    page = Page(report_html(made_up_comparison(notes=[note])))
    assert page.texts["li"].count(note) == 1
    for text in ("made-up", "Research only.", "ddim", "0123456789abcdef" * 4):
        assert any(text in told for told in page.texts["dd"])


# The growth curve.


def drawn(page: Page, name: str) -> list[dict[str, str]]:
    return [a for _, a in page.elements if a.get("class") == name]


def scale(page: Page, name: str, axis: str) -> np.poly1d:
    """Pixels to numbers, from where the numbers of an axis stand."""
    ticks = [
        (float(a[axis]), float(text))
        for (tag, a), text in zip(
            [e for e in page.elements if e[0] == "text"], page.texts["text"], strict=True
        )
        if a["class"] == name
    ]
    return np.poly1d(np.polyfit(*zip(*ticks, strict=True), 1))


def test_volumes_of_other_slices_are_not_joined():
    """The forecast of a part of the tumour does not go on from the whole of it."""
    whole = made_up_comparison()
    held = tuple(whole.first.slices)
    tumour = whole.first.prepared.masks[-1].any(axis=(1, 2)).nonzero()[0].tolist()
    part = dataclasses.replace(
        whole,
        forecasts={
            scenario: dataclasses.replace(forecast, slices=(tumour[0],))
            for scenario, forecast in whole.forecasts.items()
        },
    )
    assert set(tumour) <= set(held)
    assert len(tumour) > 1
    for comparison, points in ((whole, 3), (part, 2)):
        curve = growth_curve(comparison)
        lines = [n.get("points") for n in curve.iter("polyline") if n.get("class") == "mean"]
        assert [len(line.split()) for line in lines] == [points] * 2
        assert ("only part" in legend(comparison)) == (comparison is part)


def test_the_curve_shows_the_volumes_on_their_days(comparison, page):
    day = scale(page, "tick middle", "x")
    below = scale(page, "tick end", "y")

    def ml(y: object) -> float:
        return below(float(y) + 4)  # numbers stand 4 pixels below their lines

    past = drawn(page, "past")[1:]  # after the line that joins them
    for known, mark in zip(comparison.past, past, strict=True):
        assert day(float(mark["cx"])) == pytest.approx(known.day, abs=0.2)
        assert ml(mark["cy"]) == pytest.approx(known.volume_ml, abs=0.05)
    intervals, samples = iter(drawn(page, "interval")), iter(drawn(page, "sample"))
    for treatment in ("TMZ", "none"):
        for scenario in (s for s in comparison.forecasts if s.treatment == treatment):
            volume = comparison.forecasts[scenario].volume_ml
            x, low, high = interval(next(intervals)["d"])
            assert day(x) == pytest.approx(scenario.day, abs=1)  # beside the other's
            assert ml(low) == pytest.approx(volume.low_ml, abs=0.05)
            assert ml(high) == pytest.approx(volume.high_ml, abs=0.05)
            for volume_ml in volume.samples_ml:
                assert ml(next(samples)["cy"]) == pytest.approx(volume_ml, abs=0.05)


def interval(path: str) -> tuple[float, float, float]:
    """x, and y of the low and the high end of an interval's bar."""
    x, high, low = re.fullmatch(r"M[\d.]+,[\d.]+h8M([\d.]+),([\d.]+)V([\d.]+)M.*", path).groups()
    return float(x), float(low), float(high)


@pytest.mark.parametrize("top", [0.1, 0.98, 1.0, 3.7, 10, 49.9, 250, 1234])
def test_ticks_are_round_and_reach_the_top(top):
    marks = ticks(top)
    step = marks[1]
    assert marks[0] == 0
    assert marks[-2] < top <= marks[-1] * (1 + 1e-9)
    assert f"{step:e}"[0] in "125"
    assert 3 <= len(marks) <= 7


# What may be missing.


def test_without_masks_the_past_is_unknown():
    bare = made_up_comparison(masks=False)
    page = Page(report_html(bare))
    assert all(p.volume_ml is None for p in bare.past)
    assert page.data["last"]["mask"] is None
    assert not drawn(page, "past")
    assert "the volumes of past scans are not known" in page.text
    assert "known tumour mask" not in page.text


def test_one_sample_has_no_interval_and_no_uncertainty():
    page = Page(report_html(made_up_comparison(samples=1, treatments=("TMZ",), days=(84,))))
    assert [a["value"] for a in page.all("option")] == ["none", "probability"]
    assert not drawn(page, "interval")
    assert "needs 2 samples" in page.texts["td"]
    assert "(one sample, no interval)" in page.data["plans"][0]["volume"]
    assert len(page.all("button", **{"data-plan": "0"})) == 1
    assert "h3" not in page.texts  # that of the differences


def test_one_sample_of_two_treatments_has_a_difference_without_spread():
    page = Page(report_html(made_up_comparison(samples=1)))
    options = [a["value"] for a in page.all("option")]
    assert options == ["none", "probability", "difference"]


def test_no_tumour_at_all(comparison):
    empty = {}
    for scenario, forecast in comparison.forecasts.items():
        nothing = np.zeros_like(forecast.tumour_probability)
        none = dataclasses.replace(
            forecast.volume_ml, mean_ml=0.0, low_ml=0.0, high_ml=0.0, samples_ml=(0.0, 0.0)
        )
        empty[scenario] = dataclasses.replace(forecast, tumour_probability=nothing, volume_ml=none)
    healed = dataclasses.replace(
        comparison, forecasts=empty, differences=(), past=(PastVolume(54, "CRT", 0.0),)
    )
    page = Page(report_html(healed))
    shape = page.data["kinds"]["image"]["shape"]
    assert page.data["start"] == [n // 2 for n in shape]
