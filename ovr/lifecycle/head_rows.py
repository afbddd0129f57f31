"""The labelled rows that heads are fitted and judged on, by split, and which of them a bundle or one of its heads has seen.

They are those of a source, of a file of features (`ovr.lifecycle.feature_file`), or the calibration rows that the bundle keeps.

N = rows, D = features, P = rows that are all of one class
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ovr.core.bundle import ModelBundle
from ovr.core.taxonomy import Taxonomy
from ovr.data.labels import Labels
from ovr.data.leakage import U64, row_digests
from ovr.data.overlap import CALIBRATION, TRAINING, Overlap, check_overlap, read_digests
from ovr.data.splits import SPLIT_NAMES, Splits
from ovr.errors import ArtifactError, DataError
from ovr.lifecycle.calibration_rows import COHORT, FEATURES, MASK, TARGET
from ovr.lifecycle.fit import HeadRows
from ovr.lifecycle.rows import steady_features, steps_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SplitRows:
    """Rows of a source as the bundle's heads take them."""

    z_ND: NDArray[np.float32]
    digest_N: U64
    labels: Labels
    cohorts: Mapping[str, NDArray[np.str_]]
    repeated_N: NDArray[np.bool_]  # rows that are in an earlier split too, and count there alone
    num_kept: int = 0  # of the first rows: calibration rows that the bundle keeps, whose digests are of their features
    by_features: bool = False  # all digests are of the features, by which no row is known again that the bundle was made from

    def __len__(self) -> int:
        return len(self.z_ND)

    def of(self, column: int) -> HeadRows:
        """Return the rows with the labels of one class."""
        target_N1, mask_N1 = self.labels.columns(slice(column, column + 1))
        return HeadRows(self.z_ND, target_N1[:, 0], mask_N1[:, 0] & ~self.repeated_N, self.digest_N.astype(np.int64))


def split_rows(bundle: ModelBundle, splits: Splits, *, max_overlap: float, num_threads: int = 1) -> dict[str, SplitRows]:
    """Return the rows of a source by split, after a look for held-out rows that the bundle was made from.

    Raises:
        ConfigError: `max_overlap` is no share.
        DataError: of the validation, calibration and test rows too many are rows that the backbone was trained on.
    """
    found: dict[str, SplitRows] = {}
    source = ", ".join(file.name for file in splits.origin.files) or "the source"
    for name in SPLIT_NAMES:
        rows = getattr(splits, name)
        if not len(rows):
            raise DataError(
                f"{source} has no rows of {name}; heads are fitted on rows that are split into {', '.join(SPLIT_NAMES)}"
            )
        digest_N = row_digests(rows.x)
        numbers = splits.origin.row_numbers.get(name)
        check_held_out(bundle, name, digest_N, max_overlap=max_overlap, source=source, row_numbers=numbers)
        z_ND = steady_features(bundle, rows.x, digest_N, source=f"{name} of {source}", num_threads=num_threads)
        found[name] = SplitRows(z_ND, digest_N, rows.labels, rows.cohorts, repeated_rows(name, digest_N, found))
    return found


def check_held_out(
    bundle: ModelBundle,
    name: str,
    digest_N: U64,
    *,
    max_overlap: float,
    source: str,
    row_numbers: NDArray[np.int64] | None = None,
) -> None:
    """Raise DataError where too many rows of a held-out split are rows that the backbone was trained on.

    Rows that an earlier head was fitted on may be held out for the next one.
    """
    backbone_U = None if name == "train" else read_digests(bundle.path, TRAINING, steps=())
    if backbone_U is not None:
        overlap = Overlap(TRAINING, np.flatnonzero(np.isin(digest_N, backbone_U)), len(digest_N))
        what = f"split {name} of {source}"
        check_overlap([overlap], max_overlap=max_overlap, purpose="held out", row_numbers=row_numbers, source=what)


