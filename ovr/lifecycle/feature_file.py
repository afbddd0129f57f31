"""Features of labelled rows in one npz file, so that heads are fitted without the rows and without the backbone.

`ovr head features` writes it; arrays of one's own do as well:

    features         (N, D) numbers, as the bundle's backbone gives them
    backbone_sha256  text: of the backbone that they are of, as `ovr head show` says it of each head
    target           (N, K) int8: 1, 0 or -1 (not known), with `class_ids` (K,) text; or (N,) text, the id of each row's one class
    split            (N,) text, train, val, calib or test; may be left out: rows are then left out in turn
    digest           (N,) uint64 of the raw rows (`ovr.data.leakage.row_digests`); may be left out: then no row is known again,
                     neither those that the backbone was trained on nor, later, these; the history says so
    cohort_<column>  (N,) text; may be left out

N = rows, D = features, K = classes of the file
"""

import io
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.bundle import ModelBundle
from ovr.core.files import write_file
from ovr.core.packed import check_arrays
from ovr.core.taxonomy import Taxonomy
from ovr.data.labels import Labels
from ovr.data.leakage import row_digests
from ovr.data.splits import SPLIT_NAMES
from ovr.errors import ArtifactError, DataError
from ovr.export.head import WEIGHT_NAMES
from ovr.export.stored import stored_weights
from ovr.lifecycle.head_rows import SplitRows, check_held_out, repeated_rows, undivided

log = logging.getLogger(__name__)

_COHORT = "cohort_"


def write_features(file: Path, bundle: ModelBundle, rows: Mapping[str, SplitRows], taxonomy: Taxonomy) -> None:
    """Write features of rows, as `split_rows` gives them with the columns of `taxonomy`; the file appears whole or not at all."""
    dense = [rows[name].labels.dense() for name in SPLIT_NAMES]
    arrays: dict[str, NDArray[Any]] = {
        "features": np.concatenate([rows[name].z_ND for name in SPLIT_NAMES]),
        "backbone_sha256": np.array(bundle.backbone_sha256),
        "target": np.concatenate([np.where(mask_NK, target_NK, -1).astype(np.int8) for target_NK, mask_NK in dense]),
        "class_ids": np.array(taxonomy.ids),
        "split": np.concatenate([np.full(len(rows[name]), name, "U5") for name in SPLIT_NAMES]),
        "digest": np.concatenate([rows[name].digest_N for name in SPLIT_NAMES]),
    }
    for column in rows["train"].cohorts:
        arrays[f"{_COHORT}{column}"] = np.concatenate([rows[name].cohorts[column] for name in SPLIT_NAMES])
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]  # its keywords are arrays, but for one
    write_file(file, content.getvalue())


