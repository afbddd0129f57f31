"""`ovr evaluate`: the figures of a bundle on labelled rows, and with contract=true a verdict on what a server returns for them."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ovr.cli.asked_server import card_at, client_settings
from ovr.cli.instantiate import build
from ovr.cli.labelled_rows import num_threads, read_rows
from ovr.errors import ConfigError

SHOWN = ("accuracy", "macro_f1", "macro_average_precision", "ece_before", "ece_after", "nll_before", "nll_after")


def run(cfg: DictConfig) -> None:
    """Write the report and print its summary.

    Raises:
        ConfigError: no rows are given, or a setting that cannot be used.
        ArtifactError: the bundle cannot be used, or `out` exists.
        DataError: rows that cannot be read, do not fit the bundle, or that it was made from.
        ContractError: with contract=true, after everything has been written: heads that do not keep the contract.
        ServingError: with contract=true, and no server can be asked.
    """
    from ovr.core.bundle import open_bundle
    from ovr.core.files import canonical_json
    from ovr.lifecycle.assemble import check_out
    from ovr.lifecycle.cohorts import cohort_of_rows
    from ovr.lifecycle.evaluate import evaluate_bundle, write_evaluation

    threads, out = num_threads(cfg), Path(cfg.out)
    if not isinstance(cfg.contract, bool):
        raise ConfigError(f"contract is {cfg.contract!r}; expected true or false")
    settings = contract_settings(cfg)
    if cfg.data is None:
        raise ConfigError(
            "data is not given: a bundle keeps no test rows. Name labelled rows that it was not made from, such as data=table "
            "data.path=FILE data.target=COLUMN; or the training run's own data with rows=test"
        )
    propensity = build(cfg.propensity, cfg.allow_targets)
    bundle = open_bundle(Path(cfg.bundle))
    check_out(bundle, out)
    if cfg.contract:
        from ovr.metric.contract import limits_of
        from ovr.serving.contract import address_of, check_serves

        limits_of(bundle.taxonomy, settings["limit"], settings["limit_of"])  # what it refuses, before rows are read
        if cfg.server is not None:
            check_serves(card_at(address_of(cfg.server), settings["client"]).bundle_sha256, bundle, cfg.server)
    rows = read_rows(cfg, bundle, purpose="measured on", unseen=True)
    assert rows is not None
    contract = None
    if cfg.contract:
        from ovr.serving.contract import measure_contract

        labelled = rows.rows
        cohort_N = None if bundle.cohorts is None else cohort_of_rows(bundle.cohorts.column, labelled.cohorts)
        contract = measure_contract(bundle, labelled.x, *labelled.labels.dense(), cohort=cohort_N, **settings)
    evaluation = evaluate_bundle(bundle, rows, propensity=propensity, num_threads=threads)
    more = {} if contract is None else {"contract.json": canonical_json(contract.to_json())}
    write_evaluation(out, evaluation, bundle, rows if cfg.report else None, more)
    if cfg.report:
        print(f"report {out / 'report.html'}")
    print(f"bundle {bundle.bundle_sha256[:12]}, {len(bundle.heads)} heads, {evaluation.report['num_rows']} rows")
    for name in SHOWN:
        if (value := evaluation.report.get(name)) is not None:
            print(f"  {name.ljust(24)} {value:.4f}")
    print(f"{out / 'metrics.json'} and {out / 'tables' / 'classes.csv'} hold all of it")
    if contract is not None:
        same = "the same bytes as" if contract.served.same_bytes else f"up to {contract.served.max_abs_diff:.1e} off"
        counts, of_cohorts = (
            ", ".join(f"{count} {outcome}" for outcome, count in contract.to_json()[key].items() if count)
            for key in ("num_heads", "num_heads_of_cohorts")
        )
        counts += f" (by cohort {of_cohorts})" if of_cohorts else ""
        print(f"contract: {counts}; the server's probabilities are {same} ONNX Runtime's; {out / 'contract.json'} says more")
        contract.check()


def contract_settings(cfg: DictConfig) -> dict[str, Any]:
    """Return the arguments of `measure_contract` that the configuration gives.

    Raises:
        ConfigError: `max_ece_of` is no mapping of class ids.
    """
    if not isinstance(cfg.max_ece_of, DictConfig | None):
        raise ConfigError(f"max_ece_of is {cfg.max_ece_of!r}; expected limits by class id, such as {{cat: 0.1}}")
    of_class: Any = {} if cfg.max_ece_of is None else OmegaConf.to_container(cfg.max_ece_of)
    return {
        "limit": cfg.max_ece,
        "limit_of": {str(class_id): limit for class_id, limit in of_class.items()},
        "confidence": cfg.confidence,
        "undecided": cfg.undecided,
        "server": cfg.server,
        "client": {} if cfg.server is None else client_settings(cfg.client),
    }