def repeated_rows(name: str, digest_N: U64, found: Mapping[str, SplitRows]) -> NDArray[np.bool_]:
    """Return which rows of a split are in those before it too, which a warning counts."""
    earlier = [each.digest_N for each in found.values()]
    repeated_N = np.isin(digest_N, np.concatenate(earlier)) if earlier else np.zeros(len(digest_N), np.bool_)
    if repeated_N.any():
        log.warning("%d of %d rows of %s are in an earlier split too, and are left out", repeated_N.sum(), len(digest_N), name)
    return repeated_N


def undivided(rows: SplitRows) -> dict[str, SplitRows]:
    """Return rows that are not split, as training rows: heads are then judged on rows left out in turn."""
    none = SplitRows(
        rows.z_ND[:0],
        rows.digest_N[:0],
        rows.labels.take(np.arange(0)),
        {c: v[:0] for c, v in rows.cohorts.items()},
        rows.repeated_N[:0],
    )
    return {name: rows if name == "train" else none for name in SPLIT_NAMES}


def kept_rows(bundle: ModelBundle, taxonomy: Taxonomy, new_ids: Collection[str]) -> dict[str, SplitRows]:
    """Return the calibration rows that a bundle keeps, with the labels that it knows, in the columns of `taxonomy`.

    Args:
        new_ids: classes that the bundle does not have; whoever takes the rows says that none of them is of these.

    Raises:
        ArtifactError: the bundle keeps no features of them.
    """
    files = [bundle.path / name for name in (FEATURES, TARGET, MASK)]
    if not all(file.is_file() for file in files):
        raise ArtifactError(
            f"bundle {bundle.path} keeps no features of calibration rows; give rows of other classes with data= or features=FILE"
        )
    z_ND, old_target_NK, old_mask_NK = (np.load(file, allow_pickle=False) for file in files)
    target_NK, mask_NK = (np.zeros((len(z_ND), len(taxonomy)), np.bool_) for _ in range(2))
    columns = [taxonomy.column(class_id) for class_id in bundle.taxonomy.ids]
    target_NK[:, columns], mask_NK[:, columns] = old_target_NK, old_mask_NK
    mask_NK[:, [taxonomy.column(class_id) for class_id in new_ids]] = True
    cohorts = {} if bundle.cohorts is None else {bundle.cohorts.column: np.load(bundle.path / COHORT, allow_pickle=False)}
    none = np.zeros(len(z_ND), np.bool_)
    return undivided(SplitRows(z_ND, row_digests(z_ND), Labels.from_dense(target_NK, mask_NK), cohorts, none, num_kept=len(z_ND)))


def kept_digests(bundle: ModelBundle) -> U64:
    """Return the digests of the rows that `kept_rows` gives, which itself knows them by their features alone."""
    history = bundle.provenance.get("history", [])
    joined = [number for number, step in enumerate(history, start=1) if "train_row_digests" in step]
    digest_U = read_digests(bundle.path, CALIBRATION, steps=joined)
    return np.zeros(0, np.uint64) if digest_U is None else digest_U


def may_be_held_out(bundle: ModelBundle, rows: HeadRows, class_id: str, *, max_overlap: float) -> NDArray[np.bool_]:
    """Return which of a head's rows (N,) it may be calibrated and judged on: known ones that the backbone was not trained on.

    Args:
        max_overlap: the share of the known rows of which that does not matter, where rows are equal by chance.

    Raises:
        ConfigError: `max_overlap` is no share.
        DataError: no such row is left of the class, or of others.
    """
    check_overlap([], max_overlap=max_overlap, purpose="held out")
    backbone_U = read_digests(bundle.path, TRAINING, steps=())
    if backbone_U is None:
        return rows.mask_N
    trained_N = rows.mask_N & np.isin(rows.group_N.astype(np.uint64), backbone_U)
    if trained_N.sum() <= max_overlap * rows.mask_N.sum():
        return rows.mask_N
    held_N = rows.mask_N & ~trained_N
    num_positives, num_negatives = int((held_N & rows.target_N).sum()), int((held_N & ~rows.target_N).sum())
    what = f"the backbone was trained on {trained_N.sum()} of the {rows.mask_N.sum()} rows of which class {class_id!r} is known"
    if not num_positives or not num_negatives:
        raise DataError(
            f"{what}, which leaves {num_positives} rows of the class and {num_negatives} of others to calibrate and judge its head "
            "on; give rows that the backbone has not seen. max_overlap=1 allows those, where rows are equal by chance, as those of "
            "few coarse columns are"
        )
    log.warning("%s: its head is fitted on these, and neither calibrated nor judged", what)
    return held_N


