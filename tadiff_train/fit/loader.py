"""The windows of every step, in order, whatever computes them."""

import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader

from tadiff_rt.errors import UsageError
from tadiff_train.data.windows import Window, Windows, collate
from tadiff_train.fit.config import FitConfig
from tadiff_train.fit.interrupt import leave_signals_to_parent
from tadiff_train.fit.processes import Processes


@dataclass(frozen=True)
class Shares:
    """Which windows one process takes: batch after batch, cut into passes, cut into processes.

    Step s (from 1) of a run is made of windows (s - 1) batch_size ... s batch_size - 1, however
    many processes and passes there are.
    """

    config: FitConfig
    first_step: int
    processes: Processes

    @property
    def size(self) -> int:
        """Windows of one pass of one process."""
        return self.config.batch_size // (self.config.accumulate * self.processes.count)

    def __iter__(self) -> Iterator[range]:
        for step in range(self.first_step, self.config.steps + 1):
            for k in range(self.config.accumulate):
                share = k * self.processes.count + self.processes.rank
                start = (step - 1) * self.config.batch_size + share * self.size
                yield range(start, start + self.size)


def shares_of(config: FitConfig, first_step: int, processes: Processes) -> Shares:
    """The windows of a process from a step on.

    Raises:
        UsageError: TD3083, the batch cannot be cut evenly.
    """
    parts = config.accumulate * processes.count
    if config.batch_size % parts:
        what = f"a batch of {config.batch_size} cannot be cut into {parts} equal parts"
        of = f"{processes.count} processes of {config.accumulate} passes"
        raise UsageError("TD3083", f"{what}, {of}", fix=f"choose a multiple of {parts}")
    return Shares(config, first_step, processes)


def loader_of(windows: Windows, shares: Shares, workers: int) -> "DataLoader[Window]":
    """Batches of a process: `accumulate` of them a step.

    Args:
        workers: processes that prepare windows ahead; 0 prepares them here. They are forked where
            that exists, since memory maps would be copied on the way to a spawned one.
    """
    forks = "fork" in multiprocessing.get_all_start_methods()
    return DataLoader(
        windows,
        batch_sampler=shares,  # type: ignore[arg-type]
        collate_fn=collate,
        num_workers=workers,
        pin_memory=shares.processes.device.type == "cuda",
        worker_init_fn=leave_signals_to_parent,
        multiprocessing_context="fork" if workers and forks else None,
        generator=torch.Generator(),  # the loader draws from it, and must not from the global one
    )
