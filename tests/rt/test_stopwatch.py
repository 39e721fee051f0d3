"""Where time goes: stages that do not overlap, whatever runs beside what, and that sum."""

import json
import time
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tadiff_rt import stopwatch
from tadiff_rt.case import ReadOptions
from tadiff_rt.commands import Running, predict_to_folder
from tadiff_rt.forecast import Forecaster
from tadiff_rt.noise import NoiseSource
from tadiff_rt.readers import read_case
from tadiff_rt.request import PredictRequest
from tadiff_rt.stopwatch import PARTS_OF_SAMPLING, SharedStopwatch, Stopwatch, of_all, whole
from tests.rt.test_batches import Stub, runner
from tests.rt.test_device_forecast import OnDevice

ORDER = ("first", "second", "third")
SLEEP_S = 0.02
REQUEST = {"samples": 3, "steps": 2, "slices": "4:6"}


class Clock:
    """A clock that stands where it is put."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stopwatch, "time", clock)
    return clock


spans = st.lists(
    st.tuples(st.sampled_from(ORDER), st.integers(0, 12), st.integers(1, 6)), max_size=8
)


@given(spans)
def test_every_moment_counts_once_for_the_first_stage(several):
    """Against the definition: second by second, the first of the stages that run then."""
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stopwatch, "time", clock)
        watch = SharedStopwatch(ORDER)
        stages = [watch.stage(name) for name, _, _ in several]
        with ExitStack() as left_open:
            for second in range(20):
                clock.now = 100.0 + second
                for (_, begin, length), stage in zip(several, stages, strict=True):
                    if second == begin:
                        stage.__enter__()
                    if second == begin + length:
                        stage.__exit__(None, None, None)
            left_open.pop_all()
    expected = dict.fromkeys(ORDER, 0.0)
    for second in range(20):
        running = {name for name, begin, length in several if begin <= second < begin + length}
        first = next((name for name in ORDER if name in running), None)
        if first:
            expected[first] += 1
    assert watch.seconds == expected


def test_a_stage_ends_with_an_exception(clock):
    watch = SharedStopwatch(ORDER)

    def fail() -> None:
        with watch.stage("second"):
            clock.now += 2
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    clock.now += 5
    with watch.stage("third"):
        clock.now += 1
    assert watch.seconds == {"first": 0, "second": 2, "third": 1}


def test_a_stage_is_split_and_keeps_the_rest(clock):
    watch = Stopwatch()
    with watch.stage("sample"):
        clock.now += 5
    other = watch.copy()
    watch.split("sample", {"denoise": 3.0, "noise": 1.5})
    assert watch.seconds == {"sample": 0.5, "denoise": 3.0, "noise": 1.5}
    assert other.seconds == {"sample": 5.0}


def test_what_forecasts_have_in_common_counts_once():
    each = [{"load": 4.0, "sample": 1.0}, {"load": 4.0, "sample": 2.5}]
    assert of_all({"load": 4.0, "compare": 0.5}, each) == {
        "load": 4.0,
        "compare": 0.5,
        "sample": 3.5,
    }
    assert whole({"load": 1.0, "read": 2.0}, 3.5) == {
        "load": 1.0,
        "read": 2.0,
        "other": 0.5,
        "total": 3.5,
    }


class Slow(Stub):
    """Every part of sampling takes a known time at least."""

    def denoise(self, sources, x, shifts):
        time.sleep(3 * SLEEP_S)
        return super().denoise(sources, x, shifts)


class SlowNoise:
    """Fresh noise that takes a while to draw."""

    def __init__(self, inner) -> None:
        self._inner = inner

    def initial(self, rows, shape):
        time.sleep(SLEEP_S)
        return self._inner.initial(rows, shape)

    def step(self, rows, shape):
        draw = self._inner.step(rows, shape)

        def slowly(i):
            time.sleep(SLEEP_S)
            return draw(i)

        return slowly


ROWS = [(at, sample) for at in range(4) for sample in range(2)]


def spent(workers: int) -> tuple[dict[str, float], float]:
    """Parts of drawing two batches of two steps with noise, and all of it."""

    def on_step(done: int, total: int) -> None:
        time.sleep(SLEEP_S)

    request = runner(
        Slow(4),
        "ddpm",
        steps=2,
        noise=SlowNoise(NoiseSource(1)),
        workers=workers,
        progress=on_step,
    )
    start = time.perf_counter()
    assert len(list(request.run(ROWS))) == len(ROWS)
    return request.seconds, time.perf_counter() - start


def test_parts_of_sampling_are_where_they_belong():
    """Two batches of two steps; the last step of DDPM draws no noise, which costs nothing."""
    seconds, elapsed = spent(workers=1)
    assert tuple(seconds) == PARTS_OF_SAMPLING
    least = {"denoise": 12, "noise": 4, "solve": 4, "statistics": 0}
    for part, sleeps in least.items():
        assert seconds[part] >= sleeps * SLEEP_S, part
    assert seconds["statistics"] == 0
    assert seconds["noise"] < 8 * SLEEP_S
    assert 0.5 * elapsed < sum(seconds.values()) <= elapsed


def test_workers_in_the_network_at_once_count_once():
    seconds, elapsed = spent(workers=2)
    assert sum(seconds.values()) <= elapsed
    assert 6 * SLEEP_S <= seconds["denoise"] < 11 * SLEEP_S


def test_a_forecast_on_a_device_tells_no_parts(bundle, case_folder):
    forecaster, case = Forecaster.load(bundle, threads=1), read_case(case_folder)
    there = Forecaster(
        bundle=forecaster.bundle, backend=OnDevice(forecaster.backend), load_seconds=0
    )
    here, other = (
        f.predict(case, day="+90", treatment="TMZ", **REQUEST) for f in (forecaster, there)
    )
    stages = {"load", "prepare", "condition", "sample", "map back"}
    assert other.report["seconds"].keys() == stages
    assert here.report["seconds"].keys() == {*stages, *PARTS_OF_SAMPLING}
    for forecast in (here, other):
        assert min(forecast.report["seconds"].values()) >= 0


@pytest.fixture(scope="module")
def seconds(bundle, case_folder, tmp_path_factory) -> dict[str, dict]:
    """What forecast.json says, of two scenarios with a page."""
    out = tmp_path_factory.mktemp("result") / "out"
    request = PredictRequest(days=["+90"], treatments=["TMZ", "none"], **REQUEST)
    running = Running(backend="onnxruntime", threads=1)
    start = time.perf_counter()
    predict_to_folder(
        bundle, case_folder, out, request, options=ReadOptions(), running=running, report=True
    )
    elapsed = time.perf_counter() - start
    said = json.loads((out / "forecast.json").read_text())
    return {"all": said["seconds"], "elapsed": elapsed, "scenarios": said["scenarios"]}


def test_stages_of_a_command_sum_to_its_time(seconds):
    stages = dict(seconds["all"])
    total = stages.pop("total")
    assert sum(stages.values()) == pytest.approx(total, abs=1e-9)
    assert 0 <= stages.pop("other") < 0.2 * total
    assert stages.keys() == {
        *("check", "load", "read", "prepare", "condition", "sample", *PARTS_OF_SAMPLING),
        *("map back", "compare", "write", "overview", "page", "hash"),
    }
    assert min(stages.values()) > 0
    assert 0.5 * seconds["elapsed"] < total < seconds["elapsed"]


def test_stages_of_scenarios_add_up(seconds):
    one, two = (scenario["seconds"] for scenario in seconds["scenarios"].values())
    assert one["prepare"] == two["prepare"] == seconds["all"]["prepare"]
    for stage in ("condition", "denoise", "sample", "map back"):
        assert one[stage] != two[stage]
        assert one[stage] + two[stage] == pytest.approx(seconds["all"][stage], abs=1e-12)