def known_rows(bundle: ModelBundle, class_id: str) -> U64:
    """Return digests of the rows that the backbone or any head of a class was fitted or calibrated on.

    Of the calibration rows that the bundle keeps, those of their features too, by which `kept_rows` knows them.
    """
    steps = steps_of(bundle, [class_id])
    parts = [read_digests(bundle.path, kind, steps=steps) for kind in (TRAINING, CALIBRATION)]
    if class_id in bundle.taxonomy.ids and all((bundle.path / name).is_file() for name in (FEATURES, MASK)):
        z_ND, mask_NK = (np.load(bundle.path / name, allow_pickle=False) for name in (FEATURES, MASK))
        parts.append(row_digests(z_ND[mask_NK[:, bundle.taxonomy.column(class_id)]]))
    return np.concatenate([np.zeros(0, np.uint64), *(each for each in parts if each is not None)])


def with_positives(
    bundle: ModelBundle, rows: Mapping[str, SplitRows], z_PD: NDArray[np.float32], digest_P: U64, column: int, *, seed: int
) -> dict[str, SplitRows]:
    """Return the rows with some that are of class `column` and of which nothing else is known, spread over the splits by size.

    Equal rows come into one split, and those that the backbone was trained on into the training rows.

    Raises:
        DataError: there are none, or some are rows of the source too.
    """
    if not len(digest_P):
        raise DataError("there are no positive rows; expected at least one")
    calibration_U = read_digests(bundle.path, CALIBRATION) if any(each.num_kept for each in rows.values()) else None
    if calibration_U is not None and (num_known := int(np.isin(digest_P, calibration_U).sum())):
        raise DataError(
            f"{num_known} of {len(digest_P)} positive rows are rows that the bundle was calibrated on, which kept_rows=true takes "
            "as rows of other classes; leave them out, or give rows with data="
        )
    source_N = np.concatenate([each.digest_N for each in rows.values()])
    # Rows of the source may be known by their features alone.
    if num_known := int((np.isin(digest_P, source_N) | np.isin(row_digests(z_PD), source_N)).sum()):
        raise DataError(
            f"{num_known} of {len(digest_P)} positive rows are rows of the source too; leave them out of one of the two"
        )
    sizes = np.array([len(rows[name].z_ND) for name in SPLIT_NAMES], np.float64)
    group_P = np.unique(digest_P, return_inverse=True)[1]
    drawn_G = np.random.default_rng(seed).permutation(int(group_P.max()) + 1)
    split_P = np.searchsorted(np.cumsum(sizes / sizes.sum()), (drawn_G + 0.5) / len(drawn_G))[group_P]
    backbone_U = read_digests(bundle.path, TRAINING, steps=())
    if backbone_U is not None:
        split_P[np.isin(digest_P, backbone_U)] = SPLIT_NAMES.index("train")
    found = {}
    for s, name in enumerate(SPLIT_NAMES):
        here, old = split_P == s, rows[name]
        num_more = int(here.sum())
        target_NK, mask_NK = old.labels.dense()
        more_target, more_mask = (np.zeros((num_more, target_NK.shape[1]), np.bool_) for _ in range(2))
        more_target[:, column], more_mask[:, column] = True, True
        found[name] = SplitRows(
            np.concatenate([old.z_ND, z_PD[here]]),
            np.concatenate([old.digest_N, digest_P[here]]),
            Labels.from_dense(np.concatenate([target_NK, more_target]), np.concatenate([mask_NK, more_mask])),
            {key: np.concatenate([value, np.full(num_more, "", value.dtype)]) for key, value in old.cohorts.items()},
            np.concatenate([old.repeated_N, np.zeros(num_more, np.bool_)]),
            old.num_kept,
            old.by_features,
        )
    return found
