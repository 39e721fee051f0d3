"""Pages say what rows say, and nothing on them was typed."""

import json
import re

import pytest

from benchmarks import answers, performance, run_answers
from benchmarks.all import ALL, QUESTIONS
from benchmarks.answers import by_name, seconds, spread, times
from benchmarks.harness import RESULTS, load, save
from benchmarks.one_slice import CASE, FAST, KEPT, OURS, PUBLISHED, REFERENCE
from benchmarks.performance import BLOCKS, PAGES, TARGETS, blocks, read
from benchmarks.spread_table import with_blocks

BLOCK = re.compile(r"<!-- generated: (.+?) -->(.*?)<!-- end: \1 -->", re.DOTALL)
CODE = re.compile(r"```[\s\S]*?```|`[^`\n]*`|^    .*$|\]\([^)]*\)", re.MULTILINE)
FIGURE = re.compile(
    r"(?<![\w.-])\d[\d.,]*\s?"
    r"(?:(?<=\d)x|%|ms|us|s|min|minutes?|seconds?|hours?|[KMG]i?B|[GT]FLOP/s|[GT]B/s|times|percent)(?!\w)"
)
"""A number with a unit that something is measured in."""
MEASURED_PAGES = ("README.md", "performance.md")
ORIGIN = {
    "hardware": {"cpu": "Z80", "cores": 2, "gpu": None},
    "versions": {"commit": "abc", "python": "3.11", "numpy": "2.5"},
    "measured": "2026-01-02",
}
SOUND = {
    "spread": [0.986, 1.014],
    "bias": 0.001,
    "keeps_spread": True,
    "certificate": "passes",
}
COMPILED = "our default plan, torch.compile"
POOR = {"spread": [0.27, 0.95], "bias": 0.001, "keeps_spread": False}


def typed(page: str) -> list[str]:
    """Figures outside of generated blocks and code."""
    return FIGURE.findall(CODE.sub("", BLOCK.sub("", page)))


@pytest.mark.parametrize("name", MEASURED_PAGES)
def test_pages_say_what_rows_say(name):
    page = PAGES[name].read_text(encoding="utf-8")
    assert with_blocks(page, blocks(read(RESULTS))[name]) == page


@pytest.mark.parametrize("name", MEASURED_PAGES)
def test_no_figure_was_typed(name):
    assert typed(PAGES[name].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "said",
    ["It is 3.5x faster.", "takes 40 s", "in 12 ms,", "saves 30 %", "about 300 MB", "107 times",
     "reaches 140 GFLOP/s", "2 minutes"],
)  # fmt: skip
def test_a_typed_figure_is_found(said):
    page = PAGES["README.md"].read_text(encoding="utf-8")
    assert len(typed(page + said)) == 1
    changed = page.replace("## How fast\n", f"## How fast\n\n{said}\n")
    assert len(typed(changed)) == 1


def test_words_that_are_no_figures_are_left_alone():
    assert typed("192 x 192, 20 evaluations, T1, 3x3 grid of `30 s`, 90 intervals") == []


@pytest.mark.parametrize("name", MEASURED_PAGES)
def test_a_figure_changed_inside_a_block_is_found(name):
    page = PAGES[name].read_text(encoding="utf-8")
    digits = [
        m.start(2) + d.start() for m in BLOCK.finditer(page) for d in re.finditer(r"\d", m[2])
    ]
    if not digits:
        pytest.skip("nothing was measured yet")
    at = digits[0]
    changed = page[:at] + str((int(page[at]) + 1) % 10) + page[at + 1 :]
    assert with_blocks(changed, blocks(read(RESULTS))[name]) != changed


def test_every_block_is_on_its_page_and_every_question_has_one():
    for name, found in blocks(read(RESULTS)).items():
        marked = [title for title, _ in BLOCK.findall(PAGES[name].read_text(encoding="utf-8"))]
        assert sorted(marked) == sorted(found)
    assert {question for question, _ in BLOCKS.values()} == {*QUESTIONS, ALL}


def row(case: str, contestant: str, **columns: object) -> dict[str, object]:
    floor = {"floor_ms": 1.0, "floor_kind": "flops", "roofline_fraction": 0.5}
    return {"case": case, "contestant": contestant, **floor, "quality": SOUND, **columns, **ORIGIN}


