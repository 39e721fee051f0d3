"""How often the interval of the mean volume holds the truth when drawing stops once it is narrow.

    python -m benchmarks.stopping

Normal volumes, two more at a time until `volume.enough_samples` would say enough or 64 are drawn,
with its minimum and without. Rows go to results/quality.jsonl.
"""

import numpy as np

from benchmarks.harness import append
from tadiff_rt.volume import MIN_AUTO_SAMPLES, student_quantile

RUNS = 20_000
MOST = 64
LEVEL = 0.9
RELATIVE_WIDTH = 0.1


def stopped(spread: float, fewest: int) -> dict[str, float]:
    """Coverage, samples and early stops for volumes of mean 1."""
    volumes = np.random.default_rng(0).normal(1, spread, (RUNS, MOST))
    covered = np.zeros(RUNS, bool)
    counts = np.zeros(RUNS, int)
    for n in range(2, MOST + 1, 2):
        drawn = volumes[:, :n]
        mean = drawn.mean(axis=1)
        half = student_quantile(LEVEL, n - 1) * drawn.std(axis=1, ddof=1) / np.sqrt(n)
        enough = (n >= fewest) & (half <= RELATIVE_WIDTH * mean)
        ends = (counts == 0) & (enough | (n == MOST))
        counts[ends] = n
        covered[ends] = (np.abs(mean - 1) <= half)[ends]
    return {
        "coverage": round(float(covered.mean()), 4),
        "samples": round(float(counts.mean()), 2),
        "early": round(float((counts < MOST).mean()), 4),
    }


def main() -> None:
    """Writes rows."""
    rows = [
        {
            "case": f"stopping, standard deviation {spread:g} of the mean",
            "contestant": f"at least {fewest} samples",
            **stopped(spread, fewest),
            "level": LEVEL,
            "runs": RUNS,
        }
        for spread in (0.1, 0.3, 0.6)
        for fewest in (MIN_AUTO_SAMPLES, 2)
    ]
    append("quality", rows)


if __name__ == "__main__":
    main()
