"""Every method of the comparison, by name. PEFT supplies what PEFT has; adding a method is one entry in `METHODS`.

A method turns a base model into one to train. Those that start from a non-zero product train the difference to it, so
that the base model stays as it is (`astra.factors`). The table is read before anything heavy is loaded, so that torch
and PEFT are imported where a model is built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from torch import Tensor, nn

    from astra.adapter import Factors, Target
    from astra.store import Calibration
    from utils.config import MethodConfig

    Batch = dict[str, Tensor]
    # What a data-driven method reads: `samples(size)` yields batches of that many calibration examples with labels.
    Samples = Callable[[int], Iterable[Batch]]


@dataclass
class Request:
    """What a method is asked to build."""

    method: MethodConfig
    task_type: str = "CAUSAL_LM"  # PEFT's; or "SEQ_CLS"
    rank_pattern: dict[str, int] = field(default_factory=dict)  # where it is not `method.rank`; alpha / rank stays
    calibration: Calibration | None = None
    samples: Samples | None = None

    def peft_config(self, **options: Any) -> LoraConfig:
        """The `LoraConfig` of this request; `options` are the method's own."""
        from peft import LoraConfig

        method = self.method
        scaling = method.scaled_alpha / method.rank
        return LoraConfig(
            r=method.rank,
            lora_alpha=method.scaled_alpha,  # type: ignore[arg-type]  # PEFT takes fractions too
            lora_dropout=method.dropout,
            target_modules=method.target_modules,
            exclude_modules=method.exclude_modules,
            task_type=self.task_type,
            rank_pattern=dict(self.rank_pattern),
            alpha_pattern={name: rank * scaling for name, rank in self.rank_pattern.items()},
            **options,
        )


@dataclass(frozen=True)
class Method:
    """How one method is built and treated."""

    build: Callable[[nn.Module, Request], nn.Module]  # makes the model to train
    # The usual range of its learning rate: for LoRA, DoRA, MiLoRA and PiSSA that of the best published ones over ranks
    # 8 to 128 (LLaMA-2-7B, arXiv 2602.04998); the tail's best is near LoRA's (docs/which-tail.md).
    rates: tuple[float, float]
    # What it reads: a calibration's store, or the samples themselves.
    needs: Literal["nothing", "calibration", "samples"] = "nothing"
    plain: bool = True  # what it trains is a plain LoRA on the untouched base
    moves: bool = False  # it starts from a non-zero product, so that its change has rank 2r
    freezes_b: bool = False  # B stays as it was computed from W

    @property
    def keeps_start(self) -> bool:
        """Whether a run that goes on needs the factors it started with: drawn from a seed they are the same again."""
        return self.moves or self.freezes_b or self.needs == "samples"


def build(model: nn.Module, request: Request) -> nn.Module:
    """Return the model to train; all its trainable parameters require gradients, and no others."""
    from astra.adapter import check_names
    from astra.targets import match_targets

    method = request.method
    if method.name != "full":  # by their whole names; what reads a calibration leaves out what that never reached
        left_out = request.calibration.left_out if request.calibration is not None else ()
        names = [name for name in match_targets(model, request.peft_config()) if name not in left_out]
        check_names(model, set(names))
        method = method.model_copy(update={"target_modules": names, "exclude_modules": None})
    return METHODS[method.name].build(model, replace(request, method=method))


def restore(model: nn.Module, request: Request, initial: Mapping[str, Factors]) -> PeftModel:
    """Rebuild the adapter of an interrupted run from the factors it started with; nothing is decomposed again."""
    from astra.adapter import attach_factors, lora_layers

    # The run may have left layers out, and ranks may differ, as EVA does.
    method = request.method.model_copy(update={"target_modules": list(initial)})
    ranks = {layer: a.shape[0] for layer, (a, _) in initial.items()}
    request = replace(request, method=method, rank_pattern=ranks)
    if METHODS[method.name].moves:
        return attach_factors(model, request.peft_config(), lambda target, _: initial[target.name])
    plain = _lora(model, request)
    for name, layer in lora_layers(plain):
        for side, start in zip((layer.lora_A, layer.lora_B), initial[name], strict=True):
            side["default"].weight.data.copy_(start)
    if METHODS[method.name].freezes_b:
        freeze_b(plain)
    return plain


def freeze_b(peft_model: nn.Module) -> None:
    """Train A alone, also after PEFT has switched the adapter off and on again, which makes what it has trainable."""
    from astra.adapter import lora_layers

    for _, layer in lora_layers(peft_model):
        layer.frozen_peft_weight_names = {"default": ("lora_B",)}
        layer.set_adapter(layer.active_adapters)


