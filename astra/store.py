"""A calibration on disk: spectra and eigenvectors of every target layer, in safetensors and JSON.

    manifest.json            settings, one entry per layer, and size and SHA-256 of every other file
    spectra.safetensors      layer -> float64 (m,), eigenvalues of C, ascending; NaN where not computed
    <subspace>.safetensors   layer -> float32 (m, <= max_rank), orthonormal columns, the nearest to the end first
    moments.safetensors      only if kept: the second moments themselves, float64

The manifest is written last and removed first: a folder that has one is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from astra.errors import AstraError

FORMAT = 1
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
        rank_bound: min(m, n (+1 with bias), T), which the rank of C cannot exceed.
        numerical_rank: eigenvalues above max(m, n) * eps(float64) * 8 * largest.
        effective_rank: exp of the entropy of the normalised spectrum; None if only its ends were computed.
        trace: trace of C, the mean of |y|^2 over tokens.
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


@dataclass
class Calibration:
    """Spectra and eigenvectors of a model's target layers, in memory or read from a folder as they are asked for.

    Attributes:
        layers: layer name -> LayerInfo, in the model's order.
        max_rank: the largest rank any subspace can be asked for (a layer with fewer outputs gives fewer).
        subspaces: the subspaces stored.
        settings: what the calibration was made of (model, data, samples ...), as its caller described it.
    """

    layers: dict[str, LayerInfo]
    max_rank: int
    subspaces: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False)
    folder: Path | None = None
    files: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)

    @property
    def has_moments(self) -> bool:
        """Whether the second moments were kept."""
        return "moments" in self.tables or "moments.safetensors" in self.files

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
        stored = self._table(subspace)[name]
        if rank > stored.shape[1]:
            raise AstraError(_too_few(info, subspace, rank, stored.shape[1]))
        return stored[:, :rank].contiguous()

    def eigenvalues(self, name: str) -> Tensor:
        """Eigenvalues of C = (1/T) sum y y^T: float64 (m,), ascending; NaN if not computed (spectrum "ends")."""
        self._layer(name)
        return self._table("spectra")[name]

    def moments(self) -> dict[str, Tensor]:
        """The second moments, float64, by the layer that accumulated them (`LayerInfo.group`).

        Raises:
            AstraError: they were not kept.
        """
        if not self.has_moments:
            raise AstraError("this calibration was made without keep_moments")
        return self._table("moments")

    def effective_ranks(self) -> dict[str, float]:
        """Entropy effective rank of every layer.

        Raises:
            AstraError: the calibration computed only the ends of the spectra.
        """
        ranks = {name: info.effective_rank for name, info in self.layers.items()}
        if any(rank is None for rank in ranks.values()):
            raise AstraError('effective ranks need whole spectra: calibrate with spectrum "full" instead of "ends"')
        return {name: float(rank) for name, rank in ranks.items() if rank is not None}

    def save(self, folder: str | Path) -> None:
        """Write everything into `folder`, replacing what it holds; the folder is never half a calibration.

        Raises:
            AstraError: the folder cannot be written (permissions, a full disk); nothing new is left behind.
        """
        folder = Path(folder)
        tables = {name: self._table(name) for name in ("spectra", *self.subspaces)}
        if self.has_moments:
            tables["moments"] = self.moments()
        staged: dict[str, Path] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, tensors in tables.items():
                staged[f"{name}.safetensors"] = _stage(folder, f"{name}.safetensors", _table_writer(tensors))
            files = {name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for name, path in staged.items()}
            manifest = self._manifest(files)
            staged[MANIFEST] = _stage(folder, MANIFEST, lambda path: _write_text(path, manifest))
            (folder / MANIFEST).unlink(missing_ok=True)
            for name, path in staged.items():
                os.replace(path, folder / name)
        except (OSError, SafetensorError) as error:
            raise AstraError(f"cannot write the calibration to {folder}: {_reason(error)}") from error
        finally:
            for path in staged.values():
                path.unlink(missing_ok=True)
        for stale in set(folder.glob("*.safetensors")) - {folder / name for name in files}:
            stale.unlink()
        self.folder, self.files = folder, files

    def _manifest(self, files: dict[str, dict[str, Any]]) -> str:
        manifest = {
            "format": FORMAT,
            "max_rank": self.max_rank,
            "subspaces": list(self.subspaces),
            "settings": self.settings,
            "layers": [asdict(info) for info in self.layers.values()],
            "files": files,
        }
        return json.dumps(manifest, indent=1, sort_keys=True) + "\n"

    @classmethod
    def load(cls, folder: str | Path) -> Calibration:
        """Open a calibration; vectors are read, and their hashes checked, when they are first asked for.

        Raises:
            AstraError: no complete calibration there, another format, or a file that is missing or cut short.
        """
        folder = Path(folder)
        path = folder / MANIFEST
        if not path.is_file():
            raise AstraError(f"{folder} holds no complete calibration ({MANIFEST} is missing)")
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if manifest["format"] != FORMAT:
                raise AstraError(f"{path}: format {manifest['format']} is not {FORMAT}, the one this version reads")
            infos = [LayerInfo(**{**entry, "shape": tuple(entry["shape"])}) for entry in manifest["layers"]]
            files, max_rank = dict(manifest["files"]), int(manifest["max_rank"])
            subspaces, settings = tuple(manifest["subspaces"]), dict(manifest["settings"])
        except (OSError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, AstraError):
                raise
            raise AstraError(f"{path} is damaged ({_reason(error)}); delete the folder and calibrate again") from error
        for name, entry in files.items():
            _check_size(folder / name, entry["bytes"])
        return cls({info.name: info for info in infos}, max_rank, subspaces, settings, {}, folder, files)

    def _layer(self, name: str) -> LayerInfo:
        if name not in self.layers:
            raise AstraError(f"layer {name!r} was not calibrated; calibrated: {', '.join(list(self.layers)[:3])}, ...")
        return self.layers[name]

    def _table(self, name: str) -> dict[str, Tensor]:
        """Tensors of `<name>.safetensors`, read and verified once."""
        if name not in self.tables:
            if self.folder is None:
                raise AstraError(f"this calibration has no {name}")
            self.tables[name] = read_table(self.folder / f"{name}.safetensors", self.files[f"{name}.safetensors"])
        return self.tables[name]


def read_table(path: Path, entry: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors of a safetensors file whose size and SHA-256 must be those of `entry`.

    Raises:
        AstraError: missing, cut short, altered, or not safetensors.
    """
    _check_size(path, entry["bytes"])
    if _sha256(path) != entry["sha256"]:
        raise AstraError(
            f"{path} is damaged (its SHA-256 is not the manifest's); delete the folder and calibrate again"
        )
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise AstraError(f"{path} cannot be read: {_reason(error)}") from error


