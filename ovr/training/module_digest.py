"""A digest of modules by all that their output depends on. Knows neither rows nor what the modules are for.

That is weights and buffers, whatever else stands in the attributes of a module and of its parts, and the files that their classes
and functions are written in; what these files import is not looked at. A class whose `repr`, weights and buffers tell all that the
attributes would, of its parts too, says so by an attribute `told_by_repr`; a subclass may have more to tell, and does not
inherit it.
"""

import copyreg
import hashlib
import sys
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import nn

PLAIN = (type(None), bool, int, float, complex, str, bytes)
# What every module has for its own use: the mode, and hooks of training, loading and saving.
PLUMBING = set(vars(nn.Module())) - {"_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks"}


def module_digest(*modules: nn.Module) -> str:
    """Return a digest that only modules with the same output in eval mode share.

    It is of what a pickle would hold, and so of more than the output may depend on, such as a count of calls.

    Raises:
        TypeError: a part that cannot be told from others: what has no pickle, or is written in no file.
    """
    try:
        return _Digests().of(list(modules)).hex()
    except Exception as error:  # whatever an object's own code raises
        raise TypeError(f"{type(modules[-1]).__name__} cannot be told from others like it: {error}") from error


class _Digests:
    """Of objects, each once."""

    def __init__(self) -> None:
        self.digests: dict[int, bytes] = {}  # by id
        self.objects: list[Any] = []  # kept, so that no id is another's
        self.files: dict[str, bytes] = {}  # by module

    def of(self, value: Any) -> bytes:
        if type(value) in PLAIN:
            return _joined(type(value).__name__.encode(), repr(value).encode())
        if id(value) not in self.digests:
            self.objects.append(value)
            self.digests[id(value)] = b"%d" % len(self.objects)  # wherever it is a part of itself
            self.digests[id(value)] = self._of_parts(value)
        return self.digests[id(value)]

    def _of_parts(self, value: Any) -> bytes:
        kind = type(value)
        name = kind.__qualname__.encode()
        if kind in (list, tuple):
            return _joined(name, *map(self.of, value))
        if kind in (set, frozenset):
            return _joined(name, *sorted(map(self.of, value)))
        if kind is dict:
            return _joined(name, *(self.of(part) for item in value.items() for part in item))
        if isinstance(value, torch.Tensor):
            values = value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy()
            return _joined(name, f"{value.dtype} {tuple(value.shape)}".encode(), values.data)
        return _joined(name, *map(self.of, self._parts(value)))

    def _parts(self, value: Any) -> tuple[Any, ...]:
        if isinstance(value, nn.Module) and vars(type(value)).get("told_by_repr") is True:
            return repr(value), dict(value.state_dict()), [type(module) for module in value.modules()]
        if isinstance(value, nn.Module):
            return type(value), {name: part for name, part in vars(value).items() if name not in PLUMBING}
        if isinstance(value, type):
            return tuple(part for base in value.__mro__ for part in (base.__qualname__, *self._written(base.__module__)))
        if isinstance(value, ModuleType):
            return self._written(value.__name__)
        if isinstance(value, FunctionType):
            enclosed = [cell.cell_contents for cell in value.__closure__ or ()]
            defaults = value.__defaults__, value.__kwdefaults__
            return value.__qualname__, *self._written(value.__module__), value.__code__, *defaults, enclosed
        if isinstance(value, CodeType):
            return value.co_code, value.co_names, value.co_consts
        reduce = copyreg.dispatch_table.get(type(value))
        made: Any = value.__reduce_ex__(4) if reduce is None else reduce(value)
        if isinstance(made, str):  # a global's name
            return getattr(value, "__module__", None), made
        maker, arguments, state, *items = (*made, None)[:5]
        return maker, arguments, state, *(list(part or ()) for part in items)

    def _written(self, module: str) -> tuple[str, bytes]:
        """Return the name of a module and the digest of its file, which a part of the interpreter does not have."""
        if module not in self.files:
            file = getattr(sys.modules[module], "__file__", None)
            if file is None and module == "__main__":
                raise TypeError("it is written in no file")
            self.files[module] = b"" if file is None else hashlib.sha256(Path(file).read_bytes()).digest()
        return module, self.files[module]


def _joined(*parts: Any) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.digest()
