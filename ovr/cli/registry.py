"""What the commands of `ovr bundle` share: the store, and who is asking."""

import getpass
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from ovr.cli.instantiate import build
from ovr.cli.tables import table
from ovr.errors import ConfigError
from ovr.registry.entries import Store


def store_of(cfg: DictConfig) -> Store:
    """Return the registry that the configuration names."""
    store: Store = build(cfg.registry, cfg.allow_targets)
    return store


def text(cfg: DictConfig, key: str) -> str:
    """Return a name or some words of the configuration.

    Raises:
        ConfigError: it is something else; Hydra reads 7 as a number, and of 1.50 or true the spelling is lost.
    """
    if type(cfg[key]) not in (str, int):
        raise ConfigError(f"{key} is {cfg[key]!r}, which is no text; quote what Hydra reads as something else")
    return str(cfg[key])


def who(cfg: DictConfig) -> str:
    """Return who registers or promotes.

    Raises:
        ConfigError: it is not given, and the process has no user with a name.
    """
    if cfg.who is not None:
        return text(cfg, "who")
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise ConfigError("the user of this process has no name; say who=NAME") from None


def print_table(lines: Sequence[Sequence[Any]], *, max_lines: int) -> None:
    """Print a header and up to `max_lines` lines, empty cells for None.

    Raises:
        ConfigError: `max_lines` is no whole number of at least 0.
    """
    if not isinstance(max_lines, int) or isinstance(max_lines, bool) or max_lines < 0:
        raise ConfigError(f"max_lines is {max_lines!r}; expected a whole number of at least 0")
    print(table([["" if cell is None else cell for cell in line] for line in lines[: max_lines + 1]]))
    if len(lines) > max_lines + 1:
        print(f"and {len(lines) - max_lines - 1} more; json=true prints all of them")
