"""Checks a command's overrides before anything is created, and says which name was meant. Runs nothing.

Hydra's own messages do not name what is near, an unknown `experiment` is skipped in silence (it is optional), and a misspelt
key in a user's file is added instead of refused.
"""

import io
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ovr.cli.conf import group_options, options
from ovr.cli.foreign import check_composed, check_foreign_files
from ovr.cli.launch import Ranks, check_directory, check_launcher
from ovr.core.nearest import nearest
from ovr.errors import ConfigError

MAX_YAML_BYTES = 1 << 20
MAX_YAML_DEPTH = 50
SEARCHPATH = "hydra.searchpath"


@dataclass(frozen=True, slots=True)
class Invocation:
    """What the arguments of one command ask Hydra for."""

    config_path: Path  # absolute
    config_name: str
    config_dir: Path | None  # the user's own, absolute
    overrides: tuple[str, ...]
    multirun: bool
    composes: bool  # False for --hydra-help, --info and shell completion
    runs: bool  # False for those and --cfg
    is_shipped: bool = True  # whether `config_path` is ovr's own

    @classmethod
    def from_options(cls, command: str, options: Namespace, default_config_path: Path) -> "Invocation":
        """Return the invocation that Hydra's parsed command line describes."""
        shows = options.hydra_help or options.info is not None or options.shell_completion
        return cls(
            config_path=Path(options.config_path).absolute() if options.config_path else default_config_path,
            config_name=options.config_name or command,
            config_dir=Path(options.config_dir).absolute() if options.config_dir else None,
            overrides=tuple(options.overrides),
            multirun=bool(options.multirun),
            composes=not shows,
            runs=not shows and options.cfg is None,
            is_shipped=not options.config_path,
        )

    @property
    def foreign(self) -> list[Path]:
        """The directories with configuration files that are not ovr's."""
        return [*([] if self.is_shipped else [self.config_path]), *([self.config_dir] if self.config_dir else [])]

    @property
    def roots(self) -> list[Path]:
        """Where configuration files are looked for, first match wins."""
        return [self.config_path, *([self.config_dir] if self.config_dir else [])]


def parsed(args: Sequence[str]) -> tuple[Namespace, list[str]]:
    """Return Hydra's options, and the arguments in an order that its own parser takes: overrides, then flags.

    Raises:
        ConfigError: an unknown flag, a flag without its value, or one that is not taken.
    """
    text = io.StringIO()
    try:
        with redirect_stderr(text):
            options = get_args_parser().parse_intermixed_args(list(args))
    except SystemExit:
        raise ConfigError(text.getvalue().strip().rpartition("error: ")[2]) from None
    if options.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun reads a pickle, which can run code; give the settings themselves")
    overrides = list(options.overrides)
    flags = []
    for arg in args:
        if overrides and arg == overrides[0]:
            del overrides[0]
        else:
            flags.append(arg)
    return options, [*options.overrides, *flags]


