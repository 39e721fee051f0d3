"""One request on a device: buckets one after the other, results fetched beside the next."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tadiff_rt.batches import Float32Array, Progress, Sampling, not_finite
from tadiff_rt.device.buckets import Bucket, Segment, cut, most_segments
from tadiff_rt.device.feed import Feed
from tadiff_rt.device.fit import lower, ran_out, settle
from tadiff_rt.device.form import Form
from tadiff_rt.device.loop import UNBROKEN, DeviceLoop
from tadiff_rt.device.statistics import Fetched, Fetcher
from tadiff_rt.ensemble import SliceStatistics, mask_probability
from tadiff_rt.errors import ResourceError
from tadiff_rt.kept import Packed, pack
from tadiff_rt.runner import SampleSize, Work


@dataclass(eq=False)
class _Running:
    """A bucket that was enqueued."""

    bucket: Bucket
    slots: dict[Segment, int]
    """Of the slices that finish in it."""
    results: Fetched


class DeviceRunner:
    """Draws the rows of one request on a `DeviceLoop`; see `Runner`.

    While a bucket is computed the results of the one before are copied to the host and read.
    Where memory runs out the bucket becomes at most half as large, which is noted, and slices
    that are not finished are drawn again; their bits change only where the network's arithmetic
    depends on the number of rows.

    Memory on the device: `Memory.planned` of the loop, and the sources of every slice.
    """

    def __init__(
        self,
        loop: DeviceLoop,
        sampling: Sampling,
        shifts: Tensor,
        sources: Float32Array,
        size: SampleSize,
        num_slices: int,
        *,
        runtime: str,
        progress: Progress | None = None,
        keep: bool = False,
    ) -> None:
        """
        Args:
            shifts: (num_steps, p) of `loop.denoiser.condition`.
            sources: (d, 9, h, w) clean source images.
            num_slices: that will be forecast.
            runtime: of the backend.
            keep: the tumour probability of every sample stays with the statistics.

        Raises:
            ResourceError: there is no memory for the smallest bucket (TD7001).
        """
        self.sources = sources
        self.notes: list[str] = []
        self._loop, self._sampling, self._size, self._progress = loop, sampling, size, progress
        self._shifts, self._runtime = shifts, runtime
        self._total_rows = num_slices * size.at_a_time
        self._done = self._total = 0
        self._held: int | None = None
        self._keep = keep
        self._kept: dict[int, list[Packed]] = {}
        with loop.held():
            self._feed = self._fed()
            self._fetcher = Fetcher(loop.device)
            self._settle()

    @property
    def conditioning(self) -> Float32Array:
        """See `Runner.conditioning`."""
        shifts: Float32Array = self._shifts.cpu().numpy()
        return shifts

    @property
    def batch(self) -> int:
        """See `Runner.batch`."""
        return self._form.rows

    @property
    def runtime(self) -> str:
        """See `Runner.runtime`: a network may compute other bits in other buckets."""
        return f"{self._runtime}, device loop, {self.batch} rows"

    @property
    def seconds(self) -> dict[str, float]:
        """See `Runner.seconds`: a bucket is one call of the device."""
        return {}

    def report(self) -> dict[str, Any]:
        """See `Runner.report`: how a bucket ran, and the bytes that it took."""
        assert self._loop.memory is not None
        return {
            "device": {
                "bucket": self.batch,
                "mode": self._loop.mode,
                "planned_bytes": self._loop.memory.planned,
                "held_bytes": self._held,
            }
        }

    def statistics(
        self, work: Sequence[Work], inside: NDArray[np.bool_]
    ) -> Iterator[tuple[int, SliceStatistics]]:
        """See `Runner.statistics`; slices finish in the order of `work`.

        Raises:
            NumericsError: the network gave NaN or infinity (TD6002); names slice, sample and step.
            ResourceError: there is no memory for the smallest bucket (TD7001).
            EngineError: the captured graph is wrong (TD5022).
        """
        waiting = {item.at: item for item in work}
        rows = sum(item.samples - item.first for item in work)
        self._total += rows * self._sampling.plan.num_steps
        with self._loop.held():
            self._settle()  # another request may have used the loop
            while waiting:
                try:
                    for at, statistics in self._pass(list(waiting.values()), inside):
                        del waiting[at]
                        yield at, statistics
                except Exception as error:
                    if not ran_out(error):
                        raise
                    reason = str(error)
                else:
                    break
                lower(self._loop, self.batch, reason, self.notes)
                self._settle()

    def _pass(
        self, work: Sequence[Work], inside: NDArray[np.bool_]
    ) -> Iterator[tuple[int, SliceStatistics]]:
        """All of `work`, unless memory runs out."""
        form = self._form
        free = list(range(form.slots))
        slot_of: dict[int, int] = {}
        running: _Running | None = None
        for bucket in cut(work, form.rows, form.segments):
            for segment in bucket.segments:
                if segment.item.at not in slot_of:
                    slot_of[segment.item.at] = free.pop()
            self._loop.run(self._feed.inputs(form, bucket, slot_of, inside))
            finished = {s: slot_of.pop(s.item.at) for s in bucket.segments if s.finishes}
            fetched = self._fetcher.fetch(
                self._loop.buffers, list(finished.values()), logits=self._keep
            )
            before, running = running, _Running(bucket, finished, fetched)
            if before is not None:
                yield from self._collected(before, inside)
                free += before.slots.values()
        if running is not None:
            yield from self._collected(running, inside)
        self._measure()

    def _collected(
        self, running: _Running, inside: NDArray[np.bool_]
    ) -> Iterator[tuple[int, SliceStatistics]]:
        """What a bucket leaves, once it is computed."""
        results, rows = running.results, running.bucket.rows
        results.wait()
        steps = results.broken.numpy()[: len(rows)]
        worst = int(steps.argmin())  # the first step, and of that the first row
        if steps[worst] != UNBROKEN:
            raise not_finite(rows[worst], int(steps[worst]), self._loop.denoiser.description)
        if self._progress is not None:
            self._done += len(rows) * self._form.steps
            self._progress(min(self._done, self._total), self._total)
        if results.logits is not None:
            self._take(running.bucket, results.logits.numpy(), inside)
        for number, segment in enumerate(running.slots):
            item = segment.item
            statistics = results.statistics(number, item.samples)
            if self._keep:
                statistics.kept = self._kept.pop(item.at)
            yield item.at, statistics

    def _take(self, bucket: Bucket, logits: Float32Array, inside: NDArray[np.bool_]) -> None:
        """Keeps the samples of a bucket; those of a slice that begins follow what it had."""
        for segment in bucket.segments:
            item = segment.item
            if segment.sample == item.first:
                before = item.so_far.kept if item.so_far else None
                self._kept[item.at] = list(before or [])
            rows = logits[segment.row : segment.row + segment.count]
            self._kept[item.at] += [pack(mask_probability(row) * inside) for row in rows]

    @property
    def _form(self) -> Form:
        assert self._loop.form is not None
        return self._loop.form

    def _form_of(self, rows: int) -> Form:
        plan, size = self._sampling.plan, self._size
        height, width = self.sources.shape[2:]
        return Form(
            rows=rows,
            segments=most_segments(rows, size.at_a_time),
            samples=size.samples,
            steps=plan.num_steps,
            history=plan.history,
            noisy=bool(plan.coef_noise.any()),
            x0_range=self._sampling.x0_range,
            start=self._feed.start,
            size=(height, width),
            width=self._shifts.shape[1],
        )

    def _settle(self) -> None:
        settle(self._loop, self._form_of, self._total_rows, self._size.at_a_time, self.notes)

    def _fed(self) -> Feed:
        """The feed, whose sources may need what an earlier request holds."""
        try:
            return Feed(self._sampling, self._shifts, self.sources, self._loop.device)
        except Exception as error:
            if not ran_out(error):
                raise
        self._loop.release()
        try:
            return Feed(self._sampling, self._shifts, self.sources, self._loop.device)
        except Exception as error:
            if not ran_out(error):
                raise
            reason = str(error)[:200]
        raise ResourceError(
            "TD7001",
            f"out of memory for the sources of {len(self.sources)} slices: {reason}",
            fix="free memory on the device, or choose another --backend",
        )

    def _measure(self) -> None:
        memory, left = self._loop.memory, self._loop.free_bytes()
        if memory is not None and memory.free is not None and left is not None:
            self._held = max(self._held or 0, memory.free - left)
