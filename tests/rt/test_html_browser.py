"""The page in a browser without a network: it starts, follows its controls, and runs no data."""

import io
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from matplotlib.image import imread

from tadiff_rt.html import report_html
from tests.rt.comparisons import made_up_comparison
from tests.rt.test_html import Page, image_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]

# A GPU in software; as root Chromium has no sandbox.
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"
READY_MS = 30_000
LAPTOP = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    comparison = made_up_comparison(
        days=(84, 144), treatments=("TMZ", "none"), notes=[HOSTILE], name=HOSTILE
    )
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_bytes(report_html(comparison))
    return path


@contextmanager
def opened(browser, path, **options) -> Iterator:
    """The page, ready; whatever it requests, logs or throws is an error in the end."""
    context = browser.new_context(offline=True, **{"viewport": LAPTOP, **options})
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
    page.on("request", lambda request: wrong.append(f"request: {request.url[:80]}"))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-viewer=ready]", timeout=READY_MS)
    yield page
    context.close()
    inside = ("data:", "blob:", path.as_uri())
    assert [w for w in wrong if not w.removeprefix("request: ").startswith(inside)] == []


@pytest.fixture(scope="module")
def page(browser, report):
    with opened(browser, report) as page:
        yield page


@pytest.fixture
def fresh(page):
    """The page with every control where it was at the start."""
    page.click("[data-plan='0']")
    page.click("[data-sequence=t1c]")
    page.click("[data-view=axial]")
    page.select_option("#overlay", "none")
    shown(page, "84 TMZ t1c none")
    page.check("#outlines")
    page.evaluate("moveTo(startingPoint())")
    return page


def shown(page, what: str) -> None:
    page.wait_for_selector(f"#pictures[data-shown='{what}']", timeout=READY_MS)


