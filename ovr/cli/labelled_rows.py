"""Labelled rows that a command names by `data=`, read for a bundle; and class ids that a command names. No command of its own."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig

from ovr.cli.instantiate import build
from ovr.errors import ConfigError

if TYPE_CHECKING:
    from ovr.core.bundle import ModelBundle
    from ovr.core.taxonomy import ClassSpec, Taxonomy
    from ovr.lifecycle.rows import NewRows

log = logging.getLogger(__name__)


def read_rows(
    cfg: DictConfig, bundle: "ModelBundle", *, purpose: str, unseen: bool = False, retired: bool = False
) -> "NewRows | None":
    """Return the rows that `data`, `rows` and `max_overlap` ask for; None where `data` is null.

    Args:
        purpose: what the rows are for: "calibrated on", say.
        unseen: whether rows are refused that the bundle was calibrated on, and not those alone that it was trained on.
        retired: whether rows may be of classes that the bundle has no more: these are of no class of it, and counted in the record.

    Raises:
        ConfigError: a setting that cannot be used.
        DataError: rows that cannot be read, do not fit the bundle, or that it was made from.
    """
    from ovr.core.taxonomy import Taxonomy
    from ovr.data.fitted import Fitted
    from ovr.lifecycle.rows import check_which, new_rows

    check_which(cfg.rows)
    if cfg.data is None:
        if cfg.rows != "all":
            raise ConfigError(f"rows={cfg.rows} is of a source of rows; say which: data=table data.path=FILE, say")
        return None
    if not isinstance(cfg.data, DictConfig) or "source" not in cfg.data:
        raise ConfigError(f"data is {cfg.data!r}; expected a source of rows, such as data=table data.path=FILE")
    had = bundle.ledger.retired if retired else ()
    fitted = Fitted(Taxonomy([*bundle.taxonomy, *had]), bundle.input, whole=cfg.rows == "all")
    splits = build(cfg.data.source, cfg.allow_targets, fitted=fitted)
    new = new_rows(bundle, splits, cfg.rows, max_overlap=cfg.max_overlap, purpose=purpose, unseen=unseen)
    return without_retired(new, bundle.taxonomy, had) if had else new


def without_retired(new: "NewRows", taxonomy: "Taxonomy", retired: "Sequence[ClassSpec]") -> "NewRows":
    """Return rows without the labels of the last columns, which are those of retired classes; the record counts them."""
    counts = new.rows.labels.num_positives_K()[len(taxonomy) :]
    found = {spec.id: int(count) for spec, count in zip(retired, counts, strict=True) if count}
    if found:
        told = ", ".join(f"{class_id!r} ({count})" for class_id, count in found.items())
        log.warning("rows of classes that are retired count as rows of none: %s; `ovr head rollback` brings a class back", told)
    rows = replace(new.rows, labels=new.rows.labels.first_heads(len(taxonomy)))
    return replace(new, rows=rows, record={**new.record, "retired": found})


def class_ids(value: Any, *, key: str) -> list[str] | None:
    """Return class ids of a configuration; None of null.

    Raises:
        ConfigError: no list, or it holds what is no class id.
    """
    if not isinstance(value, ListConfig | None):
        raise ConfigError(f"{key} is {value!r}; expected a list of class ids, such as [{value}]")
    # Hydra reads the id 7 as a number; of other values, such as 1.50 or true, the spelling is lost.
    if lost := [class_id for class_id in value or () if type(class_id) not in (str, int)]:
        raise ConfigError(f"{key} holds {lost[0]!r}, which is no text; quote class ids that Hydra reads as something else")
    return None if value is None else [str(class_id) for class_id in value]


def num_threads(cfg: DictConfig) -> int:
    """Return the threads of ONNX Runtime.

    Raises:
        ConfigError: no whole number of at least 0.
    """
    if not isinstance(cfg.num_threads, int) or isinstance(cfg.num_threads, bool) or cfg.num_threads < 0:
        raise ConfigError(f"num_threads is {cfg.num_threads!r}; expected a whole number of at least 0")
    return cfg.num_threads
