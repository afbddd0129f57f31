"""Objects from the configuration: the one place where `_target_` is followed, behind an allowlist.

Hydra alone follows any dotted name, `torch.load` and `pathlib.Path.unlink` among them, and a package that is allowed as a whole has
functions that read pickles. Allowed are the very names that the shipped configuration has, classes of torch and lightning of a few
kinds, and what the user's command line adds; from a bundle, what the shipped configuration has for that part.
"""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from ovr.cli.conf import conf_dir
from ovr.core.nearest import nearest
from ovr.errors import ConfigError, OvrError

PACKAGES = ("torch.optim.", "torch.nn.", "lightning.")
KINDS = (  # what a class of PACKAGES must be; by name, since importing them takes seconds
    "torch.optim.optimizer.Optimizer",
    "torch.optim.lr_scheduler.LRScheduler",
    "torch.nn.modules.module.Module",
    "lightning.pytorch.trainer.trainer.Trainer",
    "lightning.pytorch.callbacks.callback.Callback",
    "lightning.pytorch.loggers.logger.Logger",
    "lightning.pytorch.profilers.profiler.Profiler",
    "lightning.pytorch.strategies.strategy.Strategy",
    "lightning.pytorch.plugins.precision.precision.Precision",
)


@cache
def shipped_targets(group: str = "") -> frozenset[str]:
    """Return the names that ovr's own configuration files have as `_target_`: those of a group's options, or all."""
    files = (conf_dir() / group).glob("*.yaml") if group else conf_dir().rglob("*.yaml")
    found = (re.findall(r"(?m)^[ ]*_target_: *([\w.]+)", file.read_text(encoding="utf-8")) for file in files)
    return frozenset(name for names in found for name in names if not name.startswith("hydra_plugins."))


def build_recorded(settings: Mapping[str, Any] | DictConfig, group: str, allow_targets: Sequence[str] = ()) -> Any:
    """Return what a bundle says that one of its parts was made by; bundles come from others, and may say anything.

    Args:
        group: of the shipped configuration, such as `calibrator`; the bundle may name the classes that its options have.
        allow_targets: prefixes that the user's command line allows besides.

    Raises:
        ConfigError: a `_target_` that is none of the group's, nested ones included; nothing is imported then. What `build` raises.
    """
    node = settings if isinstance(settings, DictConfig) else OmegaConf.create(dict(settings))
    known = shipped_targets(group)
    for target in _targets(_plain(node)):
        if target not in known and not any(_is_below(target, prefix) for prefix in allow_targets):
            raise ConfigError(
                f"the bundle's {group}: _target_ {target} is not allowed, since a bundle is data; expected one of "
                f"{', '.join(sorted(known))} (others are added with allow_targets=[PREFIX])"
            )
    return build(node, allow_targets)


def build(cfg: DictConfig | dict[str, Any], allow_targets: Sequence[str] = (), /, **kwargs: Any) -> Any:
    """Return what `cfg` describes: its `_target_` called with its other keys and `kwargs`; nested targets first.

    With `_partial_: true` a callable comes back that waits for the remaining arguments; without `_target_`, a dictionary of
    what its values describe. Containers reach the target as plain lists and dictionaries. `kwargs` are handed over untouched.

    Args:
        allow_targets: prefixes that are allowed besides `shipped_targets()` and `KINDS`, such as `my_package.`.

    Raises:
        ConfigError: a target outside the allowlist (nothing is imported then), one that does not exist, an argument it does not
            take, or a value that is missing.
        OvrError: what the target itself raises.
    """
    node = cfg if isinstance(cfg, DictConfig) else OmegaConf.create(cfg)
    plain = _plain(node)
    where = str(node._get_full_key(None) or "the configuration")
    targets = list(_targets(plain))
    for target in targets:
        _check_name(target, allow_targets, where)
    for target in targets:
        _check_object(target, allow_targets, where)
    try:
        if not isinstance(plain, dict) or "_target_" not in plain:
            return instantiate(node, _convert_="all")
        waits = plain.get("_partial_", False)
        made = instantiate(node, _convert_="all", _partial_=True)
        _check_arguments(made, kwargs, where, complete=not waits)
        return (partial(made, **kwargs) if kwargs else made) if waits else made(**kwargs)
    except HydraException as error:
        raise _cause(error, where) from error
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(f"{where}: {targets[0]} refuses its settings: {error}") from error


