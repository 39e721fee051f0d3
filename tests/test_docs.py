"""The pages say what the code computes: generated tables, the picture, claims, commands, links."""

import re
from itertools import pairwise, product
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import typer.main

from benchmarks import distance_picture, engines_table, spread_table
from benchmarks.spread_table import GRIDS, INFORMED, LINSPACE, LOGSNR, ROUNDED, STEPS, TRAILING
from tadiff_rt.certify import analytic, command, network, report
from tadiff_rt.cli import app
from tadiff_rt.solvers import SOLVERS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
PAGE = (DOCS / "solvers.md").read_text(encoding="utf-8")
FLAT = " ".join(PAGE.split())
BLOCK = "<!-- generated: a --> old <!-- end: a -->"


@pytest.fixture(scope="module")
def found():
    return spread_table.measure()


def keeps(found, grid, solver) -> list[int]:
    """Steps at which the solver keeps every spread on the grid."""
    cells = found[grid, solver].ratio
    return [
        n for n, cell in zip(STEPS, cells, strict=True) if ((cell >= 0.95) & (cell <= 1.08)).all()
    ]


def cells_of(heading: str) -> dict[str, list[str]]:
    """Rows of the committed table whose first column is called `heading`, by their first cell."""
    lines = PAGE.split(f"\n| {heading} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: cells for name, *cells in rows}


def test_committed_tables_are_those_of_a_fresh_computation(found):
    assert spread_table.with_blocks(PAGE, spread_table.blocks(found)) == PAGE


def test_committed_distances_are_those_of_the_rows():
    block = distance_picture.distance_block(distance_picture.latest_rows())
    assert spread_table.with_blocks(PAGE, {distance_picture.BLOCK: block}) == PAGE


def test_committed_engine_times_are_those_of_the_rows():
    page = engines_table.PAGE.read_text(encoding="utf-8")
    block = engines_table.engines_block(engines_table.latest_rows())
    assert spread_table.with_blocks(page, {engines_table.BLOCK: block}) == page


@pytest.mark.parametrize("grid", ["trailing", "linspace"])
@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
def test_first_order_rows_against_textbook_recursions(grid, solver):
    """Ho et al. 2020, Eq. (7), and Song et al. 2021, Eq. (12), from betas, with scalars.

    A step is x' = u x + v x0 + w z, and x0 = g (x - alpha mu) + mu: its variance is
    (u + v g)^2 that of x plus w^2.
    """
    a = np.append(1.0, np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))  # of t = 0 … 1000
    for column, n in enumerate(STEPS):
        last = 0 if grid == "trailing" else 1
        times = [*np.round(np.linspace(1000, last, n + 1)[:-1]).astype(int), 0]
        for place, std in enumerate((0.05, 0.1, 0.5)):
            variance = 1.0
            for t, to in pairwise(times):
                gain = np.sqrt(a[t]) * std**2 / (a[t] * std**2 + 1 - a[t])
                if solver == "ddim":
                    u = np.sqrt((1 - a[to]) / (1 - a[t]))
                    v, w2 = np.sqrt(a[to]) - u * np.sqrt(a[t]), 0.0
                else:
                    beta = 1 - a[t] / a[to]
                    u = np.sqrt(1 - beta) * (1 - a[to]) / (1 - a[t])
                    v = np.sqrt(a[to]) * beta / (1 - a[t])
                    w2 = beta * (1 - a[to]) / (1 - a[t])
                variance = (u + v * gain) ** 2 * variance + w2
            percent = 100 * np.sqrt(variance) / std
            written = cells_of(grid)[solver][column].strip("*").split()[place]
            assert float(written) == pytest.approx(percent, abs=0.5 + 1e-9)


def test_bold_is_what_a_certificate_accepts(found):
    """Also with the fourth Gaussian that a certificate tests, as the page says."""
    assert set(analytic.STANDARD_DEVIATIONS) - set(spread_table.STDS) == {0.2}
    for grid in GRIDS:
        rows = cells_of(grid.label)
        assert tuple(rows) == SOLVERS
        for solver, cells in rows.items():
            for n, cell, ratios in zip(STEPS, cells, found[grid, solver].ratio, strict=True):
                all_four = [*ratios, grid.run(solver, n, 0.2).spread_ratio]
                assert cell.startswith("**") == all(0.95 <= r <= 1.08 for r in all_four)