def pixels(page, name: str) -> np.ndarray:
    """What is seen of a picture, with outlines and words, once its canvases are on the screen."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 60)))")
    return imread(io.BytesIO(page.locator(f".stage:has(#{name}-canvas)").screenshot()))


def differ(a: np.ndarray, b: np.ndarray) -> float:
    """Share of pixels that changed visibly."""
    return float((np.abs(a - b).max(axis=2) > 0.05).mean())


def reddish(image: np.ndarray) -> float:
    """Share of pixels that are no grey; the cross is almost."""
    return float((image[..., :3].max(axis=2) - image[..., :3].min(axis=2) > 0.15).mean())


def test_it_opens_with_both_pictures(fresh):
    assert fresh.is_visible("#last-canvas")
    assert fresh.is_visible("#forecast-canvas")
    assert not fresh.is_visible(".static")
    assert not fresh.is_visible("#status")
    for name in ("last", "forecast"):
        image = pixels(fresh, name)
        assert 0.1 < (image[..., :3].max(axis=2) > 0.2).mean() < 0.9  # a head on black
    assert fresh.inner_text("#last-title").startswith("Last scan, day 54: acquired")


def test_the_plan_selector_changes_picture_and_words(fresh):
    before, last = pixels(fresh, "forecast"), pixels(fresh, "last")
    assert fresh.inner_text("#forecast-title") == (
        "TMZ: predicted, day 84, not acquired, research use"
    )
    volume = fresh.inner_text("#forecast-text")
    fresh.click("[data-plan='3']")
    shown(fresh, "144 none t1c none")
    assert fresh.inner_text("#forecast-title") == (
        "no treatment: predicted, day 144, not acquired, research use"
    )
    assert fresh.inner_text("#forecast-text") != volume
    assert fresh.get_attribute("[data-plan='3']", "aria-pressed") == "true"
    assert fresh.get_attribute("[data-plan='0']", "aria-pressed") == "false"
    assert differ(before, pixels(fresh, "forecast")) > 0.01
    assert differ(last, pixels(fresh, "last")) < 0.001


def test_the_words_are_in_the_canvas_itself(fresh):
    labelled = fresh.evaluate(DRAWN_WORDS)
    words = "T1c, TMZ: predicted, day 84, not acquired, research use"
    assert labelled["texts"] == [words]
    assert labelled["bright"] > 200


# Pixels of NiiVue's own canvas, of which a saved picture consists, that words make brighter.
DRAWN_WORDS = """() => {
  const nv = viewers.forecast;
  const bottom = () => {
    nv.drawScene();
    const { drawingBufferWidth: width } = nv.gl;
    const bytes = new Uint8Array(4 * width * 30);
    nv.gl.readPixels(0, 0, width, 30, nv.gl.RGBA, nv.gl.UNSIGNED_BYTE, bytes);
    return bytes;
  };
  const labels = nv.document.labels;
  const worded = bottom();
  nv.document.labels = [];
  const bare = bottom();
  nv.document.labels = labels;
  nv.drawScene();
  const bright = worded.filter((value, i) => i % 4 === 0 && value > bare[i] + 60).length;
  return { texts: labels.map((label) => label.text), bright };
}"""


def test_the_slice_slider_moves_both_pictures(fresh):
    before = {name: pixels(fresh, name) for name in ("last", "forecast")}
    at = int(fresh.input_value("#slice"))
    fresh.locator("#slice").fill(str(at + 6))
    assert fresh.inner_text("#slice-value").startswith(f"{at + 6} of ")
    for name, image in before.items():
        assert differ(image, pixels(fresh, name)) > 0.02
    fresh.locator("#slice").fill(str(at))
    for name, image in before.items():
        assert differ(image, pixels(fresh, name)) < 0.001


def test_a_click_into_one_picture_moves_the_other(fresh):
    before, values = pixels(fresh, "forecast"), fresh.inner_text("#values")
    fresh.locator("#last-canvas").click(position={"x": 200, "y": 200})
    fresh.wait_for_function(
        "text => document.getElementById('values').textContent !== text", arg=values
    )
    assert differ(before, pixels(fresh, "forecast")) > 0.0005  # the cross moved


def test_values_at_the_cross_are_those_of_the_volumes(fresh, report):
    """What NiiVue reads of the volumes that the page decoded, and nibabel of the same JSON."""
    fresh.click("[data-plan='3']")
    fresh.select_option("#overlay", "std")
    shown(fresh, "144 none t1c std")
    fresh.evaluate("moveTo([0.3, 0.7, 0.45])")
    data = Page(report.read_bytes()).data
    expected = []
    for name in ("last t1c", "day144-none t1c", "day144-none std t1c"):
        volume = image_of(data, name).get_fdata()
        at = (int(f * n) for f, n in zip((0.3, 0.7, 0.45), volume.shape, strict=True))
        expected.append(100 * volume[tuple(at)])
    told = re.findall(r"([\d.]+) %", fresh.inner_text("#values"))
    assert [float(text) for text in told] == pytest.approx(expected, abs=0.5)
    assert all(value > 1 for value in expected)


@pytest.mark.parametrize("overlay", ["probability", "std", "difference", "difference_std"])
def test_overlays_colour_the_forecast_and_explain_themselves(fresh, overlay):
    fresh.uncheck("#outlines")
    grey = pixels(fresh, "forecast")
    assert reddish(grey) < 0.001
    fresh.select_option("#overlay", overlay)
    shown(fresh, f"84 TMZ t1c {overlay}")
    coloured = pixels(fresh, "forecast")
    assert reddish(coloured) > 0.002
    assert fresh.is_visible("#colour-bar")
    assert fresh.inner_text("#bar-high").endswith("%")
    fresh.locator("#opacity").fill("0")
    assert reddish(pixels(fresh, "forecast")) < 0.001
    fresh.locator("#opacity").fill("60")
    assert differ(coloured, pixels(fresh, "forecast")) < 0.001
    fresh.select_option("#overlay", "none")
    shown(fresh, "84 TMZ t1c none")
    assert differ(grey, pixels(fresh, "forecast")) < 0.001
    assert not fresh.is_visible("#colour-bar")


def test_the_reference_has_no_difference_and_says_so(fresh):
    fresh.select_option("#overlay", "difference")
    assert not fresh.is_visible("#overlay-note")
    fresh.click("[data-plan='1']")
    shown(fresh, "84 none t1c difference")
    assert fresh.inner_text("#overlay-note").startswith("This plan is the reference")
    assert not fresh.is_visible("#colour-bar")


def test_outlines_surround_the_tumour(fresh):
    """The blue outline of the known mask has the area of the mask in the slice."""
    outlined = pixels(fresh, "last")
    fresh.uncheck("#outlines")
    bare = pixels(fresh, "last")
    line = np.abs(outlined - bare).max(axis=2) > 0.2
    rows, columns = np.nonzero(line)
    expected = fresh.evaluate(MASK_EXTENT)
    scale = fresh.evaluate("viewers.last.canvas.width") / outlined.shape[1]
    seen = [np.ptp(columns) * scale, np.ptp(rows) * scale]
    assert seen == pytest.approx(expected, abs=6)
    assert reddish(bare) < 0.001


# Width and height of the mask in the slice shown, in pixels of the canvas, voxel by voxel.
MASK_EXTENT = """async () => {
  const name = data.last.mask;
  const [nx, ny, nz] = volumes.kind(name).shape;
  const levels = await volumes.levels(name);
  const nv = viewers.last;
  const k = Math.floor(nv.scene.crosshairPos[2] * nz);
  const held = [[], []];
  for (let j = 0; j < ny; j++) {
    for (let i = 0; i < nx; i++) {
      if (levels[i + nx * (j + ny * k)] < 125) continue;
      held[0].push(i);
      held[1].push(j);
    }
  }
  const [tile] = nv.screenSlices;
  const mm = held.map((at) => 2 * (Math.max(...at) - Math.min(...at) + 1));
  return [
    Math.abs((mm[0] / tile.fovMM[0]) * tile.leftTopWidthHeight[2]),
    Math.abs((mm[1] / tile.fovMM[1]) * tile.leftTopWidthHeight[3]),
  ];
}"""


def test_the_patients_right_is_on_the_left(fresh):
    """The made-up tumour lies at 35 % from left to right of the patient's: x runs to the left."""
    outlined = pixels(fresh, "last")
    fresh.uncheck("#outlines")
    line = np.abs(outlined - pixels(fresh, "last")).max(axis=2) > 0.2
    _, columns = np.nonzero(line)
    assert columns.mean() > 0.52 * line.shape[1]


