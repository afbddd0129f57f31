"""What configuration files that are not ovr's may say to Hydra: nothing that it would import, call or run.

Hydra follows names in its own settings (callbacks, loggers, launcher, sweeper) before a command begins. Files of others are
therefore checked each alone, so that no choice of options and no sweep leads around it; and what is composed is checked again.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from ovr.errors import ConfigError

RESERVED = re.compile(r"(?<!\w)(hydra|allow_targets)(?!\w)")  # what only ovr's own files and the command line may fill
SAFE_KEYS = ("run.dir", "sweep.dir", "sweep.subdir", "job.chdir", "output_subdir")  # of hydra: where a run lies
SAFE_DEFAULT = re.compile(r"override /?hydra/(job_logging|hydra_logging)")  # one of Hydra's or ovr's: foreign ones are refused
RECORDS = ("hydra.yaml", "resumed/hydra.yaml")  # of a run directory's .hydra: read by nobody
PLUGIN = re.compile(r"(hydra_plugins|hydra\._internal\.core_plugins)(\.[a-z]\w*)+\.[A-Z]\w*(Launcher|Sweeper)")
LOGGERS = ("logging.StreamHandler", "logging.FileHandler", "logging.NullHandler", "logging.Formatter", "logging.Filter")
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")


def check_foreign_files(root: Path, overrides: Sequence[Override] = (), *, is_record: bool = False) -> None:
    """Check what the files below a directory, which `check_yaml_files` took, say of Hydra and of `allow_targets`.

    Args:
        overrides: of the command line.
        is_record: whether the directory is the `.hydra` of a run, which holds Hydra's own record of its settings.

    Raises:
        ConfigError: a file that could make Hydra run something, or widens what may be instantiated. All are named in one error.
    """
    problems = []
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink() and path.is_dir() and not path.resolve().is_relative_to(root.resolve()):
            problems.append(f"{path} is a link to a directory elsewhere, whose files would be read unchecked")
        elif path.suffix in (".yaml", ".yml") and not (is_record and name in RECORDS):
            problems += [f"{path} {problem}" for problem in _problems(path, name, overrides)]
    if problems:
        raise ConfigError("; ".join(problems))


def _problems(path: Path, name: str, overrides: Sequence[Override]) -> Iterator[str]:
    folder = name.rpartition("/")[0]
    if RESERVED.search(folder) and folder != "hydra/launcher":
        yield "is an option of Hydra's own settings, which run code; only hydra/launcher/NAME.yaml may be yours"
    text = path.read_text(encoding="utf-8")
    for line in text.splitlines():
        if re.match(r"\s*#\s*@", line) and (RESERVED.search(line) or "_name_" in line):
            yield f"has the header {line.strip()!r}: only ovr's own files and the command line set hydra and allow_targets"
    try:
        content = yaml.load(text, Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        yield f"is not YAML: {' '.join(str(error).split())}"
        return
    if not isinstance(content, dict):
        return
    if wrong := list(_unsafe_keys(content.get("hydra") or {})):
        yield f"sets hydra.{wrong[0]}, by which Hydra could run code; a file may set {', '.join(SAFE_KEYS)}"
    if content.get("allow_targets") and _given_targets(overrides) is None:
        yield "sets allow_targets, which only the command line does: add allow_targets=[PREFIX] if you trust what it names"
    for entry in content.get("defaults") or [] if isinstance(content.get("defaults"), list) else []:
        for key, option in entry.items() if isinstance(entry, dict) else [(entry, "")]:
            said = f"{key}: {option}" if option else str(key)
            if SAFE_DEFAULT.fullmatch(str(key)) and isinstance(option, str) and "$" not in option:
                continue
            if RESERVED.search(said) or any(odd in said for odd in ("_name_", "${", "..")):  # `..` leads out of the directory
                yield f"has {said!r} in its defaults; expected options by their names, and none that fill hydra or allow_targets"


def _unsafe_keys(node: Any, prefix: str = "") -> Iterator[str]:
    if not isinstance(node, dict):
        yield prefix.rstrip(".") or "*"
        return
    for key, value in node.items():
        name = f"{prefix}{key}"
        if name in SAFE_KEYS and not isinstance(value, dict | list):
            continue
        yield from _unsafe_keys(value, f"{name}.") if any(safe.startswith(f"{name}.") for safe in SAFE_KEYS) else [name]


def check_composed(cfg: DictConfig, overrides: Sequence[Override]) -> None:
    """Check the settings of Hydra that a composition came to, whatever they come from.

    Raises:
        ConfigError: a callback, a `_target_` that is no launcher's or sweeper's, a logging setting that calls something, or
            `allow_targets` that are not those of the command line.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=False)
    hydra = plain["hydra"]
    if hydra["callbacks"]:
        raise ConfigError(
            f"hydra.callbacks ({', '.join(map(str, hydra['callbacks']))}): ovr runs none, since they are code; remove them"
        )
    for name, target in _found(hydra, "_target_"):
        if name not in ("launcher._target_", "sweeper._target_") or not PLUGIN.fullmatch(str(target)):
            raise ConfigError(
                f"hydra.{name} is {target!r}; expected a launcher or a sweeper of Hydra or of hydra_plugins, and no other"
            )
    for part in ("job_logging", "hydra_logging"):
        for name, value in [*_found(hydra[part], "()"), *_found(hydra[part], "class")]:
            if value not in LOGGERS:
                raise ConfigError(
                    f"hydra.{part}.{name} is {value!r}, which logging would call; expected one of {', '.join(LOGGERS)}"
                )
        for text in _texts(hydra[part]):
            if re.match(r"\w+://", text) and text not in STREAMS:
                raise ConfigError(f"hydra.{part} has {text!r}, which logging would import; expected {' or '.join(STREAMS)}")
    given = _given_targets(overrides) or []
    composed = OmegaConf.to_container(cfg.allow_targets, resolve=True) if cfg.get("allow_targets") is not None else []
    if composed != given:
        raise ConfigError(
            f"allow_targets is {composed!r}, and the command line gives {given!r}; only the command line sets it, as "
            "allow_targets=[PREFIX], since it says whose code is run"
        )


def _given_targets(overrides: Sequence[Override]) -> list[Any] | None:
    for override in reversed(overrides):
        value = None if override.is_sweep_override() else override.value()
        if override.key_or_group == "allow_targets" and isinstance(value, list):
            return list(value)
    return None


def _found(node: Any, key: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of every `key` below `node`."""
    for name, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if name == key:
            yield f"{prefix}{name}", value
        yield from _found(value, key, f"{prefix}{name}.")


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, dict | list):
        for value in node.values() if isinstance(node, dict) else node:
            yield from _texts(value)
    elif isinstance(node, str):
        yield node