def slices() -> list[dict[str, object]]:
    figures = {
        PUBLISHED: 1_000_000.0,
        PUBLISHED + KEPT: 600_000.0,
        REFERENCE: 40_000.0,
        REFERENCE + KEPT: 16_000.0,
        OURS: 10_000.0,
        FAST: 4_000.0,
        COMPILED + KEPT: 20_000.0,
    }
    return [
        row(
            CASE,
            name,
            ms=ms,
            evaluations=600 if name.startswith(PUBLISHED) else 20,
            extrapolated_from_steps=20 if name.startswith(PUBLISHED) else None,
            peak_mb=1234,
            page_faults_an_evaluation=56_700,
            quality=POOR if name.startswith(PUBLISHED) else SOUND,
        )
        for name, ms in figures.items()
    ]


def rows(**found: list) -> dict[str, list]:
    return {**{name: [] for name in [*QUESTIONS, ALL]}, **found}


def verdicts(found: dict[str, list]) -> dict[str, list[str]]:
    return {target.what: target.line(found)[2:] for target in TARGETS}


def test_factors_are_of_the_right_pairs():
    assert answers.factors(slices()) == {
        "the runtime: the same plan in eager PyTorch": 4.0,
        "the same, memory kept": 1.6,
        "the whole: the published procedure": 100.0,
        "the whole, memory kept": 60.0,
        "the fast preset: the published procedure": 250.0,
        "the fast preset, memory kept": 150.0,
    }


def test_targets_are_judged_at_their_limits():
    found = verdicts(rows(one_slice=slices()))
    assert found["the runtime: the same plan in eager PyTorch"] == ["4x", "yes"]
    assert found["the same, memory kept"] == ["1.6x", "yes"]
    assert found["the whole: the published procedure"] == ["100x", "yes"]
    assert found["the fast preset: the published procedure"] == ["250x", "yes"]
    assert found["`tadiff-rt info`"] == ["not measured", "-"]
    slower = slices()
    slower[4]["ms"] = 10_100.0
    found = verdicts(rows(one_slice=slower))
    assert found["the same, memory kept"] == ["1.58x", "**no**"]
    assert found["the whole: the published procedure"] == ["99x", "**no**"]


def started(info: float, predict: float, mb: float) -> list[dict[str, object]]:
    return [
        row("startup/process", "tadiff-rt info", ms=info, cpu_ms=1.0, target_ms=500),
        row("startup/process", "tadiff-rt predict", ms=predict, cpu_ms=1.0),
        row("startup/process", "tadiff-rt predict --fast", ms=3000.0, cpu_ms=1.0),
        row(
            "startup/install",
            "pip",
            ms=23000.0,
            installed_mb=mb,
            target_mb=350,
            packages=29,
            largest_mb={"numpy": 71.2},
        ),
    ]


def test_starts_and_sizes_are_judged():
    found = verdicts(rows(startup=started(499.0, 5999.0, 349.0)))
    assert found["`tadiff-rt info`"] == ["0.499 s", "yes"]
    assert found["a first slice, from start to exit"] == ["6 s", "yes"]
    assert found["installation for a CPU"] == ["349 MB", "yes"]
    found = verdicts(rows(startup=started(500.0, 6001.0, 350.0)))
    assert [found[name][1] for name in list(found)[6:9]] == ["**no**"] * 3


def test_a_package_index_that_cannot_be_reached_is_said():
    unknown = row("startup/install", "pip", not_measured="no package index could be reached")
    found = [*started(1.0, 2.0, 3.0)[:-1], unknown]
    assert run_answers.install(found) == "Not measured: no package index could be reached."
    assert verdicts(rows(startup=found))["installation for a CPU"] == ["not measured", "-"]


def line(case: str, **columns: object) -> dict[str, object]:
    return row(case, "line", **columns)