def read_features(file: Path, bundle: ModelBundle, taxonomy: Taxonomy, *, max_overlap: float) -> dict[str, SplitRows]:
    """Return the rows of a file of features by split, in the columns of `taxonomy`; without splits all are training rows.

    Of a class that the file does not name, a row is known to be another's where its labels of all that it names are known.

    Raises:
        ArtifactError: the features are of another backbone.
        DataError: a file that cannot be read, or arrays that do not fit; of a held-out split too many are rows that the backbone
            was trained on.
    """
    arrays = _arrays(file)
    backbone = str(arrays["backbone_sha256"])
    if backbone != bundle.backbone_sha256:
        raise ArtifactError(
            f"the features in {file} are of backbone {backbone[:12]}, bundle {bundle.path} has {bundle.backbone_sha256[:12]}; "
            "`ovr head features` computes those of this one"
        )
    num_features = _num_features(bundle)
    z_ND = arrays["features"]
    if z_ND.ndim != 2 or z_ND.dtype.kind not in "fiu" or z_ND.shape[1] != num_features or not len(z_ND):
        raise DataError(f"{file} holds features {z_ND.dtype} {z_ND.shape}; expected numbers (rows, {num_features})")
    z_ND = np.ascontiguousarray(z_ND, np.float32)
    if not np.isfinite(z_ND).all():
        raise DataError(f"{file} holds features that are not finite, first in row {int(np.argmin(np.isfinite(z_ND).all(axis=1)))}")
    for name in ("target", "split", "digest", *(name for name in arrays if name.startswith(_COHORT))):
        if name in arrays and len(np.atleast_1d(arrays[name])) != len(z_ND):
            raise DataError(f"{file} has {len(z_ND)} rows of features and {len(np.atleast_1d(arrays[name]))} of {name}")
    digest_N = arrays.get("digest")
    by_features = digest_N is None
    if digest_N is None:
        log.warning("%s has no digests of its rows: rows that the bundle was made from cannot be told from others", file)
        digest_N = row_digests(z_ND)
    if digest_N.dtype != np.uint64 or digest_N.ndim != 1:
        raise DataError(f"{file} holds digests {digest_N.dtype} {digest_N.shape}; expected uint64 (rows,)")
    cohorts = {name.removeprefix(_COHORT): cells.astype(np.str_) for name, cells in arrays.items() if name.startswith(_COHORT)}
    labels = _labels(arrays, taxonomy, file)
    if "split" not in arrays:
        return undivided(SplitRows(z_ND, digest_N, labels, cohorts, np.zeros(len(z_ND), np.bool_), by_features=by_features))
    split_N = arrays["split"].astype(np.str_)
    if (got := {*split_N.tolist()}) != {*SPLIT_NAMES}:
        raise DataError(f"{file} has rows of splits {', '.join(sorted(got))}; expected rows of each of {', '.join(SPLIT_NAMES)}")
    found: dict[str, SplitRows] = {}
    for name in SPLIT_NAMES:
        (row_B,) = np.nonzero(split_N == name)
        check_held_out(bundle, name, digest_N[row_B], max_overlap=max_overlap, source=file.name, row_numbers=row_B)
        repeated_B = repeated_rows(name, digest_N[row_B], found)
        of_cohorts = {column: cells[row_B] for column, cells in cohorts.items()}
        found[name] = SplitRows(z_ND[row_B], digest_N[row_B], labels.take(row_B), of_cohorts, repeated_B, by_features=by_features)
    return found


def _arrays(file: Path) -> dict[str, NDArray[Any]]:
    try:
        check_arrays(file, compressed=True)
        content = np.load(file, allow_pickle=False)
        if isinstance(content, np.ndarray):
            raise ValueError("it is one array")
        with content:
            arrays = {name: content[name] for name in content.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} cannot be read as an npz file: {getattr(error, 'strerror', None) or error}") from None
    if missing := [name for name in ("features", "backbone_sha256", "target") if name not in arrays]:
        raise DataError(
            f"{file} has arrays {', '.join(arrays) or 'none'}, and lacks {', '.join(missing)}; `ovr head features` writes them all"
        )
    return arrays


def _num_features(bundle: ModelBundle) -> int:
    ((_, kind, weights),) = stored_weights(bundle, [0])
    return int(weights[WEIGHT_NAMES[kind][0]].shape[-1])


def _labels(arrays: Mapping[str, NDArray[Any]], taxonomy: Taxonomy, file: Path) -> Labels:
    target = arrays["target"]
    if target.ndim == 1 and target.dtype.kind == "U":
        ids, column_N = np.unique(target, return_inverse=True)
        class_ids, target = ids.tolist(), (column_N[:, None] == np.arange(len(ids))).astype(np.int8)
    elif target.ndim == 2 and "class_ids" in arrays and arrays["class_ids"].shape == (target.shape[1],):
        class_ids = arrays["class_ids"].astype(np.str_).tolist()
    else:
        raise DataError(
            f"{file} holds targets {target.dtype} {target.shape}; expected a class id a row, or (rows, classes) with class_ids"
        )
    if unknown := taxonomy.unknown(class_ids):
        raise DataError(f"{file} names classes that are none of the bundle's nor of those to be added: {unknown}")
    if not np.isin(target, (-1, 0, 1)).all():
        raise DataError(f"{file} holds targets other than 1, 0 and -1 (not known)")
    every_N1 = (target >= 0).all(axis=1, keepdims=True)
    target_NK, mask_NK = np.zeros((len(target), len(taxonomy)), np.bool_), np.repeat(every_N1, len(taxonomy), axis=1)
    columns = [taxonomy.column(class_id) for class_id in class_ids]
    target_NK[:, columns], mask_NK[:, columns] = target == 1, target >= 0
    return Labels.from_dense(target_NK, mask_NK)