def check(invocation: Invocation, rank: Ranks | None = None) -> frozenset[Path]:
    """Compose the configuration without running it, each option of a sweep once.

    Returns the directories on the way to the run directory that exist already.

    Raises:
        ConfigError: an unknown key or option (naming the nearest), a value that is missing or does not parse, a user's file that
            is too large, has YAML aliases or could make Hydra run code, a launcher or several processes that cannot run it.
    """
    for directory in invocation.foreign:
        check_yaml_files(directory)
    _check_searchpath(invocation)
    parsed_overrides = _parse(invocation)
    for directory in invocation.foreign:
        is_record = directory == invocation.config_path and (directory.name, invocation.config_name) == (".hydra", "config")
        check_foreign_files(directory, parsed_overrides, is_record=is_record)
    if not invocation.composes:
        return frozenset()
    with initialize_config_dir(str(invocation.config_path), version_base="1.3"):
        for override in parsed_overrides:
            if override.is_sweep_override() and not invocation.multirun:
                line = str(override.input_line)
                one_list = line.replace("=", "=[", 1) + "]"
                raise ConfigError(f"{line} gives several values: -m runs once for each, and {one_list} is one list")
            _check_group_option(override, invocation)
        fixed = [str(o.input_line) for o in parsed_overrides if not o.is_sweep_override()]
        cfg = _composed(invocation, fixed)
        check_composed(cfg, parsed_overrides)
        for override in parsed_overrides:
            if override.is_sweep_override() and override.is_discrete_sweep():
                for value in override.sweep_string_iterator():
                    check_composed(_composed(invocation, [*fixed, f"{override.get_key_element()}={value}"]), parsed_overrides)
        known = [str(key) for key in _plain(_compose(invocation, []))]
        added = {o.key_or_group.partition(".")[0] for o in parsed_overrides if o.is_add() or o.is_force_add()}
        for key in map(str, _plain(cfg)):
            if key not in known and key not in added:
                raise ConfigError(f"{_unknown(key, known)} (a configuration file sets it; +{key}=VALUE would allow it)")
        missing = [key for key, value in flat_items(_plain(cfg)) if value == "???" and not key.startswith("hydra.")]
        if missing and invocation.runs and not invocation.multirun:
            raise ConfigError(f"not given: {', '.join(missing)}; add {' '.join(f'{key}=VALUE' for key in missing)}")
        if invocation.runs:
            check_launcher(cfg, multirun=invocation.multirun)
            check_directory(cfg, rank, multirun=invocation.multirun)
        try:
            directory = Path(cfg.hydra.sweep.dir if invocation.multirun else cfg.hydra.run.dir).absolute()
        except OmegaConfBaseException as error:
            raise ConfigError(f"the run directory cannot be named: {str(error).splitlines()[0]}") from None
    return frozenset(path for path in (directory, *directory.parents) if path.is_dir())


def check_yaml_files(directory: Path) -> None:
    """Check every YAML file below a user's directory before it is parsed: a few hundred bytes of aliases can hang a parser.

    Raises:
        ConfigError: no such directory; a file that is above 1 MiB, has an alias or a tag, is too deeply
            nested, no YAML or no regular file. All are named in one error.
    """
    if not directory.is_dir():
        raise ConfigError(f"configuration directory {directory} does not exist")
    files = sorted([*directory.rglob("*.yaml"), *directory.rglob("*.yml")])
    if problems := [f"{file} {problem}" for file in files if (problem := _yaml_problem(file))]:
        raise ConfigError("; ".join(problems))


def _yaml_problem(file: Path) -> str:
    """Return what keeps the file from being read, or "". Events are read one by one, so that nothing is built from them."""
    if not file.is_file():  # to open a pipe is to wait
        return "is no regular file"
    size_bytes = file.stat().st_size
    if size_bytes > MAX_YAML_BYTES:
        return f"is {size_bytes} bytes; at most {MAX_YAML_BYTES} are read"
    depth = 0
    try:
        for event in yaml.parse(file.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader):
            if isinstance(event, yaml.AliasEvent):
                return "has YAML aliases (*name), which are not read; use ${key} interpolation"
            if getattr(event, "tag", None) is not None:
                return f"has YAML tags ({event.tag[:60]}), which are not read: they can name objects of Python"
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_YAML_DEPTH:
                return f"is nested deeper than {MAX_YAML_DEPTH} levels"
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return f"is not YAML: {' '.join(str(error).split())}"
    return ""


