"""The definition, computed densely in float64: what the library is judged against."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from astra import Calibration
from astra.targets import layer_weight


def second_moments(model: nn.Module, batches: Iterable[dict[str, Tensor]], names: list[str]) -> dict[str, Tensor]:
    """C = (1/T) sum y y^T of each layer, with y recomputed in float64 from the captured inputs of real tokens."""
    modules = dict(model.named_modules())
    inputs: dict[str, list[Tensor]] = {name: [] for name in names}
    mask: Tensor | None = None

    def keep(name: str, x: Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1])
        inputs[name].append(rows[mask.flatten().bool()] if mask is not None and len(rows) == mask.numel() else rows)

    handles = [
        modules[name].register_forward_pre_hook(lambda _, args, name=name: keep(name, args[0])) for name in names
    ]
    for batch in batches:
        mask = batch.get("attention_mask")
        with torch.no_grad():
            model(**batch)
    for handle in handles:
        handle.remove()
    return {name: _moment(modules[name], torch.cat(inputs[name])) for name in names}


def _moment(module: nn.Module, x: Tensor) -> Tensor:
    weight, bias = layer_weight(module)
    y = x.double() @ weight.double().T
    if bias is not None:
        y = y + bias.double()
    return y.T @ y / len(y)


def excesses(calibration: Calibration, moments: dict[str, Tensor], rank: int) -> dict[str, float]:
    """The worst deviation from the best energy among the layers of `moments`, by subspace: relative for tail and
    principal, over the trace for nullspace (where the layer has that large a null space).
    """
    worst = dict.fromkeys(calibration.subspaces, 0.0)
    for name, c in moments.items():
        k = calibration.layers[name].numerical_rank
        values = torch.linalg.eigvalsh(c)
        m = len(values)
        for subspace in calibration.subspaces:
            width = min(rank, k) if subspace != "nullspace" else min(rank, m)
            q = calibration.vectors(name, subspace, width).double()
            energy = float((q * (c @ q)).sum())
            if subspace == "tail":
                worst[subspace] = max(worst[subspace], energy / float(values[m - k : m - k + width].sum()) - 1)
            elif subspace == "principal":
                worst[subspace] = max(worst[subspace], 1 - energy / float(values[m - width :].sum()))
            elif subspace == "nullspace" and width <= m - k:
                worst[subspace] = max(worst[subspace], energy / float(c.trace()))
    return worst