def test_three_planes_are_shown_on_demand(fresh):
    axial = pixels(fresh, "forecast")
    fresh.click("[data-view=planes]")
    assert fresh.evaluate("viewers.forecast.screenSlices.length") == 3
    assert fresh.evaluate("viewers.last.screenSlices.length") == 3
    assert differ(axial, pixels(fresh, "forecast")) > 0.05


def test_the_last_of_quick_clicks_wins(fresh):
    """Decoding takes time, and what was asked for first may be ready last."""
    fresh.evaluate(
        "for (const plan of [3, 1, 2]) document.querySelector(`[data-plan='${plan}']`).click()"
    )
    shown(fresh, "144 TMZ t1c none")
    fresh.wait_for_timeout(300)
    assert fresh.get_attribute("#pictures", "data-shown") == "144 TMZ t1c none"
    assert "day 144" in fresh.inner_text("#forecast-title")


def test_planted_scripts_do_not_run(fresh):
    assert fresh.title() == "Forecast of brain MRI: predicted, not acquired, research use"
    assert HOSTILE in fresh.inner_text(".notes")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("light", {}),
        ("dark", {"color_scheme": "dark"}),
        ("narrow", {"viewport": {"width": 600, "height": 900}}),
    ],
)
def test_it_fits_the_window(browser, report, tmp_path, name, options):
    with opened(browser, report, **options) as page:
        page.screenshot(path=tmp_path / f"{name}.png")
        width, inner = page.evaluate("[document.body.scrollWidth, window.innerWidth]")
        assert width <= inner
        for words in ("Tumour volume", "How it was made"):
            assert words in page.inner_text("main")
    image = imread(tmp_path / f"{name}.png")
    light = image[5, 5, :3].mean() > 0.5
    assert light == (name != "dark")


def test_paper_gets_the_static_picture(browser, report):
    with opened(browser, report) as page:
        page.emulate_media(media="print")
        assert page.is_visible(".static img")
        assert not page.is_visible("#controls")
        assert not page.is_visible("#pictures")
        assert page.evaluate("document.querySelector('.static img').naturalWidth") > 300


def test_without_webgl_the_static_picture_stays(browser, report):
    context = browser.new_context(offline=True, viewport=LAPTOP)
    page = context.new_page()
    page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    page.goto(report.as_uri())
    assert page.is_visible(".static img")
    assert "needs JavaScript and WebGL 2" in page.inner_text("#status")
    assert not page.is_visible("#controls")
    context.close()


def test_a_damaged_volume_is_told(browser, report, tmp_path):
    """The picture of the forecast stays, and the page says why the viewer does not."""
    damaged = tmp_path / "damaged.html"
    damaged.write_bytes(report.read_bytes().replace(b'"gzip":"H4sI', b'"gzip":"AAAA'))
    context = browser.new_context(offline=True, viewport=LAPTOP)
    page = context.new_page()
    page.goto(damaged.as_uri())
    page.wait_for_function(
        "document.getElementById('status').textContent.startsWith('The viewer could not start')",
        timeout=READY_MS,
    )
    assert page.is_visible("#status")
    assert page.is_visible(".static img")
    context.close()