def usual_rates(name: str, subspace: str) -> tuple[float, float]:
    """The usual range of the learning rate; the subspace `principal` moves large directions and wants PiSSA's."""
    principal = METHODS[name].needs == "calibration" and subspace == "principal"
    return METHODS["pissa"].rates if principal else METHODS[name].rates


def _astra(model: nn.Module, request: Request) -> PeftModel:
    from astra.adapter import attach

    assert request.calibration is not None
    method = request.method
    return attach(model, request.calibration, request.peft_config(), subspace=method.subspace, split=method.split)


def _lora(model: nn.Module, request: Request, **options: Any) -> PeftModel:
    """PEFT's own adapter, as its configuration starts it."""
    import torch
    from peft import get_peft_model

    torch.manual_seed(request.method.seed)
    return get_peft_model(model, request.peft_config(**options))


def _dora(model: nn.Module, request: Request) -> PeftModel:
    """Direction and magnitude apart (DoRA, arXiv 2402.09353), norms in float32 whatever the base's data type.

    PEFT's are rounded to that: every row of what is exported would be too long or too short by up to 0.4%.
    """
    import torch
    from peft.utils.integrations import gather_params_ctx

    from astra.adapter import as_matrix, lora_layers

    peft_model = _lora(model, request, use_dora=True)
    for _, layer in lora_layers(peft_model):
        base, magnitude = layer.get_base_layer(), layer.lora_magnitude_vector["default"]
        with gather_params_ctx([base.weight], modifier_rank=None):
            magnitude.weight.data = torch.linalg.vector_norm(as_matrix(base).float(), dim=1)
        magnitude.get_weight_norm = partial(_norms_in_float32, magnitude.get_weight_norm)
    return peft_model


def _norms_in_float32(norms: Callable[..., Tensor], weight: Tensor, *args: Any, **options: Any) -> Tensor:
    return norms(weight.float(), *args, **options)


def _milora(model: nn.Module, request: Request) -> PeftModel:
    """Minor singular components of W, shared evenly between A and B (MiLoRA, arXiv 2406.09044).

    They are eigenvectors of the smaller of W^T W and W W^T, in float64.
    """
    import torch

    from astra.adapter import attach_factors

    def factors(target: Target, weight: Tensor) -> Factors:
        w = weight.double() if weight.shape[0] >= weight.shape[1] else weight.double().T
        v = torch.linalg.eigh(w.T @ w)[1][:, : target.rank]
        product = w @ v  # the left singular vectors times the singular values
        s = torch.linalg.vector_norm(product, dim=0)
        root = (s / target.scaling).sqrt()
        u = product * torch.where(s > 0, root / s, 0)
        a, b = (v * root).T.float(), u.float()
        return (a, b) if w.shape == weight.shape else (b.T, a.T)

    return attach_factors(model, request.peft_config(), factors)


def _olora(model: nn.Module, request: Request) -> PeftModel:
    """The first columns and rows of a QR of W (OLoRA, arXiv 2406.01775); PEFT's own takes GPT-2's W transposed."""
    import torch

    from astra.adapter import attach_factors

    def factors(target: Target, weight: Tensor) -> Factors:
        q, r = torch.linalg.qr(weight)
        return r[: target.rank], q[:, : target.rank]

    return attach_factors(model, request.peft_config(), factors)


def _mica(model: nn.Module, request: Request) -> PeftModel:
    """B frozen at the minor left singular vectors of W, A from zero (MiCA, arXiv 2604.01694)."""
    peft_model = _lora(model, request, init_lora_weights="mica")
    config: Any = peft_model.peft_config["default"]
    config.init_lora_weights = True  # from here on it is a plain LoRA
    return peft_model


def _lora_matched(model: nn.Module, request: Request) -> PeftModel:
    """LoRA with its random A scaled, layer by layer, so that its first step is as long as Astra's.

    It has the size of Astra's step and none of its directions: s sqrt(m) |A| = s sqrt(m |A0|^2 + n |B0|^2).
    """
    from astra.adapter import Target, calibrated, lora_layers, make_starts

    assert request.calibration is not None
    peft_model = _lora(model, request)
    layers = dict(lora_layers(peft_model))
    targets = [
        Target(name, layer.get_base_layer(), layer.r["default"], layer.scaling["default"])
        for name, layer in layers.items()
    ]
    starts = make_starts(targets, calibrated(request.calibration, request.method.subspace, request.method.split))
    for name, (a, b) in starts.items():
        weight = layers[name].lora_A["default"].weight.data
        wanted = a.square().sum() + a.shape[1] / b.shape[0] * b.square().sum()
        weight *= (wanted / weight.square().sum()).sqrt()
    return peft_model


