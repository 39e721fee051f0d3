"""How the rows of an ensemble are cut into buckets, and how large a bucket is best."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tadiff_rt.batches import Row
from tadiff_rt.runner import Work

CALL_ROWS = 3
"""What a call costs beyond its rows, in rows. Of the project's targets on one H100, 0.8 ms for one
row and 8 ms for 40: a line through them is 0.615 ms + 0.185 ms a row. Not measured."""


@dataclass(frozen=True)
class Segment:
    """Adjacent rows of a bucket that are samples of one slice."""

    item: Work
    row: int
    """The first, in the bucket."""
    count: int
    sample: int
    """The first: so many are in the slice's statistics before."""

    @property
    def finishes(self) -> bool:
        """These are the last samples of the slice."""
        return self.sample + self.count == self.item.samples


@dataclass(frozen=True)
class Bucket:
    """Rows of one run of the loop, by (slice, sample)."""

    segments: tuple[Segment, ...]

    @property
    def rows(self) -> list[Row]:
        """(slice, sample) of every row, without padding."""
        return [(s.item.at, s.sample + k) for s in self.segments for k in range(s.count)]


def cut(work: Sequence[Work], rows: int, segments: int) -> Iterator[Bucket]:
    """`work` in its order, in buckets of at most `rows` rows of at most `segments` slices.

    A slice that does not fit into what is left of a bucket goes on in the next one.
    """
    current: list[Segment] = []
    filled = 0
    for item in work:
        sample = item.first
        while sample < item.samples:
            if filled == rows or len(current) == segments:
                yield Bucket(tuple(current))
                current, filled = [], 0
            count = min(item.samples - sample, rows - filled)
            current.append(Segment(item, filled, count, sample))
            filled, sample = filled + count, sample + count
    if current:
        yield Bucket(tuple(current))


def most_segments(rows: int, samples: int) -> int:
    """Slices that `rows` adjacent rows can touch where each has `samples` of them.

    One row of a first slice, then whole ones, then what is left of `rows`.
    """
    return 1 + -(-(rows - 1) // samples)


def best_bucket(buckets: Sequence[int], total: int, samples: int) -> int:
    """The bucket in which `total` rows, `samples` a slice, take the least time by `CALL_ROWS`.

    Every call is counted in full, with the rows that only fill it up. Of equals a multiple of
    `samples`, in which no slice straddles, then the larger.
    """

    def cost(rows: int) -> tuple[int, bool, int]:
        return -(-total // rows) * (rows + CALL_ROWS), rows % samples != 0, -rows

    return min(buckets, key=cost)
