"""`ovr head add` and `ovr head retrain`: heads fitted on labelled rows, on the backbone that a bundle has. Needs torch."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from ovr.cli.calibrate import trained_calibrator
from ovr.cli.head import class_ids_of, entry_of, known_ids, names_of, out_of, print_change
from ovr.cli.head_data import check_rows, rows_of, source_rows
from ovr.cli.head_gate import gate_of, print_verdict
from ovr.cli.instantiate import build, build_recorded
from ovr.cli.labelled_rows import class_ids, num_threads, read_rows
from ovr.cli.tables import table
from ovr.cli.train import owners_of
from ovr.errors import ConfigError, TaxonomyError

if TYPE_CHECKING:
    from ovr.core.bundle import ModelBundle
    from ovr.core.taxonomy import ClassSpec
    from ovr.lifecycle.train_heads import Trained


def add_head(cfg: DictConfig) -> None:
    """Write the bundle with heads of new classes.

    Raises:
        ConfigError: a setting that cannot be used.
        TaxonomyError: the bundle has a class, or has had it.
        DataError: rows that cannot be read, or are too few.
        GateError: a head does not pass.
    """
    from ovr.core.bundle import open_bundle
    from ovr.core.owners import Owners
    from ovr.core.taxonomy import ClassSpec, Taxonomy

    bundle = open_bundle(Path(cfg.bundle))
    ids = class_ids_of(cfg)
    for class_id in ids:
        if class_id in bundle.taxonomy.ids:
            raise TaxonomyError(f"bundle {bundle.path} has class {class_id!r} already; `ovr head retrain` fits its head again")
        if any(spec.id == class_id for spec in bundle.ledger.retired):
            raise TaxonomyError(
                f"class {class_id!r} is retired; `ovr head rollback` brings it back, `ovr head retrain` fits it again"
            )
    given = {name: cfg[name] for name in ("owner", "critical", "parent") if cfg[name] is not None}
    lines = bundle.provenance.get("config", {}).get("owners")
    owners = Owners.of_lines(lines if isinstance(lines, list) else []).given(map(ClassSpec, ids))
    said = {class_id: {**owners.get(class_id, {}), **given, **named} for class_id, named in names_of(cfg, ids).items()}
    specs = [ClassSpec(class_id, **said[class_id]) for class_id in ids]
    Taxonomy([*bundle.taxonomy, *bundle.ledger.retired, *specs])  # ids that look alike are refused before any row is read
    _fit(cfg, bundle, specs, command="head add")


def retrain_head(cfg: DictConfig) -> None:
    """Write the bundle with heads of some classes fitted again.

    Raises:
        ConfigError: a setting that cannot be used.
        TaxonomyError: a class that the bundle has never had.
        DataError: rows that cannot be read, or are too few.
        GateError: a head does not pass.
    """
    from ovr.core.bundle import open_bundle
    from ovr.lifecycle.assemble import class_specs

    bundle = open_bundle(Path(cfg.bundle))
    ids = known_ids(bundle, class_ids_of(cfg), retired=True)
    specs = class_specs(bundle)
    _fit(cfg, bundle, [specs[class_id] for class_id in ids], command="head retrain")


def _fit(cfg: DictConfig, bundle: "ModelBundle", specs: Sequence["ClassSpec"], *, command: str) -> None:
    from ovr.core.taxonomy import Taxonomy
    from ovr.lifecycle.train_heads import check_fittable, train_heads

    check_rows(cfg, bundle, specs)
    if cfg.calibrator:
        calibrator = build(cfg.calibrator, cfg.allow_targets)
    else:
        calibrator = build_recorded(trained_calibrator(bundle.provenance), "calibrator", cfg.allow_targets)
    check_fittable(calibrator, cfg.kind)
    if cfg.threshold:
        threshold = build(cfg.threshold, cfg.allow_targets)
    else:
        threshold = build_recorded(_trained_threshold(bundle), "threshold", cfg.allow_targets)
    gate, fit = gate_of(cfg), build(cfg.fit, cfg.allow_targets)
    # Rows of classes that are retired may be among those of the source.
    every = {spec.id: spec for spec in (*bundle.taxonomy, *bundle.ledger.retired, *specs)}
    taxonomy = Taxonomy(every.values())
    with out_of(cfg) as out:
        rows, record = rows_of(cfg, bundle, taxonomy, specs)
        entry = {"command": command, "data": record, **entry_of(cfg)}
        made, trained = train_heads(
            bundle,
            out,
            specs,
            rows,
            taxonomy,
            fit=fit,
            calibrator=calibrator,
            threshold=threshold,
            gate=gate,
            kind=cfg.kind,
            warm=cfg.warm,
            force=cfg.force,
            max_overlap=cfg.max_overlap,
            entry=entry,
        )
        for each in trained:
            _print(each)
        print_change(cfg, bundle, made)


def _trained_threshold(bundle: "ModelBundle") -> DictConfig:
    settings = bundle.provenance.get("config", {}).get("threshold")
    return OmegaConf.create(dict(settings) if isinstance(settings, dict) else {"_target_": "ovr.threshold.max_f_beta.MaxFBeta"})


def _print(made: "Trained") -> None:
    spec, metrics = made.head.spec, made.head.metrics
    how = "rows left out in turn, as there are few" if made.cross_fitted else "held-out rows"
    print(f"{spec.id}: fitted on {made.num_positives} rows of the class; calibrated and judged on {how}")
    print_verdict(made.judged.to_json())
    for name, what in (("test", "test rows"), ("left_out", "rows left out in turn")):
        figures = metrics.get(name, {})
        if figures.get("average_precision") is not None:
            low, high = (figures.get(f"average_precision_{end}") for end in ("low", "high"))
            print(f"  {what}: average precision {figures['average_precision']:.4f} ({low:.4f} to {high:.4f})")


def features_head(cfg: DictConfig) -> None:
    """Write the features of labelled rows to a file, for `features=` of other commands.

    Raises:
        ConfigError: a setting that cannot be used; the file exists.
        DataError: rows that cannot be read.
    """
    from ovr.core.bundle import open_bundle
    from ovr.core.taxonomy import ClassSpec, Taxonomy
    from ovr.lifecycle.assemble import class_specs
    from ovr.lifecycle.feature_file import write_features

    out = Path(cfg.out)
    if out.suffix != ".npz" or out.exists():
        raise ConfigError(f"out={cfg.out}{' exists' if out.exists() else ''}; expected FILE.npz that does not exist")
    bundle = open_bundle(Path(cfg.bundle))
    had = class_specs(bundle)
    more = [class_id for class_id in class_ids(cfg.classes, key="classes") or () if class_id not in had]
    taxonomy = Taxonomy([*had.values(), *map(ClassSpec, more)])
    rows, _ = source_rows(cfg, bundle, taxonomy)
    if cfg.dry_run:
        print(f"dry run: nothing was written; {sum(map(len, rows.values()))} rows would be")
        return
    write_features(out, bundle, rows, taxonomy)
    print(f"features of {sum(map(len, rows.values()))} rows by backbone {bundle.backbone_sha256[:12]} in {out}")


def plan_head(cfg: DictConfig) -> None:
    """Print what each head needs, and write it where `out` and `jobs` say.

    Raises:
        ConfigError: a setting that cannot be used; a file exists.
        DataError: rows that cannot be read, or that the bundle was made from.
    """
    from ovr.core.bundle import open_bundle
    from ovr.core.files import canonical_json, read_json, write_file
    from ovr.data.card import CARD
    from ovr.data.leakage import row_digests
    from ovr.lifecycle.drift import Counts, read_served
    from ovr.lifecycle.fit import HeadRows
    from ovr.lifecycle.plan import jobs, plan
    from ovr.lifecycle.rows import steady_features

    files = {key: Path(cfg[key]) for key in ("out", "jobs") if cfg[key] is not None and not cfg.dry_run}
    for key, file in files.items():
        if file.exists():
            raise ConfigError(f"{key}={file} exists; expected a file that does not")
    bundle = open_bundle(Path(cfg.bundle))
    owned = owners_of(cfg.owners)
    served = None if cfg.counts is None else read_served(Path(cfg.counts), bundle)
    new = read_rows(cfg, bundle, purpose="planned by", retired=True)
    if new is None and served is None:
        raise ConfigError(
            "data is not given; a plan needs new rows, labelled as far as they are, such as data=table data.path=FILE "
            "data.target=COLUMN, or counts=FILE"
        )
    rows = None
    if new is not None:
        digest_N = row_digests(new.rows.x) if new.digest_N is None else new.digest_N
        z_ND = steady_features(bundle, new.rows.x, digest_N, source="data", num_threads=num_threads(cfg))
        group_N, rows = digest_N.astype("int64"), {}
        for k, spec in enumerate(bundle.taxonomy):
            target_N1, mask_N1 = new.rows.labels.columns(slice(k, k + 1))
            rows[spec.id] = HeadRows(z_ND, target_N1[:, 0], mask_N1[:, 0], group_N)
    card = read_json(bundle.path / CARD) if (bundle.path / CARD).is_file() else {}
    num_train = card.get("splits", {}).get("train", {}).get("rows", 0)
    before = {row["class_id"]: Counts(row["train_positives"], num_train) for row in card.get("classes", ()) if num_train}
    fit = build(cfg.fit, cfg.allow_targets)
    made = plan(bundle, rows, fit=fit, in_training=before, served=served, confidence=cfg.confidence)
    made = [each if (owner := owned.of(each.class_id)) is None else replace(each, owner=owner) for each in made]
    header = ["class", "owner", "needs", "rows", "positive", "share", "in training", "NLL", "recalibrated", "retrained"]
    lines = [["" if value is None else value for value in list(each.to_json().values())[: len(header)]] for each in made]
    print(table([header, *lines]))
    for each in made:
        for sign in each.drift.signs:
            print(f"{each.class_id}: {sign}")
    if "out" in files:
        record = None if new is None else new.record
        write_file(files["out"], canonical_json({"data": record, "classes": [each.to_json() for each in made]}))
    if "jobs" in files:
        write_file(files["jobs"], jobs(made, bundle=str(cfg.bundle), data=_data_words()).encode())


def _data_words() -> list[str]:
    """Return the arguments by which the rows were named."""
    from hydra.core.hydra_config import HydraConfig

    return [word for word in HydraConfig.get().overrides.task if word.partition("=")[0].partition(".")[0] == "data"]