def test_check_sees_one_changed_number_and_a_run_mends_it(found, tmp_path, monkeypatch):
    monkeypatch.setattr(spread_table, "measure", lambda: found)  # once is enough
    page, drawn = tmp_path / "solvers.md", tmp_path / "spread.svg"
    monkeypatch.setattr(spread_table, "PAGE", page)
    monkeypatch.setattr(spread_table, "PICTURE", drawn)
    changed = PAGE.replace("0.0100", "0.0101", 1)
    page.write_text(changed, encoding="utf-8")
    with pytest.raises(SystemExit, match=r"out of date: run python -m benchmarks\.spread_table"):
        spread_table.main("--check")
    assert page.read_text(encoding="utf-8") == changed
    assert not drawn.exists()
    spread_table.main()
    assert page.read_text(encoding="utf-8") == PAGE
    assert drawn.read_bytes() == spread_table.picture(found)
    spread_table.main("--check")
    with pytest.raises(SystemExit, match="usage"):
        spread_table.main("--chekc")


@pytest.mark.parametrize("page", ["", BLOCK[:30], BLOCK[-16:] + BLOCK[:22], 2 * BLOCK])
def test_a_page_without_exactly_one_block_is_refused(page):
    with pytest.raises(ValueError, match="one block <!-- generated: a -->"):
        spread_table.with_blocks(page, {"a": "text"})
    assert "old" not in spread_table.with_blocks(BLOCK, {"a": "text"})


def heights(svg: ElementTree.Element, gid: str) -> np.ndarray:
    """The y of every vertex of the path in the group called `gid`."""
    (group,) = (node for node in svg.iter() if node.get("id") == gid)
    path = next(node for node in group if node.tag.endswith("path"))
    return np.array(re.findall(r"[ML] \S+ (\S+)", path.get("d", "")), dtype=float)


def test_the_picture_shows_the_numbers(found):
    """Heights, read against the band, whose edges are known; as committed and as drawn now."""
    for data in (spread_table.PICTURE.read_bytes(), spread_table.picture(found)):
        svg = ElementTree.fromstring(data)
        for panel, solver in product(range(len(spread_table.PANELS)), spread_table.LINES):
            grid, band = spread_table.PANELS[panel], heights(svg, f"panel{panel}-band")
            y = heights(svg, f"panel{panel}-{solver}")
            shown = 0.95 + (1.08 - 0.95) * (y - band.max()) / (band.min() - band.max())
            np.testing.assert_allclose(shown, found[grid, solver].ratio[:, 0], atol=1e-4)


def test_the_picture_is_small_undated_referenced_and_named(found):
    data = spread_table.PICTURE.read_bytes()
    text = data.decode()
    assert len(data) < 150_000
    assert "<dc:date>" not in text
    assert re.search(r"!\[[^\]]{40,}\]\(spread\.svg\)", PAGE), "needs a description"
    for label in (*spread_table.LINES, *(grid.label for grid in spread_table.PANELS)):
        assert f">{label}</text>" in text


def test_equal_numbers_are_equal_bytes_whatever_the_users_style(found):
    once = spread_table.picture(found)
    with matplotlib.rc_context({"lines.linewidth": 5, "svg.fonttype": "path", "font.size": 20}):
        assert spread_table.picture(found) == once


def test_what_the_page_advises(found):
    """Each line is a sentence of "Which to choose"."""
    for grid in (LOGSNR, ROUNDED):
        assert keeps(found, grid, "dpmpp_2m") == [10, 15, 20, 50]
        assert keeps(found, grid, "unipc_2") == [10, 15, 20, 50]
        assert keeps(found, grid, "sde_dpmpp_2m") == [15, 20, 50]
        for solver in ("dpmpp_3m", "dpmpp_3m_parity", "unipc_3"):
            assert keeps(found, grid, solver) == [15, 20, 50]
            assert (found[grid, solver].ratio[:3].max(axis=1) > 1.08).all()
    for grid in GRIDS:
        if grid is not INFORMED:
            assert not any({5, 8} & set(keeps(found, grid, solver)) for solver in SOLVERS)
        assert not any(keeps(found, grid, solver) for solver in ("ddim", "dpmpp_1", "ddpm"))
        if grid.name in ("karras", "quadratic"):
            assert keeps(found, grid, "dpmpp_2m") == keeps(found, grid, "unipc_2") == [20, 50]
        assert set(keeps(found, grid, "dpmpp_2s")) <= {50}
    assert {8, 10, 15, 20, 50} == set(keeps(found, INFORMED, "dpmpp_2m"))
    assert not any(keeps(found, grid, s) for grid in (TRAILING, LINSPACE) for s in SOLVERS)
    for grid in (TRAILING, LINSPACE):
        narrow = dict(zip(STEPS, found[grid, "dpmpp_2m"].ratio[:, 0], strict=True))
        assert 0.25 < narrow[20] < 0.3
        assert 0.45 < narrow[50] < 0.55
        lines = np.array([found[grid, solver].ratio[:, 0] for solver in spread_table.LINES])
        assert np.ptp(lines, axis=0).max() < 0.05, "nearly coincide"
    two, uni = (found[LOGSNR, s].ratio[:, 0] for s in ("dpmpp_2m", "unipc_2"))
    assert two[2] == pytest.approx(0.95, abs=0.001), "nothing to spare"
    assert two[2] < uni[2] < 1.0
    assert abs(two - uni)[3:].max() < 0.02


