"""The engine that the corpus is run on: a network of two levels and random weights."""

from pathlib import Path

from tests.corpus.phantom import SPACING_MM, WINDOW


def write_engine(folder: Path) -> Path:
    """A bundle in `folder`; what is forecast means nothing, and every input changes it."""
    import torch

    from tadiff_rt.card import ModelCard
    from tadiff_rt.preprocess import DataContract
    from tadiff_train.checkpoint import save_checkpoint
    from tadiff_train.network import NetworkConfig, TaDiffNet
    from tests.conftest import export_small

    config = NetworkConfig(
        num_res_blocks=1, num_heads=2, channel_mult=(1, 2), attention_strides=(2,)
    )
    rng = torch.Generator().manual_seed(11)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)  # of the biases, which keep their initial values below
        net = TaDiffNet(config)
    for p in net.parameters():
        fan_in = max(p[0].numel(), 1) if p.ndim > 1 else 1
        noise = torch.randn(p.shape, generator=rng)
        p.data = noise / fan_in**0.5 if p.ndim > 1 else p.data + 0.1 * noise
    card = ModelCard(
        name="corpus",
        trained_on="nothing: random weights",
        data=DataContract(size=WINDOW, spacing_mm=SPACING_MM, min_slices=4),
    )
    save_checkpoint(folder / "run", net, card, {"step": 0})
    return export_small(folder / "run", folder / "corpus.tadiff", batch=4)
