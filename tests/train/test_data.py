"""Training windows: which sessions they take, how patients are drawn; runs on every layout."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tadiff_rt.card import ModelCard
from tadiff_rt.case import ReadOptions
from tadiff_rt.errors import UsageError
from tadiff_rt.preprocess import DataContract
from tadiff_train.checkpoint import load_checkpoint
from tadiff_train.data import (
    CachedCase,
    Window,
    Windows,
    cache_cases,
    choose_sessions,
    collate,
    training_domain,
)
from tadiff_train.fit import FitConfig, fit, require_new_run
from tadiff_train.network import NetworkConfig
from tests.train import layouts

NETWORK = NetworkConfig(num_res_blocks=1, num_heads=1, channel_mult=(1,), attention_strides=())


def batches(cases, batch_size: int, seed: int, slots="future") -> Iterator[Window]:
    """Windows of a run, batch by batch."""
    windows = Windows(cases, seed=seed, num_timesteps=1000, slots=slots)
    for first in itertools.count(step=batch_size):
        yield collate([windows[i] for i in range(first, first + batch_size)])


def case_of(num_sessions: int, num_slices: int = 3, value: float | None = None) -> CachedCase:
    """Every voxel holds its slice and session, or `value`; the left half of each mask is set."""
    images = np.zeros((num_slices, num_sessions, 3, 4, 6), np.float16)
    for at, s, m in itertools.product(range(num_slices), range(num_sessions), range(3)):
        images[at, s, m] = 100 * at + 10 * s + m if value is None else value
    masks = np.zeros((num_slices, num_sessions, 4, 6), bool)
    masks[..., :3] = True
    return CachedCase(
        "toy", tuple(50 * s for s in range(num_sessions)), (0,) * num_sessions, images, masks
    )


@pytest.mark.parametrize(
    ("num", "windows"),
    [
        (2, {(0, 0, 0, 1)}),
        (3, {(0, 0, 0, 1), (0, 0, 1, 2)}),
        (4, {(0, 0, 0, 1), (0, 0, 1, 2), (0, 1, 2, 3)}),
    ],
)
def test_short_histories_give_the_published_windows(num, windows):
    rng = np.random.default_rng(0)
    assert {tuple(choose_sessions(num, rng).tolist()) for _ in range(200)} == windows


def test_windows_run_in_time_order_with_the_target_last():
    rng = np.random.default_rng(1)
    windows = Counter(tuple(choose_sessions(7, rng).tolist()) for _ in range(6000))
    targets = Counter()
    for window, count in windows.items():
        *sources, target = window
        assert sources == sorted(sources)
        assert sources[-1] < target
        targets[target] += count
    # Every later session is the target equally often: 6000 / 6 with a deviation of 29.
    assert set(targets) == set(range(1, 7))
    assert all(abs(count - 1000) < 145 for count in targets.values())


def test_recent_sessions_mostly_but_any_earlier_ones_too():
    rng = np.random.default_rng(2)
    windows = Counter(tuple(choose_sessions(7, rng).tolist()) for _ in range(20_000))
    last = {w: n for w, n in windows.items() if w[3] == 6}
    assert set(last) == {(*s, 6) for s in itertools.combinations(range(6), 3)}
    # 0.7, and 1 of 20 subsets in the other 0.3: 0.715 with a deviation of 0.008.
    assert last[(3, 4, 5, 6)] / sum(last.values()) == pytest.approx(0.715, abs=0.035)


def test_batches_hold_what_the_cache_holds():
    case = case_of(5)
    stream = batches([case], 4, seed=0)
    flips = 0
    for batch in itertools.islice(stream, 30):
        assert batch.images.shape == (4, 4, 3, 4, 6)
        assert batch.images.dtype == batch.masks.dtype == torch.float32
        assert batch.days.dtype == batch.treatments.dtype == torch.float32
        assert batch.target.dtype == torch.int64
        for i in range(4):
            sessions = (batch.days[i] / 50).long()
            at = int(batch.images[i, 0, 0, 0, 0]) // 100
            expected = 100 * at + 10 * sessions[:, None] + torch.arange(3)
            assert torch.equal(batch.images[i, :, :, 0, 0], expected.float())
            left = batch.masks[i, ..., 0].bool()
            assert left.all() or not left.any()
            flips += int(not left.any())
    assert 40 <= flips <= 80  # of 120, half of the time


def test_flips_move_images_and_masks_together():
    case = case_of(2)
    images = np.where(case.masks[:, :, None], 0.75, 0.25).astype(np.float16)
    images = np.broadcast_to(images, case.images.shape)
    case = dataclasses.replace(case, images=images)
    flips = set()
    for batch in itertools.islice(batches([case], 4, seed=5), 10):
        assert torch.equal(
            batch.images, (0.25 + 0.5 * batch.masks)[:, :, None].expand(-1, -1, 3, -1, -1)
        )
        flips |= set(batch.masks[:, 0, 0, 0].tolist())
    assert flips == {0.0, 1.0}


def test_patients_are_drawn_evenly_whatever_their_size():
    cases = [case_of(2, 1, 0.25), case_of(9, 40, 0.5), case_of(4, 3, 0.75)]
    values = [
        float(batch.images[i, 0, 0, 0, 0])
        for batch in itertools.islice(batches(cases, 10, seed=1), 120)
        for i in range(10)
    ]
    # 400 of 1200 each, deviation 16.
    assert all(abs(values.count(v) - 400) < 85 for v in (0.25, 0.5, 0.75))


def test_stream_is_a_function_of_the_seed():
    def first(seed: int) -> list[torch.Tensor]:
        stream = batches([case_of(6), case_of(3)], 3, seed, "published")
        return [
            torch.cat([getattr(b, f.name).flatten().double() for f in dataclasses.fields(b)])
            for b in itertools.islice(stream, 5)
        ]

    assert all(itertools.starmap(torch.equal, zip(first(4), first(4), strict=True)))
    assert not all(itertools.starmap(torch.equal, zip(first(4), first(5), strict=True)))


def test_cases_that_cannot_be_trained_on_are_left_out():
    single, empty, good = case_of(1, value=0.1), case_of(3, 0), case_of(2, value=0.5)
    for batch in itertools.islice(batches([single, empty, good], 4, seed=0), 10):
        assert torch.all(batch.images == 0.5)
    with pytest.raises(UsageError, match="TD3032"):
        next(batches([single, empty], 4, seed=0))


def trained(layout: str, folder: Path) -> Path:
    """A run of two steps on the small cohort, from its files to a checkpoint."""
    root = layouts.WRITERS[layout](folder / layout)
    contract = DataContract(size=32, spacing_mm=layouts.SPACING_MM, min_slices=4)
    options = ReadOptions(**layouts.OPTIONS.get(layout, {}))
    cases = cache_cases(root, contract, folder / "cache", options=options)
    card = ModelCard(name="toy", trained_on=layout, data=contract).model_copy(
        update=training_domain(cases).model_dump()
    )
    terms: list[float] = []
    require_new_run(folder / "run")
    fit(
        cases,
        NETWORK,
        card,
        FitConfig(steps=2, batch_size=2, warmup_steps=1),
        folder / "run",
        lambda step, values: terms.extend(values.values()),
    )
    assert np.isfinite(terms).all()
    return folder / "run"


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Equal data give equal weights for one number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def reference(one_thread, tmp_path_factory) -> Path:
    return trained("bids", tmp_path_factory.mktemp("reference"))


@pytest.mark.parametrize("layout", layouts.WRITERS)
def test_a_network_trains_on_every_layout(reference, tmp_path, layout):
    """The same cohort gives the same weights however it is stored."""
    net, sidecar = load_checkpoint(trained(layout, tmp_path))
    assert sidecar.card.trained_on == layout
    assert sidecar.training["step"] == 2
    assert (sidecar.card.max_day, sidecar.card.max_horizon_days) == (77, 70)
    assert sidecar.card.treatments == {"CRT": 0, "TMZ": 1, "none": 2}
    expected = load_checkpoint(reference)[0].state_dict()
    for name, value in net.state_dict().items():
        assert torch.equal(value, expected[name]), name