def flat_items(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of every key in nested dictionaries, inner nodes included."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}", value
            yield from flat_items(value, f"{prefix}{key}.")


def _parse(invocation: Invocation) -> list[Override]:
    found: list[Override] = []
    for line in invocation.overrides:
        try:
            found += OverridesParser.create().parse_overrides([line])
        except HydraException as error:
            reason = " ".join(str(error).split("\nSee https")[0].split())
            if reason.startswith("LexerNoViableAlt"):
                reason = "it has a character that Hydra's grammar has no place for"
            key, equals, value = line.partition("=")
            if not equals:
                raise ConfigError(reason) from None
            quoted = value.replace("\\", "\\\\").replace('"', '\\"')
            raise ConfigError(
                f"{line} cannot be read as key=value ({reason}). A text with other characters than letters, digits and -_./ "
                f"stands in double quotes, and the whole in single ones for the shell: '{key}=\"{quoted}\"'"
            ) from None
    return found


def _check_searchpath(invocation: Invocation) -> None:
    """Raise ConfigError where Hydra would look for files in directories that `check_yaml_files` does not know of."""
    where = [line for line in invocation.overrides if line.lstrip("+~").partition("=")[0].strip() == SEARCHPATH]
    for root in invocation.foreign:
        if (primary := root / f"{invocation.config_name.removesuffix('.yaml')}.yaml").is_file():
            hydra = (yaml.load(primary.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader) or {}).get("hydra") or {}
            where += [f"{primary}"] if "searchpath" in hydra else []
    if where:
        raise ConfigError(
            f"{where[0]} sets {SEARCHPATH}, whose files would be read unchecked; give a directory as --config-dir DIR"
        )


def _check_group_option(override: Override, invocation: Invocation) -> None:
    group = override.key_or_group
    known = options(group, invocation.roots)
    if not known or group.startswith("hydra") or override.is_delete():
        return
    values: list[Any] = [override.value()]
    if override.is_sweep_override():
        values = list(override.sweep_iterator()) if override.is_discrete_sweep() else []
    names = [name for value in values for name in (value if isinstance(value, list) else [value])]
    if None in names:  # Hydra takes none
        raise ConfigError(f"{group}=null: expected the name of an option, or no {group}= at all; all: {', '.join(known)}")
    for name in map(str, names):
        if not any((root / group / f"{name}.yaml").is_file() for root in invocation.roots):
            near = nearest(name, known)
            raise ConfigError(f"{group}={name}: there is no such option; {f'{near}; ' if near else ''}all: {', '.join(known)}")


def _compose(invocation: Invocation, overrides: Sequence[str]) -> DictConfig:
    searchpath = [f"hydra.searchpath=['file://{invocation.config_dir}']"] if invocation.config_dir else []
    return compose(invocation.config_name, [*searchpath, *overrides], return_hydra_config=True)


def _composed(invocation: Invocation, overrides: Sequence[str]) -> DictConfig:
    """Return the configuration, or raise with the first override that it refuses."""
    try:
        return _compose(invocation, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        refused, cfg = _first_refused(invocation, overrides)
        if refused is None or cfg is None:
            raise ConfigError(_text(error)) from None
        key = OverridesParser.create().parse_override(refused).key_or_group
        keys = [*dict(flat_items(_plain(cfg))), *group_options(invocation.config_name, invocation.roots)]
        if key in keys or "/" in key or refused.startswith("+"):  # a group of Hydra's own has a slash, and its message the options
            raise ConfigError(_text(error)) from None
        shown = keys if key.startswith("hydra") else [k for k in keys if k.partition(".")[0] != "hydra"]
        raise ConfigError(_unknown(key, shown)) from None


def _first_refused(invocation: Invocation, overrides: Sequence[str]) -> tuple[str | None, DictConfig | None]:
    """Return the first override that cannot be composed with those before it (groups come first), and the rest composed."""
    roots = invocation.roots
    accepted: list[str] = []
    cfg = None
    for override in ["", *sorted(overrides, key=lambda line: not options(line.partition("=")[0].lstrip("+~"), roots))]:
        try:
            cfg = _compose(invocation, [*accepted, override] if override else [])
        except (HydraException, OmegaConfBaseException):
            return override or None, cfg
        accepted += [override] if override else []
    return None, cfg


def _plain(cfg: DictConfig) -> dict[Any, Any]:
    """Return nested dictionaries with every key, also those that still miss their value."""
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    return plain


def _unknown(key: str, known: Sequence[str]) -> str:
    near = nearest(key, known)
    return f"config key {key!r} does not exist{f'; {near}' if near else ''}"


def _text(error: Exception) -> str:
    parts = [str(error), str(error.__cause__ or "")]
    return "; ".join(" ".join(part.split("\nConfig search path")[0].split()) for part in parts if part.strip())
