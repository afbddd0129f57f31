"""Objects from the configuration: the one place where `_target_` is followed, behind an allowlist.

Hydra alone follows any dotted name, `torch.load` and `pathlib.Path.unlink` among them.
"""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from ovr.core.nearest import nearest
from ovr.errors import ConfigError, OvrError

ALLOWED_TARGETS = ("ovr.", "torch.optim.", "torch.nn.", "lightning.", "torchmetrics.")


def build(cfg: DictConfig | dict[str, Any], allow_targets: Sequence[str] = (), /, **kwargs: Any) -> Any:
    """Return what `cfg` describes: its `_target_` called with its other keys and `kwargs`; nested targets first.

    With `_partial_: true` a callable comes back that waits for the remaining arguments; without `_target_`, a dictionary of
    what its values describe. Containers reach the target as plain lists and dictionaries. `kwargs` are handed over untouched.

    Args:
        allow_targets: prefixes that are allowed besides `ALLOWED_TARGETS`, such as `my_package.`.

    Raises:
        ConfigError: a target outside the allowlist (nothing is imported then), one that does not exist, an argument it does not
            take, or a value that is missing.
        OvrError: what the target itself raises.
    """
    try:
        node = cfg if isinstance(cfg, DictConfig) else OmegaConf.create(cfg)
        plain = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} is not given; add {error.full_key}=VALUE") from None
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from None
    allowed = (*ALLOWED_TARGETS, *allow_targets)
    where = str(node._get_full_key(None) or "the configuration")
    targets = list(_targets(plain))
    for target in targets:
        _check_name(target, allowed, where)
    for target in targets:
        _check_object(target, allowed, where)
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


def _targets(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "_target_" in value:
            yield str(value["_target_"])
        value = value.values()
    elif not isinstance(value, list):
        return
    for item in value:
        yield from _targets(item)


def _check_name(target: str, allowed: Iterable[str], where: str) -> None:
    if not any(_is_below(target, prefix) for prefix in allowed):
        raise ConfigError(
            f"{where}: _target_ {target} is not allowed; allowed are names below {', '.join(allowed)} "
            "(others are added with allow_targets=[PREFIX])"
        )


def _check_object(target: str, allowed: Iterable[str], where: str) -> None:
    """Check what the name leads to as well: `ovr.core.files.shutil.rmtree` begins with `ovr.` and is not of ovr."""
    from hydra.utils import get_object

    try:
        found = get_object(target)
    except Exception as error:
        raise ConfigError(f"{where}: _target_ {target} cannot be found: {error}") from None
    home = f"{getattr(found, '__module__', None)}."
    if not callable(found) or not any(_is_below(home, prefix) for prefix in allowed):
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
