"""The gate of commands that bring heads into a bundle: its policy, and what it said. Needs no torch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from ovr.cli.instantiate import build
from ovr.errors import ConfigError

if TYPE_CHECKING:
    from ovr.lifecycle.gate import Gate


def gate_of(cfg: DictConfig) -> "Gate":
    """Return the gate that heads are to pass.

    Raises:
        ConfigError: there is none, or something else, or its policy cannot be used.
    """
    from ovr.lifecycle.gate import Gate

    if cfg.get("gate") is None:
        raise ConfigError(
            "there is no gate; expected a policy, such as gate=default. force=true lets in what it refuses, and is recorded"
        )
    if "_target_" not in cfg.gate:
        settings = ", ".join(map(str, cfg.gate)) or "none"
        raise ConfigError(f"gate has settings ({settings}) and no _target_; expected `_target_: ovr.lifecycle.gate.Gate`")
    gate = build(cfg.gate, cfg.allow_targets)
    if not isinstance(gate, Gate):
        raise ConfigError(f"gate is a {type(gate).__name__}; expected ovr.lifecycle.gate.Gate")
    return gate


def print_verdict(verdict: Mapping[str, Any]) -> None:
    """Print what the gate said of a head, a line a check."""
    for name, check in verdict["checks"].items():
        outcome = ("undecided, let in" if check["undecided"] else "passed") if check["passed"] else "FAILED"
        print(f"  {outcome} {name}: {check['said']}")
    if verdict["looser_than_default"]:
        print(f"  the gate's policy asks less than the default: {', '.join(verdict['looser_than_default'])}")