def test_growth_is_that_of_the_worst_axis():
    scaling = [
        line(f"scaling/{name}", largest_residual=residual)
        for name, residual in {"slices": 0.01, "samples": 0.06, "steps": 0.02}.items()
    ]
    memory = [
        line("memory/slices", growth=-0.07),
        line("memory/samples", growth=0.02),
        line("memory/scenarios", growth=0.5),
        row("memory/slices/1", "predict", peak_mb=99.0, bound_mb=100.0),
        row("memory/slices/2", "predict", peak_mb=101.0, bound_mb=100.0),
    ]
    found = verdicts(rows(scaling=scaling, memory=memory))
    assert found["time linear in slices, samples, steps: residual"] == ["6.0%", "**no**"]
    assert found["memory constant in slices, samples: growth"] == ["7.0%", "**no**"]
    assert found["peak memory over what was stated before"] == ["101.0%", "**no**"]


def test_the_summary_shows_the_smaller_figure_beside_the_larger():
    said = performance.summary(rows(one_slice=slices(), startup=started(300.0, 5500.0, 300.0)))
    assert f"| {PUBLISHED} | 17 min | 10 min | 1x | 27 to 95 % **(fails)** | - |" in said
    assert f"| **{OURS}** | 10 s | - | 100x | 99 to 101 % | passes |" in said
    assert f"| {COMPILED} | - | 20 s | 50x | 99 to 101 % | passes |" in said
    assert "1.6x the same, memory kept" in said
    assert "reaches 50% of its floor" in said
    assert "`tadiff-rt info` takes 0.3 s" in said
    assert "On a GPU: not measured" in said or "H100" in said or "H200" in said
    assert said.endswith("Z80, 2 cores; 2026-01-02, commit abc; Python 3.11, numpy 2.5.")


def test_what_was_not_measured_is_said():
    page = blocks(rows())["performance.md"]
    assert {page[name] for name in BLOCKS} == {"Not measured."}
    assert blocks(rows())["README.md"] == {"performance": "Not measured."}
    assert "not measured" in page["targets"]


def test_extrapolated_times_are_marked():
    table = answers.one_slice(slices())
    assert "| 20 of 600 |" in table
    assert table.count("| all |") == 5
    assert "| 1.23 GB | 57 k |" in table


@pytest.mark.parametrize(
    ("ms", "said"),
    [(3.14159, "3.14 ms"), (312.4, "0.312 s"), (24_240.0, "24.2 s"), (599_000.0, "599 s"),
     (1_716_000.0, "29 min")],
)  # fmt: skip
def test_times_have_the_unit_that_suits(ms, said):
    assert seconds(ms) == said


def test_spreads_that_fail_are_marked():
    assert spread(SOUND) == "99 to 101 %"
    assert spread(POOR) == "27 to 95 % **(fails)**"
    assert spread("the same bits") == "-"
    assert times(2.414) == "2.41x"


def test_cases_are_found_by_their_beginning():
    found = by_name([row("a/b", "x", ms=1.0), row("c", "y", ms=2.0)], "a")
    assert list(found) == ["x"]


def test_the_picture_has_a_bar_a_contestant():
    drawn = answers.speed_picture(slices())
    names = re.search(r"x-axis \[(.*)\]", drawn)[1]
    numbers = json.loads("[" + re.search(r"bar \[(.*)\]", drawn)[1] + "]")
    assert names.count('", "') + 1 == len(numbers) == 4
    assert numbers == [1, 25, 100, 250]


@pytest.mark.parametrize("lacks", ["case", "quality", "floor_ms"])
def test_rows_without_floor_or_quality_are_not_saved(tmp_path, lacks):
    sound = {key: value for key, value in row("a", "b", ms=1.0).items() if key not in ORIGIN}
    save("q", [sound], tmp_path)
    assert load("q", tmp_path)[0]["hardware"]["cores"] > 0
    with pytest.raises(ValueError, match="needs"):
        save("q", [{key: value for key, value in sound.items() if key != lacks}], tmp_path)
    assert len(load("q", tmp_path)) == 1
    with pytest.raises(ValueError, match="one case"):
        save("q", [sound, sound], tmp_path)


def test_a_run_replaces_the_run_before(tmp_path):
    sound = {key: value for key, value in row("a", "b", ms=1.0).items() if key not in ORIGIN}
    save("q", [sound, {**sound, "case": "c"}], tmp_path)
    save("q", [{**sound, "ms": 2.0}], tmp_path)
    assert [found["ms"] for found in load("q", tmp_path)] == [2.0]
    assert [path.name for path in tmp_path.iterdir()] == ["q.jsonl"]