def _corda(model: nn.Module, request: Request) -> PeftModel:
    """Instruction-previewed CorDA (arXiv 2406.05223), its covariances from the calibration samples."""
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    assert request.samples is not None
    options = {"init_lora_weights": "corda", "corda_config": CordaConfig(corda_method="ipm")}
    batches = request.samples(1)  # PEFT's hook wants one sequence, unpadded, at a time

    def forward() -> None:
        for batch in batches:
            model(**{key: value for key, value in batch.items() if key != "labels"})

    preprocess_corda(model, request.peft_config(**options), forward)
    return _started_by_peft(model, request, **options)


def _eva(model: nn.Module, request: Request) -> PeftModel:
    """Explained variance adaptation (arXiv 2410.07170), with its redistribution of ranks over layers."""
    from peft import initialize_lora_eva_weights
    from peft.tuners.lora.config import EvaConfig

    assert request.samples is not None
    peft_model = _lora(model, request, init_lora_weights="eva", eva_config=EvaConfig())
    initialize_lora_eva_weights(peft_model, list(request.samples(8)), show_progress_bar=False)
    config: Any = peft_model.peft_config["default"]
    config.init_lora_weights, config.eva_config = True, None  # from here on it is a plain LoRA
    return peft_model


def _lora_ga(model: nn.Module, request: Request) -> PeftModel:
    """Gradient approximation (arXiv 2407.05000) on the calibration samples."""
    from peft import LoraGAConfig, preprocess_loraga

    assert request.samples is not None
    options = {"init_lora_weights": "lora_ga", "lora_ga_config": LoraGAConfig()}
    batches = request.samples(1)

    def accumulate() -> None:
        for batch in batches:
            model(**batch).loss.backward()

    preprocess_loraga(model, request.peft_config(**options), accumulate)
    return _started_by_peft(model, request, **options)


def _full(model: nn.Module, _: Request) -> nn.Module:
    return model.requires_grad_(True)


def _started_by_peft(model: nn.Module, request: Request, **options: Any) -> PeftModel:
    """An adapter that starts from the factors of PEFT's initialisation, which edits a copy of one layer at a time."""
    import copy

    import torch
    from peft import LoraConfig
    from peft.tuners.lora import Linear
    from transformers.pytorch_utils import Conv1D

    from astra.adapter import attach_factors

    def factors(target: Target, weight: Tensor) -> Factors:
        transposed = isinstance(target.module, Conv1D)
        twin = copy.copy(target.module)
        twin._parameters = {"weight": torch.nn.Parameter((weight.T if transposed else weight).clone())}
        config = LoraConfig(
            r=target.rank, lora_alpha=target.rank * target.scaling,  # type: ignore[arg-type]  # PEFT takes fractions too
            fan_in_fan_out=transposed, **options,
        )  # fmt: skip
        layer: Any = Linear(twin, "default", config, r=config.r, lora_alpha=config.lora_alpha)
        for key in ("eigens", "_peft_loraga_grad"):  # what PEFT has left on the layer for this
            vars(target.module).pop(key, None)
        return layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data

    torch.manual_seed(request.method.seed)  # LoRA-GA's decomposition is a randomised one
    return attach_factors(model, request.peft_config(), factors)


METHODS: dict[str, Method] = {
    "astra": Method(_astra, rates=(1e-4, 2e-3), needs="calibration", moves=True),
    "lora": Method(_lora, rates=(1e-4, 2e-3)),
    "lora_matched": Method(_lora_matched, rates=(1e-4, 2e-3), needs="calibration"),
    # Scaled by alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732).
    "rslora": Method(partial(_lora, use_rslora=True), rates=(2e-5, 2e-4)),
    "dora": Method(_dora, rates=(1e-4, 2e-3), plain=False),
    # Principal singular components of W (PiSSA, arXiv 2404.02948).
    "pissa": Method(partial(_started_by_peft, init_lora_weights="pissa"), rates=(4e-5, 1e-3), moves=True),
    "milora": Method(_milora, rates=(1e-4, 2e-3), moves=True),
    "mica": Method(_mica, rates=(1e-4, 1e-3), freezes_b=True),
    "olora": Method(_olora, rates=(2e-5, 2e-4), moves=True),
    "corda": Method(_corda, rates=(1e-5, 1e-4), needs="samples", moves=True),
    "eva": Method(_eva, rates=(1e-4, 5e-4), needs="samples"),
    "lora_ga": Method(_lora_ga, rates=(1e-5, 1e-4), needs="samples", moves=True),
    "full": Method(_full, rates=(5e-6, 5e-5), plain=False),
}
