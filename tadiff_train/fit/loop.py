"""The course of a run, from the first step or from where it was left."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tadiff_rt.card import ModelCard
from tadiff_train.data.cache import CachedCase
from tadiff_train.data.windows import Window, Windows
from tadiff_train.fit.config import FitConfig
from tadiff_train.fit.heldout import HeldOut
from tadiff_train.fit.identity import Identity, identity_of, require_same, write_record
from tadiff_train.fit.interrupt import Interrupted, asked_to_end
from tadiff_train.fit.loader import loader_of, shares_of
from tadiff_train.fit.processes import joined
from tadiff_train.fit.recorder import Course, Recorder, is_due
from tadiff_train.fit.run import load_state, locked, make_folder, remove_leftovers
from tadiff_train.fit.sample import window_to_draw
from tadiff_train.fit.trainer import Trainer
from tadiff_train.network import NetworkConfig, TaDiffNet

Report = Callable[[int, dict[str, float]], None]
"""Called after every step, in the first process, with its number, from 1, and smoothed terms."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What computes a run. None of it changes what is computed, but for rounding."""

    device: str = "auto"
    """"auto", "cpu" or "cuda"."""
    workers: int = 0
    """Processes that prepare windows; 0: none but this one."""
    quiet: bool = False
    """Says nothing of its own accord."""


def num_timesteps(card: ModelCard, config: FitConfig) -> int:
    """The last timestep that training draws.

    A forecast from `start_lam` passes no noisier level, so that time spent there would be lost.
    """
    schedule = card.schedule.build()
    if config.timesteps == "all" or card.start_lam is None:
        return schedule.num_train_timesteps
    levels = range(1, schedule.num_train_timesteps + 1)
    return next((t for t in levels if schedule.lam(float(t)) < card.start_lam), levels[-1])


def fit(
    cases: Sequence[CachedCase],
    network: NetworkConfig,
    card: ModelCard,
    config: FitConfig,
    out: Path,
    report: Report | None = None,
    *,
    resume: bool = False,
    validation: Sequence[CachedCase] = (),
    machine: Machine | None = None,
    notes: Mapping[str, object] | None = None,
) -> TaDiffNet:
    """Trains a network and saves the moving average of its weights.

    The whole run is a function of `config` and the data on one machine with one number of
    threads, whether or not it was interrupted and resumed. Started by torchrun, processes share
    each batch; they and accumulated passes change the result by rounding alone.

    Args:
        out: the run folder (see `tadiff_train.fit.run`).
        resume: go on with the run in `out`, which must have the same settings and data.
        validation: held-out patients; where there are any, `out/best` holds the weights of the
            save with the least loss on them.
        notes: of the command, for run.json.

    Returns:
        The network that was saved last.

    Raises:
        UsageError: TD3032 there is nothing to train on, TD3081 no such device, TD3082 fp16 without
            CUDA, TD3083 a batch that cannot be shared, TD3084 another run is to be resumed.
        NumericsError: TD6003, the loss or its gradient is not finite.
        ModelFileError: TD4019 or TD4020, there is no run to resume.
        ResourceError, OutputError: the folder cannot be written; what was saved before is kept.
            TD8010, another process trains into it.
        Interrupted: SIGINT or SIGTERM came; the run is saved.
    """
    machine = machine or Machine()
    with joined(machine.device) as processes:
        trainer = Trainer(network, config, card.schedule.build(), processes)
        shares_of(config, 1, processes)  # refuses before anything is written
        windows = _windows(cases, card, config)
        identity = identity_of(config, network, card, cases, validation)
        course = _resumed(trainer, out, identity) if resume else Course()
        opened: list[Recorder] = []
        held = ExitStack()

        def begin() -> None:
            make_folder(out)
            held.enter_context(locked(out))
            remove_leftovers(out)
            write_record(out, identity, processes, notes or {}, course.step if resume else None)
            held_out = HeldOut(
                validation, trainer.schedule, windows.num_timesteps, config.batch_size
            )
            to_draw = window_to_draw([*validation, *cases], windows.num_timesteps)
            recorder = Recorder(out, trainer, card, course, identity, held_out, to_draw)
            opened.append(recorder)
            held.callback(recorder.close)
            recorder.open(quiet=machine.quiet)

        with held:
            processes.first(begin)
            shares = shares_of(config, course.step + 1, processes)
            loader = loader_of(windows, shares, machine.workers)
            _steps(trainer, iter(loader), course, next(iter(opened), None), report)
        return trainer.averaged


def _windows(cases: Sequence[CachedCase], card: ModelCard, config: FitConfig) -> Windows:
    return Windows(
        cases,
        seed=config.seed,
        num_timesteps=num_timesteps(card, config),
        slots=config.target_slots,
        sources=config.sources,
        augmentation=config.augmentation,
        batch_size=config.batch_size,
    )


def _resumed(trainer: Trainer, out: Path, identity: Identity) -> Course:
    """Where the run in a folder stands; the trainer becomes what it was there."""
    tensors, record = load_state(out)
    require_same(record["identity"], identity)
    trainer.restore(tensors)
    trainer.scaler.load_state_dict(record["scaler"])
    return Course(**record["course"])


def _steps(
    trainer: Trainer,
    windows: Iterator[Window],
    course: Course,
    recorder: Recorder | None,
    report: Report | None,
) -> None:
    """The steps that are left; the recorder is there in the first process alone."""
    config, processes = trainer.config, trainer.processes
    with asked_to_end() as asked:
        for step in range(course.step + 1, config.steps + 1):
            terms, norm = trainer.step(step, windows)
            course.add(step, terms)
            trainer.require_finite(norm, step)
            if recorder is not None and report is not None:
                report(step, course.smooth)
            signal = processes.highest(asked.number) if step < config.steps else 0
            if signal or is_due(config, step):
                processes.first(partial(_record, recorder, norm, signal > 0))
            if signal:
                raise Interrupted(signal, step)


def _record(recorder: Recorder | None, gradient_norm: float, ends: bool) -> None:
    if recorder is not None:
        recorder.record(gradient_norm, ends=ends)
