"""Statistics of an ensemble of samples, updated one sample at a time, and the volume interval."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tadiff_rt.errors import UsageError


def mask_probability(mask_logits: ArrayLike) -> NDArray[np.float64]:
    """Sigmoid in float64. The tanh form overflows for no finite logit."""
    return 0.5 + 0.5 * np.tanh(0.5 * np.asarray(mask_logits, dtype=np.float64))


class SliceStatistics:
    """Mean, spread, tumour probability and tumour areas of the samples of one slice.

    Samples are added in sample order and then forgotten: beyond one integer a sample (its tumour
    area), memory does not grow. Sums are float64; the order of adding fixes every bit.
    """

    def __init__(
        self,
        image_shape: tuple[int, ...],
        mask_shape: tuple[int, ...],
        *,
        threshold: float = 0.5,
    ) -> None:
        """
        Args:
            image_shape: of the predicted image, e.g. (3, h, w).
            mask_shape: of the target's mask logits, e.g. (h, w).
            threshold: a voxel is tumour in a sample where its probability exceeds this.

        Raises:
            UsageError: `threshold` is not inside (0, 1) (TD3046).
        """
        if not 0 < threshold < 1:
            raise UsageError("TD3046", f"threshold must be inside 0 to 1, got {threshold}")
        self.threshold = threshold
        self._mean = np.zeros(image_shape)
        self._squares = np.zeros(image_shape)
        self._probability_sum = np.zeros(mask_shape)
        self._areas: list[int] = []

    def add(self, image: ArrayLike, mask_logits: ArrayLike) -> None:
        """Takes in the next sample; neither array is kept or modified.

        Welford's recurrence (Knuth, TAOCP vol. 2, 4.2.2, Eqs. 15 and 16): E[x²] − mean² cancels
        where the mean is much larger than the spread, as in bright tissue the model is sure of.
        """
        sample = np.asarray(image, dtype=np.float64)
        probability = mask_probability(mask_logits)
        if sample.shape != self._mean.shape or probability.shape != self._probability_sum.shape:
            raise ValueError(
                f"expected an image of shape {self._mean.shape} and mask logits of shape "
                f"{self._probability_sum.shape}, got {sample.shape} and {probability.shape}"
            )
        self._areas.append(int((probability > self.threshold).sum()))
        before = sample - self._mean
        self._mean += before / self.count
        self._squares += before * (sample - self._mean)
        self._probability_sum += probability

    @property
    def count(self) -> int:
        """Samples added so far."""
        return len(self._areas)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean image; a copy."""
        self._require_a_sample()
        return self._mean.copy()

    @property
    def std(self) -> NDArray[np.float64] | None:
        """Unbiased (n − 1) standard deviation of the image; None for a single sample."""
        self._require_a_sample()
        return np.sqrt(self._squares / (self.count - 1)) if self.count > 1 else None

    @property
    def tumour_probability(self) -> NDArray[np.float64]:
        """Mean over samples of the sigmoid of the logits, taken once."""
        self._require_a_sample()
        return self._probability_sum / self.count

    @property
    def areas(self) -> tuple[int, ...]:
        """Tumour voxels of each sample, in sample order."""
        return tuple(self._areas)

    def _require_a_sample(self) -> None:
        if not self._areas:
            raise ValueError("statistics of no samples are undefined; add one first")


def volume_interval(
    volumes_ml: Sequence[float], level: float = 0.9
) -> tuple[float, float, float] | None:
    """(mean, low, high): where the volume of one further draw lies with probability `level`.

    The prediction interval of a normal sample, mean ± t · s · √(1 + 1/n) with t the two-sided
    Student quantile at n − 1 degrees of freedom (Hahn and Meeker 1991, chapter 4), cut off at 0.
    An ensemble has about 5 draws, from which no order statistic reaches 90 %: their full range
    covers a further draw with probability (n − 1)/(n + 1) only. The t quantile pays for the
    unknown spread, so few draws give a wide interval.

    Args:
        volumes_ml: tumour volume of each sample.
        level: inside (0, 1).

    Returns:
        None for fewer than two samples: one draw says nothing about spread.

    Raises:
        UsageError: `level` is not inside (0, 1) (TD3046).
    """
    if not 0 < level < 1:
        raise UsageError("TD3046", f"level must be inside 0 to 1, got {level}")
    n = len(volumes_ml)
    if n < 2:
        return None
    volumes = np.asarray(volumes_ml, dtype=np.float64)
    mean = float(volumes.mean())
    reach = student_quantile(level, n - 1) * float(volumes.std(ddof=1)) * math.sqrt(1 + 1 / n)
    return mean, max(0.0, mean - reach), mean + reach


def student_quantile(level: float, degrees: int) -> float:
    """t such that |Student t| with `degrees` degrees of freedom is below it with prob. `level`."""
    low, high = 0.0, 0.5 * math.pi
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _student_within(middle, degrees) < level else (low, middle)
    return math.sqrt(degrees) * math.tan(0.5 * (low + high))


def _student_within(angle: float, degrees: int) -> float:
    """P(|t| <= √degrees · tan(angle)): Abramowitz and Stegun 26.7.3 (odd) and 26.7.4 (even)."""
    sin, cos = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cos if odd else 1.0), 0.0
    for k in range(2 + odd, degrees + 1, 2):
        total += term
        term *= cos * cos * (k - 1) / k
    return (2 / math.pi) * (angle + sin * total) if odd else sin * total
