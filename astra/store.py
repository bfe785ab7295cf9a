"""A calibration on disk: spectra and eigenvectors of every target layer, in safetensors and JSON.

    manifest.json            settings, one entry per layer, and the SHA-256 of every other file
    spectra.safetensors      layer -> float64 (m,), eigenvalues of C, ascending; NaN where not computed
    <subspace>.safetensors   layer -> float32 (m, <= max_rank), orthonormal columns, the nearest to the end first

The manifest is written last and removed first: a folder that has one is whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from astra.errors import AstraError
from astra.manifest import damaged, sealed, sha256_file, unsealed

FORMAT = 2
MANIFEST = "manifest.json"
SUBSPACES = ("tail", "nullspace", "principal", "middle", "random")


@dataclass(frozen=True)
class LayerInfo:
    """What is known of one target layer with weight W (m x n) after calibration.

    Attributes:
        name: dotted module name in the base model.
        shape: (m, n), outputs by inputs, also for `Conv1D`, whose weight is stored transposed.
        bias: whether y = W x + b has a b; it counts as one more input.
        moment: "input" if C was formed from the second moment of x, "output" if from that of y.
        group: name of the layer whose input moment this one shares (its own name if it shares none).
        tokens: number T of calibration tokens behind the moment.
        rank_bound: min(m, n (+1 with bias), T, distinct), which the rank of C cannot exceed.
        numerical_rank: number of eigenvalues inside the numerical range, at most `rank_bound`.
        effective_rank: exp of the entropy of the normalised spectrum; None if only its ends were computed.
        trace: trace of C, the mean of |y|^2 over tokens.
        distinct: number of different tokens, where the layer's input depends on nothing else (in a first decoder
            layer); else None.
    """

    name: str
    shape: tuple[int, int]
    bias: bool
    moment: str
    group: str
    tokens: int
    rank_bound: int
    numerical_rank: int
    effective_rank: float | None
    trace: float
    distinct: int | None = None

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> LayerInfo:
        """What `asdict` made of one, back from JSON."""
        return cls(**{**entry, "shape": tuple(entry["shape"])})


@dataclass
class Calibration:
    """Spectra and eigenvectors of a model's target layers, in memory or read from a folder as they are asked for.

    Attributes:
        layers: layer name -> LayerInfo, in the model's order.
        max_rank: the largest rank any subspace can be asked for (a layer with fewer outputs gives fewer).
        subspaces: the subspaces stored.
        settings: what the calibration was made of (model, data, samples ...), as its caller described it.
        left_out: layers that matched the targets but were never called, such as a vision tower's.
    """

    layers: dict[str, LayerInfo]
    max_rank: int
    subspaces: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False)
    folder: Path | None = None
    left_out: tuple[str, ...] = ()

    def vectors(self, name: str, subspace: str, rank: int) -> Tensor:
        """The `rank` first eigenvectors of one layer in one subspace.

        Returns:
            float32 (m, rank) on the CPU, orthonormal columns: of `tail` the smallest eigenvalues inside the numerical
            range, of `principal` the largest, of `middle` those around the median, each nearest first.

        Raises:
            AstraError: unknown layer or subspace, a rank above `max_rank`, or more than the layer has.
        """
        info = self._layer(name)
        if subspace not in self.subspaces:
            raise AstraError(
                f"subspace {subspace!r} is not in this calibration, which has {', '.join(self.subspaces)}"
            )
        if not 1 <= rank <= self.max_rank:
            raise AstraError(f"rank {rank} is outside 1..{self.max_rank}, what this calibration stores")
        stored = self.tensors(subspace)[name]
        if rank > stored.shape[1]:
            raise AstraError(_too_few(info, subspace, rank, stored.shape[1]))
        return stored[:, :rank].contiguous()

    def eigenvalues(self, name: str) -> Tensor:
        """Eigenvalues of C = (1/T) sum y y^T: float64 (m,), ascending; NaN if not computed (spectrum "ends")."""
        self._layer(name)
        return self.tensors("spectra")[name]

    def effective_ranks(self) -> dict[str, float]:
        """Entropy effective rank of every layer.

        Raises:
            AstraError: the calibration computed only the ends of the spectra.
        """
        ranks = {name: info.effective_rank for name, info in self.layers.items() if info.effective_rank is not None}
        if len(ranks) < len(self.layers):
            raise AstraError('effective ranks need whole spectra: calibrate with spectrum "full" instead of "ends"')
        return ranks

    def save(self, folder: str | Path) -> None:
        """Write everything into `folder`, replacing what it holds; the folder is never half a calibration.

        Raises:
            AstraError: the folder cannot be written (permissions, a full disk); what it held is still there.
        """
        folder = Path(folder)
        tables = {f"{name}.safetensors": self.tensors(name) for name in ("spectra", *self.subspaces)}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(prefix=".", suffix=".tmp", dir=folder) as temporary:
                staged = Path(temporary)
                for name, tensors in tables.items():
                    _write_tensors(staged / name, tensors)
                manifest = {
                    "format": FORMAT,
                    "max_rank": self.max_rank,
                    "subspaces": list(self.subspaces),
                    "settings": self.settings,
                    "left_out": list(self.left_out),
                    "layers": [asdict(info) for info in self.layers.values()],
                    "files": {name: sha256_file(staged / name) for name in tables},
                }
                text = json.dumps(sealed(manifest), indent=1, sort_keys=True) + "\n"
                (staged / MANIFEST).write_text(text, encoding="utf-8")
                (folder / MANIFEST).unlink(missing_ok=True)
                for name in (*tables, MANIFEST):
                    os.replace(staged / name, folder / name)
        except (OSError, SafetensorError) as error:
            raise AstraError(f"cannot write the calibration to {folder}: {_reason(error)}") from error
        for subspace in set(SUBSPACES) - set(self.subspaces):  # of a calibration that stood here before
            (folder / f"{subspace}.safetensors").unlink(missing_ok=True)
        self.folder = folder

    @classmethod
    def load(cls, folder: str | Path) -> Calibration:
        """Open a calibration and check that its files are what was written; vectors are read when asked for.

        Raises:
            AstraError: no complete calibration there, another format, or a file that is missing or altered.
        """
        folder = Path(folder)
        path = folder / MANIFEST
        if not path.exists():
            raise AstraError(f"{folder} holds no complete calibration ({MANIFEST} is missing)")
        try:
            manifest = unsealed(json.loads(path.read_text(encoding="utf-8")))
            if manifest["format"] != FORMAT:
                raise AstraError(f"{path}: format {manifest['format']} is not {FORMAT}; calibrate again")
            layers = {entry["name"]: LayerInfo.read(entry) for entry in manifest["layers"]}
            files, max_rank, left_out = manifest["files"], int(manifest["max_rank"]), tuple(manifest["left_out"])
            subspaces, settings = tuple(manifest["subspaces"]), dict(manifest["settings"])
            altered = damaged(folder, files)
        except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, AstraError):
                raise
            raise AstraError(f"{path}: damaged ({_reason(error)}); delete its folder and calibrate again") from error
        if altered is not None:
            raise AstraError(f"{altered}; delete its folder and calibrate again")
        return cls(layers, max_rank, subspaces, settings, {}, folder, left_out)

    def _layer(self, name: str) -> LayerInfo:
        if name not in self.layers:
            raise AstraError(f"layer {name!r} was not calibrated; calibrated: {', '.join(list(self.layers)[:3])}, ...")
        return self.layers[name]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Tensors of `<name>.safetensors`, read once."""
        if name not in self.tables:
            if self.folder is None:
                raise AstraError("the vectors of this calibration are with process 0: save them there and load them")
            self.tables[name] = load_file(self.folder / f"{name}.safetensors")
        return self.tables[name]


def _too_few(info: LayerInfo, subspace: str, rank: int, stored: int) -> str:
    message = f"layer {info.name}: rank {rank} of {subspace!r} asked for, but it has {stored}"
    if subspace == "tail" and info.rank_bound in (info.tokens, info.distinct):
        return f"{message}: {info.rank_bound} different calibration tokens span no more; use more samples"
    return f"{message} (shape {info.shape[0]} x {info.shape[1]}, numerical rank {info.numerical_rank})"


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    path.touch()
    mode = path.stat().st_mode
    # Names of modules go into the header, so that their order (the model's) is that of the file's bytes.
    contiguous = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path)
    path.chmod(mode)  # safetensors makes its files private; a store is shared, so as the umask says
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error).splitlines()[0]
