"""The bundles that GPU benchmarks run: configuration A, made-up weights, certified briefly.

`python -m benchmarks.gpu_bundle FOLDER [PRECISION ...]` writes FOLDER/PRECISION.tadiff with a
torch program each, one after the other: what was finished when time ran out can be used. Time and
rounding do not depend on what weights mean, only on their size; so these have the size that
training starts from, nowhere zero.
"""

import sys
from pathlib import Path

import torch

from benchmarks.device import Bench
from tadiff_export.certify.reference import Settings
from tadiff_export.package import export
from tadiff_export.wanted import Wanted
from tadiff_rt.card import ModelCard
from tadiff_rt.preprocess import DataContract
from tadiff_train.checkpoint import save_checkpoint
from tadiff_train.network import NetworkConfig, TaDiffNet

BRIEF = Settings(samples=2, num_steps=2)
"""Of a certificate: every kind of check, on little."""
PRECISIONS = ("fp16", "bf16", "fp32")
"""In order of what is wanted most, should time run out."""
SEED = 20


def config_and_size(quick: bool) -> tuple[NetworkConfig, int]:
    """Configuration A at 192 x 192, or two levels at 48 x 48 for a dry run."""
    if quick:
        small = NetworkConfig(
            num_res_blocks=1, num_heads=2, channel_mult=(1, 2), attention_strides=(2,)
        )
        return small, 48
    return NetworkConfig(), 192


def network(config: NetworkConfig) -> TaDiffNet:
    """Weights N(0, 1 / fan-in), gains about 1, biases about 0; the same on every machine."""
    rng = torch.Generator().manual_seed(SEED)
    net = TaDiffNet(config).eval()
    with torch.no_grad():
        for name, p in net.named_parameters():
            z = torch.randn(p.shape, generator=rng)
            gain = 1.0 if p.ndim == 1 and name.endswith("weight") else 0.0
            p.copy_(z / p[0].numel() ** 0.5 if p.ndim > 1 else gain + 0.1 * z)
    return net.requires_grad_(False)


def main(folder: Path, *precisions: str) -> None:
    """Exports as many bundles as time allows."""
    bench = Bench.start(str(folder))
    config, size = config_and_size(bench.quick)
    data = DataContract(size=size)
    card = ModelCard(name="benchmark", trained_on="nothing: made-up weights", data=data)
    run = folder / "run"
    if not run.exists():
        save_checkpoint(run, network(config), card, {"step": 0})
    for precision in precisions or (PRECISIONS[-1:] if bench.quick else PRECISIONS):
        wanted = Wanted(targets=("torch",), precisions=(precision,))
        bundle = folder / f"{precision}.tadiff"
        export(run, bundle, wanted=wanted, settings=BRIEF, overwrite=True, say=print)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