def write_table(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a safetensors file that is either absent or whole.

    Raises:
        AstraError: the file cannot be written (permissions, a full disk).
    """
    staged = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = _stage(path.parent, path.name, _table_writer(tensors, metadata))
        os.replace(staged, path)
    except (OSError, SafetensorError) as error:
        raise AstraError(f"cannot write {path}: {_reason(error)}") from error
    finally:
        if staged is not None:
            staged.unlink(missing_ok=True)


def _too_few(info: LayerInfo, subspace: str, rank: int, stored: int) -> str:
    message = f"layer {info.name}: rank {rank} of {subspace!r} asked for, but it has {stored}"
    if subspace == "tail" and info.rank_bound == info.tokens:
        return f"{message}: {info.tokens} calibration tokens span no more; use more samples"
    return f"{message} (shape {info.shape[0]} x {info.shape[1]}, numerical rank {info.numerical_rank})"


def _stage(folder: Path, name: str, write: Callable[[Path], None]) -> Path:
    """Write to a temporary name beside `name`; remove it again if that fails."""
    for stale in folder.glob(f".{name}.*.tmp"):
        if not _running(int(stale.name.split(".")[-2])):
            stale.unlink(missing_ok=True)
    path = folder / f".{name}.{os.getpid()}.tmp"
    try:
        path.touch()
        mode = path.stat().st_mode
        write(path)
        path.chmod(mode)  # safetensors makes its files private; a store is shared, so as the umask says
        with open(path, "rb") as handle:
            os.fsync(handle.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def _running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _table_writer(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Callable[[Path], None]:
    # Names of modules go into the header, so that their order (the model's) is that of the file's bytes.
    contiguous = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    return lambda path: save_file(contiguous, path, metadata=dict(metadata) if metadata else None)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _check_size(path: Path, expected: int) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise AstraError(f"{path} is missing; delete the folder and calibrate again") from error
    if size != expected:
        raise AstraError(f"{path} is cut short: {size} bytes of {expected}; delete the folder and calibrate again")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error).splitlines()[0]
