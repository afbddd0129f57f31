"""Shards: some thousand heads of a large bundle in one directory. Knows their files, not how ONNX works.

    heads/shard-00000/heads.npz     weights, calibrations, thresholds and versions, an array each over the shard's heads
    heads/shard-00000/model.onnx    features -> calibrated probabilities of the shard's heads

K = heads, S = heads of one shard
"""

import io
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core import scale
from ovr.core.artifact import check_thresholds
from ovr.core.calibrations import Calibrations
from ovr.core.files import canonical_json, sha256_bytes
from ovr.core.heads import Figures, HeadColumns
from ovr.errors import ArtifactError

FIGURES = "report/classes.npz"
_CALIBRATION, _WEIGHTS = "calibration.", "weights."
_BLOCK = 32  # columns of a fused block: shards of whole blocks need no padding


@dataclass(frozen=True, slots=True)
class Shard:
    """The heads of consecutive columns."""

    path: str  # relative to the bundle
    first_column: int
    num_heads: int

    @property
    def columns(self) -> slice:
        """The columns of its heads."""
        return slice(self.first_column, self.first_column + self.num_heads)

    @property
    def heads_file(self) -> str:
        """Relative to the bundle."""
        return f"{self.path}/heads.npz"

    @property
    def onnx_file(self) -> str:
        """Relative to the bundle."""
        return f"{self.path}/model.onnx"


def shards_of(num_heads: int, *, head_bytes: int) -> tuple[Shard, ...]:
    """Return the shards of so many heads: `SHARD_HEADS` in each but the last, less where those exceed `SHARD_BYTES`."""
    fitting = max(1, scale.SHARD_BYTES // head_bytes)
    size = min(scale.SHARD_HEADS, fitting - fitting % _BLOCK if fitting > _BLOCK else fitting)
    return tuple(
        Shard(f"heads/shard-{index:05d}", start, min(size, num_heads - start))
        for index, start in enumerate(range(0, num_heads, size))
    )


def shard_bytes(heads: HeadColumns, shard: Shard, weights: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Return heads.npz of one shard; `weights` are stacked, (S, ...) each. The same heads give the same bytes."""
    calibrations = heads.calibrations[shard.columns]
    return npz_bytes(
        {
            "backbone_sha256": np.array(heads.backbone_sha256.encode()),
            "classes_sha256": np.array(_classes_sha256(heads.class_ids[shard.columns]).encode()),
            "kind": np.array(heads.kind.encode()),
            "version": heads.version_K[shard.columns],
            "threshold": heads.threshold_K[shard.columns],
            "threshold_status": np.char.encode(np.array(heads.threshold_status_K[shard.columns]), "utf-8"),
            **{
                _CALIBRATION + name: np.char.encode(value_S.astype(str), "utf-8") if value_S.dtype == object else value_S
                for name, value_S in calibrations.columns.items()
                if name != "details"  # would outweigh the heads; the status says the most of it
            },
            **{_WEIGHTS + name: value for name, value in weights.items()},
        }
    )


def read_columns(root: Path, shards: Sequence[Shard], class_ids: Sequence[str], *, backbone_sha256: str) -> HeadColumns:
    """Return the heads of all shards, without their weights.

    Raises:
        ArtifactError: the shards are not of these classes or this backbone, not of one kind, or not readable.
    """
    ends = [0, *(shard.columns.stop for shard in shards)]
    if [shard.first_column for shard in shards] != ends[:-1] or ends[-1] != len(class_ids):
        raise ArtifactError(f"bundle {root} has shards that end at columns {ends[1:]}; the taxonomy has {len(class_ids)} classes")
    versions, thresholds, calibrations, kinds = [], [], [], set()
    statuses: list[str] = []
    for shard in shards:
        arrays = _read(root / shard.heads_file, weights=False)
        trained_on = arrays["backbone_sha256"].item().decode()
        if trained_on != backbone_sha256:
            raise ArtifactError(
                f"the heads in {shard.path} were trained on backbone {trained_on[:12]}, this bundle has {backbone_sha256[:12]}; "
                "train them on this bundle's features"
            )
        kinds.add(arrays["kind"].item().decode())
        found = {name.removeprefix(_CALIBRATION): value for name, value in arrays.items() if name.startswith(_CALIBRATION)}
        calibrations.append(Calibrations({name: _texts(value_S) for name, value_S in found.items()}))
        versions.append(arrays["version"])
        thresholds.append(arrays["threshold"])
        statuses += _texts(arrays["threshold_status"]).tolist() if "threshold_status" in arrays else ["ok"] * shard.num_heads
        if {len(calibrations[-1]), len(versions[-1]), len(thresholds[-1])} != {shard.num_heads} or len(
            statuses
        ) != shard.columns.stop:
            raise ArtifactError(f"{root / shard.heads_file} does not hold {shard.num_heads} heads")
        check_thresholds(thresholds[-1].tolist(), f"{root / shard.heads_file}")
        if arrays["classes_sha256"].item().decode() != _classes_sha256(class_ids[shard.columns]):
            raise ArtifactError(
                f"{root / shard.heads_file} holds heads of other classes than columns {shard.columns.start} to "
                f"{shard.columns.stop - 1} of the taxonomy"
            )
    if len(kinds) != 1:
        raise ArtifactError(f"bundle {root} has shards of heads of kinds {sorted(kinds)}; expected one kind")
    return HeadColumns(
        class_ids,
        kind=kinds.pop(),
        backbone_sha256=backbone_sha256,
        version_K=np.concatenate(versions),
        threshold_K=np.concatenate(thresholds),
        threshold_status_K=statuses,
        calibrations=Calibrations.joined(calibrations),
        figures=lambda: read_figures(root),
    )


def read_weights(root: Path, shard: Shard) -> dict[str, NDArray[np.float32]]:
    """Return the weights of a shard's heads, (S, ...) each."""
    return {name.removeprefix(_WEIGHTS): value for name, value in _read(root / shard.heads_file, weights=True).items()}


def read_figures(root: Path) -> Figures:
    """Return the figures of every class on the test rows, (K,) each."""
    return _load(root / FIGURES)


def npy_bytes(array: NDArray[Any]) -> bytes:
    """Return the .npy file of `array`."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def npz_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return the .npz file of `arrays`; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _classes_sha256(class_ids: Sequence[str]) -> str:
    """Return what tells the classes of a shard, and their order, from those of another."""
    return sha256_bytes(canonical_json(list(class_ids)))


def _read(file: Path, *, weights: bool) -> dict[str, NDArray[Any]]:
    return _load(file, lambda name: name.startswith(_WEIGHTS) == weights)


def _load(file: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, NDArray[Any]]:
    try:
        with file.open("rb") as content, np.load(content, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files if wanted(name)}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{file} cannot be read: {error}") from None


def _texts(value_S: NDArray[Any]) -> NDArray[Any]:
    """Return texts as references to one text each; anything else as it is."""
    if value_S.dtype.kind != "S":
        return value_S
    known = {value: value.decode() for value in set(value_S.tolist())}
    return np.array([known[value] for value in value_S.tolist()], dtype=object)


def paths(shards: Iterable[Shard]) -> list[str]:
    """Return every file that the shards need, relative to the bundle."""
    return [file for shard in shards for file in (shard.heads_file, shard.onnx_file)]
