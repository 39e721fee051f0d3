"""How wrong is a network at each noise level?  `python -m benchmarks.noise_error RUN COHORT`

For one batch of windows of a cohort: the squared error of eps, its scale (the regression of eps
on the noise; 1 is right), and the error of its mean over an image beside that mean itself.
"""

import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.harness import append
from tadiff_train.checkpoint import load_checkpoint
from tadiff_train.data import cache_cases
from tadiff_train.data.windows import Windows, collate
from tadiff_train.diffusion import add_noise

TIMES = (1000, 900, 700, 500, 300, 100, 50, 20, 10, 5, 2, 1)
BATCH = 16


def main(run: str, cohort: str, cache: str | None = None) -> None:
    """Writes rows to results/quality.jsonl."""
    net, sidecar = load_checkpoint(Path(run))
    with tempfile.TemporaryDirectory() as scratch:
        cases = cache_cases(Path(cohort), sidecar.card.data, Path(cache or scratch))
        schedule = sidecar.card.schedule.build()
        windows = Windows(cases, seed=0, num_timesteps=schedule.num_train_timesteps)
        drawn = collate([windows[i] for i in range(BATCH)])
    batch, noise = drawn.batch, drawn.noise
    b, m = noise.shape[:2]
    rows = []
    for t in TIMES:
        alpha_bar = torch.full((b,), schedule.alpha_bar(float(t)))
        x = add_noise(batch.images, batch.target, noise, alpha_bar)
        times = torch.full((b,), float(t))
        with torch.no_grad():
            y = net(x.flatten(1, 2), times, batch.days, batch.treatments, batch.target)
        error = y[:, -m:] - noise
        rows.append(
            {
                "case": "noise error",
                "contestant": f"t = {t}",
                "mse": round(error.square().mean().item(), 6),
                "scale": round(((y[:, -m:] * noise).mean() / noise.square().mean()).item(), 4),
                "error_of_mean": round(error.mean((2, 3)).abs().mean().item(), 5),
                "mean_of_noise": round(noise.mean((2, 3)).abs().mean().item(), 5),
                "weights": sidecar.weights_sha256[:12],
            }
        )
    append("quality", rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
