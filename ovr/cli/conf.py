"""The commands, where their configuration lies, and their help texts. Imports nothing heavy: help must be quick."""

from pathlib import Path
from typing import Any

import ovr
from ovr.errors import ConfigError

COMMANDS = {
    "train": "fit, calibrate, choose thresholds, evaluate, export: a run directory with a bundle",
    "calibrate": "a bundle with its heads calibrated again, on the rows that it keeps or on new ones",
    "decide": "a bundle with thresholds and policy chosen again, on the rows that it keeps or on new ones",
    "evaluate": "the figures of a bundle on labelled rows: metrics.json, report.html, tables/",
    "compare": "two bundles on the same rows, class by class: better, same or worse, by paired tests",
    "export": "a bundle as standalone ONNX files: backbone, one a head, fused; one small directory for a device; or a page",
    "edge diff": "a small patch that makes one edge export another, byte for byte, on the device",
    "edge apply": "an edge export made another by such a patch, at once",
    "publish": "a bundle into a Triton model repository, and into a running server",
    "serve": "start Triton on a repository, and keep it answering",
    "serve status": "what a server that `ovr serve` started is doing, model by model",
    "gateway": "an nginx configuration before servers: TLS, tokens, limits, several servers as one",
    "sign": "a bundle, single heads of it by the owner of their classes, or an edge export",
    "verify": "who signed a bundle, an edge export or what a repository serves, and whether a byte has changed since",
    "data check": "what looks wrong with labelled rows: small classes, leaks, likely label errors, near-duplicates",
    "head list": "the heads of a bundle: version, owner, calibration, threshold, and the versions that it keeps",
    "head show": "one head: calibration, threshold, figures, where it comes from, its history",
    "head diff": "what differs between two bundles, head by head",
    "head verify": "proof of which heads differ between two bundles and which do not, bit for bit",
    "head add": "a new class on the backbone that is there, from its rows and those of others",
    "head features": "the features of labelled rows in a file, for head add and retrain without the rows",
    "head retrain": "heads fitted again on new rows, on the backbone that is there",
    "head plan": "what new rows ask of each head: to be retrained, recalibrated, labelled rows, or nothing",
    "head replace": "heads of another bundle with the same backbone, in place of the bundle's own or beside them",
    "head rollback": "earlier versions of heads in use again",
    "head rename": "another name or owner of a class; its id and its answers stay",
    "head retire": "classes that answer no more; their heads stay in the bundle",
    "explain": "what each column, word or pixel of a row adds to a head's logit",
    "bundle register": "a bundle into a registry, as the next version of a model",
    "bundle list": "the models, versions and aliases of a registry",
    "bundle promote": "let an alias name a version, of the model or of some heads; back again is a rollback",
    "bundle lineage": "what a version was made from: bundles, data, code, by whom and why",
    "bundle path": "where a version's bundle lies, for the bundle= of other commands",
    "predict": "rows in (CSV, JSON lines, npy), predictions out, from a bundle or a server",
}


def name_of(command: str) -> str:
    """Return how the module of a command and its configuration are called."""
    return command.replace(" ", "_")


def conf_dir() -> Path:
    """Return the directory of the shipped configuration: inside an installed package, beside it in a checkout.

    Raises:
        ConfigError: it is in neither place.
    """
    package = Path(ovr.__file__).resolve().parent
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / "train.yaml").is_file():
            return candidate
    raise ConfigError(f"the configuration of ovr is neither in {package} nor beside it; install ovr again")


def overview() -> str:
    """Return the text of `ovr --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "ovr: one shared backbone, K independent sigmoid heads, one calibrated probability a class",
            "",
            "usage: ovr COMMAND [key=value ...]",
            "",
            *lines,
            "",
            "ovr COMMAND --help shows what a command takes. Arguments follow Hydra's grammar: key=value, group=option,",
            "+new=value, ~gone; -m a=1,2 runs once for each; --cfg job prints the configuration; --config-dir DIR adds your own.",
            "debug=true shows the traceback of an error.",
        ]
    )


def command_help(command: str) -> str:
    """Return the text of `ovr COMMAND --help`: its options by group, and its configuration with the comments."""
    root = conf_dir()
    text = (root / f"{name_of(command)}.yaml").read_text(encoding="utf-8")
    groups = [f"  {group}={'|'.join(names)}" for group, names in group_options(name_of(command), [root]).items()]
    return "\n".join(
        [
            f"ovr {command}: {COMMANDS[command]}",
            "",
            f"usage: ovr {command} [key=value ...] [-m] [--cfg job] [--config-dir DIR]",
            *(["", "groups:", *groups] if groups else []),
            "",
            f"configuration (conf/{name_of(command)}.yaml):",
            *(f"  {line}".rstrip() for line in text.split("\n\nhydra:")[0].splitlines()),
        ]
    )


def group_options(command: str, roots: list[Path]) -> dict[str, list[str]]:
    """Return the groups that the command's defaults list names, with the options that the directories `roots` hold."""
    import yaml

    source = next((root / f"{command}.yaml" for root in roots if (root / f"{command}.yaml").is_file()), None)
    entries: list[Any] = yaml.safe_load(source.read_text(encoding="utf-8")).get("defaults", []) if source else []
    keys = [key.split()[-1].lstrip("/").partition("@")[0] for entry in entries if isinstance(entry, dict) for key in entry]
    return {key: options(key, roots) for key in keys if not key.startswith("hydra/")}


def options(group: str, roots: list[Path]) -> list[str]:
    """Return the names of the YAML files of `group` below `roots`, sorted."""
    return sorted({file.stem for root in roots for file in (root / group).glob("*.yaml")})