def _plain(node: DictConfig) -> Any:
    try:
        return OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} is not given; add {error.full_key}=VALUE") from None
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from None


def _targets(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "_target_" in value:
            yield str(value["_target_"])
        value = value.values()
    elif not isinstance(value, list):
        return
    for item in value:
        yield from _targets(item)


def _check_name(target: str, allow_targets: Sequence[str], where: str) -> None:
    is_public = not any(part.startswith("_") for part in target.split("."))
    if target in shipped_targets() or any(_is_below(target, prefix) for prefix in allow_targets):
        return
    if not (is_public and any(_is_below(target, prefix) for prefix in PACKAGES)):
        near = nearest(target, sorted(shipped_targets()))
        raise ConfigError(
            f"{where}: _target_ {target} is not allowed{f'; {near}' if near else ''}; allowed are those of the shipped "
            f"configuration, and classes of {', '.join(PACKAGES)} (others are added with allow_targets=[PREFIX])"
        )


def _check_object(target: str, allow_targets: Sequence[str], where: str) -> None:
    """Check what the name leads to as well: `my_package.shutil.rmtree` begins with `my_package.` and is not of it."""
    from hydra.utils import get_object

    try:
        found = get_object(target)
    except Exception as error:
        raise ConfigError(f"{where}: _target_ {target} cannot be found: {error}") from None
    home = f"{getattr(found, '__module__', None)}."
    if target in shipped_targets():
        return
    if not any(_is_below(target, prefix) for prefix in allow_targets):
        if not (inspect.isclass(found) and any(f"{base.__module__}.{base.__qualname__}" in KINDS for base in found.__mro__)):
            raise ConfigError(
                f"{where}: _target_ {target} is not allowed; it is a {type(found).__name__}, expected a class of the kind "
                f"{', '.join(kind.rpartition('.')[2] for kind in KINDS)}"
            )
    elif not callable(found) or not any(_is_below(home, prefix) for prefix in allow_targets):
        raise ConfigError(f"{where}: _target_ {target} is not allowed; it is a {type(found).__name__} of {home.rstrip('.')}")


def _is_below(name: str, prefix: str) -> bool:
    prefix = prefix.rstrip(".")
    return bool(prefix) and (name == prefix or name.startswith(prefix + "."))


def _check_arguments(made: partial[Any], kwargs: dict[str, Any], where: str, *, complete: bool) -> None:
    """Check the arguments now: a callable that waits would report them only when it is called, far from the configuration."""
    try:
        signature = inspect.signature(made.func)
    except (TypeError, ValueError):  # built-in callables have no signature to check
        return
    given = {**made.keywords, **kwargs}
    try:
        (signature.bind if complete else signature.bind_partial)(*made.args, **given)
    except TypeError as error:
        names = [p.name for p in signature.parameters.values() if p.kind is not p.POSITIONAL_ONLY]
        wrong = [name for name in given if name not in names]
        near = nearest(wrong[0], names) if wrong else ""
        raise ConfigError(f"{where}: {made.func.__qualname__}: {error}; {near or 'it takes ' + ', '.join(names)}") from None


def _cause(error: HydraException, where: str) -> OvrError:
    cause: BaseException = error
    while cause.__cause__ is not None and not isinstance(cause, OvrError):
        cause = cause.__cause__
    return cause if isinstance(cause, OvrError) else ConfigError(f"{where}: {' '.join(str(cause).split())}")