def test_what_the_page_says_of_third_order(found):
    ours, published = (found[LOGSNR, s].ratio for s in ("dpmpp_3m", "dpmpp_3m_parity"))
    assert (published[1:3].max(axis=1) < ours[1:3].max(axis=1)).all()
    orders = {solver: float(cells[0]) for solver, cells in cells_of("mode error").items()}
    assert orders["dpmpp_3m_parity"] == 2.0
    assert orders["dpmpp_3m"] >= 3.0


@pytest.mark.parametrize(
    ("sentence", "values"),
    [
        ("accepts, {:.0f} to {:.0f} %", [100 * r for r in report.SPREAD_RATIO]),
        ("lie between {:.0f} and {:.0f} before", [100 * r for r in report.SPREAD_RATIO]),
        ("four Gaussians is within {:.0f} to {:.0f} %", [100 * r for r in report.SPREAD_RATIO]),
        ("N({}, s^2)", [analytic.MEAN]),
        ("**Bold**: at most {}. `trailing`", [report.MASK_ERROR]),
        ("**Bold**: at most {}. Before", [report.MODE_ERROR]),
        ("the weight {} of", [analytic.MODE_WEIGHTS[1]]),
        ("two modes, {} and {}, each of spread {}", [*analytic.MODES, analytic.MODE_STD]),
        ("over {:,} chains (standard", [analytic.CHAINS]),
        ("(standard error {:.4f})", [(0.3 * 0.7 / analytic.CHAINS) ** 0.5]),
        ("For {} to {} steps", [command.FEWEST, command.MOST]),
        ("a run of {} steps with the same noise", [network.DENSE_STEPS]),
    ],
)
def test_numbers_in_the_prose_are_those_of_the_code(sentence, values):
    assert sentence.format(*values) in FLAT


def test_every_cited_work_is_in_the_list():
    prose, references = PAGE.split("## References")
    cited = set(re.findall(r"\b([A-Z][a-z]+) (20\d\d[ab]?)\b", " ".join(prose.split())))
    listed = set(re.findall(r"^- ([A-Z][a-z]+) et al\. (20\d\d[ab]?),", references, re.MULTILINE))
    assert len(cited) >= 6
    assert cited <= listed


def plain(page: Path) -> str:
    """The text without code, in which brackets are not links."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`]*`", "", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_paths_lead_to_files(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", plain(page)):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), target
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`([\w.-]+(?:/[\w.-]+)+\.(?:py|md|sh|jsonl))`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_the_options_they_are_shown_with(page):
    commands = typer.main.get_command(app).commands
    text = page.read_text(encoding="utf-8")
    for verb, rest in re.findall(r"^    tadiff-rt (\w+)([^#\n]*)", text, re.MULTILINE):
        known = {name for option in commands[verb].params for name in option.opts}
        assert set(re.findall(r"(?<!\S)--?[a-z][\w-]*", rest)) <= known, f"tadiff-rt {verb}{rest}"


def test_the_tests_of_links_would_find_some():
    assert re.findall(r"\]\(([^)\s]+)\)", plain(DOCS / "solvers.md")) == [
        "spread.svg",
        "distance.svg",
    ]
    assert re.findall(r"^    tadiff-rt certify", PAGE, re.MULTILINE)
    assert "docs/architecture.md" in re.findall(r"\]\(([^)\s]+)\)", plain(ROOT / "README.md"))
