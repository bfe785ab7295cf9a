"""A small random model, its usual targets, and a calibration made up for them; tokens, training, comparison."""

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers.pytorch_utils import Conv1D

from astra.store import Calibration, LayerInfo
from tests.astra.families import FAMILIES


def tiny_model(family: str = "llama") -> nn.Module:
    """A model of the family in evaluation mode, always with the same weights."""
    return FAMILIES[family]()[0]


def targets(family: str = "llama") -> list[str]:
    """The names of the family's usual target layers."""
    with torch.random.fork_rng():
        return list(FAMILIES[family]()[1])


def tokens(batch: int = 2, length: int = 12, seed: int = 1) -> Tensor:
    """Random tokens, int64 (batch, length)."""
    return torch.randint(3, 97, (batch, length), generator=torch.Generator().manual_seed(seed))


def calibration(model: nn.Module, names: list[str], max_rank: int = 8, seed: int = 3) -> Calibration:
    """Random orthonormal vectors for every target: what holds for them holds for eigenvectors."""
    generator, layers, table, spectra = torch.Generator().manual_seed(seed), {}, {}, {}
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] in names and isinstance(module, nn.Linear | Conv1D):
            shape = tuple(module.weight.T.shape if isinstance(module, Conv1D) else module.weight.shape)
            layers[name] = LayerInfo(
                name, shape, module.bias is not None, "input", name, 500, min(shape), min(shape), 9.0, 1.0
            )
            table[name] = torch.linalg.qr(torch.randn(shape[0], max_rank, generator=generator))[0]
            spectra[name] = torch.linspace(0, 1, shape[0], dtype=torch.float64)
    return Calibration(layers, max_rank, ("tail",), {}, {"tail": table, "spectra": spectra})


def disturb(model: nn.Module, size: float = 0.02) -> None:
    """Change everything trainable, as training would."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += size * noise.to(parameter.dtype)


def train(model: nn.Module, ids: Tensor, steps: int = 3) -> None:
    """Take real steps of AdamW; the model is in evaluation mode afterwards."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        (-model(ids).logits.float().log_softmax(-1)[..., 0].mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference as a share of the expected values' range."""
    return float((found - expected).abs().max() / (expected.max() - expected.min()))


class Rows(Dataset[dict[str, Tensor]]):
    """Eight training examples of random tokens."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = tokens(1, seed=index)[0]
        return {"input_ids": ids, "labels": ids}
