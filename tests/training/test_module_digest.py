import importlib.util
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from ovr.backbone.transformer import Transformer
from ovr.training.module_digest import module_digest


class Own(nn.Module):
    """A backbone with one setting, which its `repr`, weights and buffers do not tell."""

    def __init__(self, setting):
        super().__init__()
        self.setting = setting
        self.myself = [self]


class Buffered(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.register_buffer("value", torch.tensor(value), persistent=False)


class Pair:
    __slots__ = ("left", "right")

    def __init__(self, left, right):
        self.left, self.right = left, right


def scaled_by(scale):
    return lambda x: x * scale


def negated(module, inputs, output):
    return -output


def hooked(hook):
    module = Own(1)
    if hook is not None:
        module.register_forward_hook(hook)
    return module


DIFFERENT = {
    "flag": (lambda: Own(True), lambda: Own(False)),
    "0 and false": (lambda: Own(0), lambda: Own(False)),
    "float": (lambda: Own(0.3), lambda: Own(0.1 + 0.2)),
    "nothing": (lambda: Own(None), lambda: Own("None")),
    "list": (lambda: Own([1, 2]), lambda: Own([2, 1])),
    "nested": (lambda: Own([[1], 2]), lambda: Own([[1, 2]])),
    "names": (lambda: Own({"a": 1, "b": 2}), lambda: Own({"a": 2, "b": 1})),
    "ordered": (lambda: Own(OrderedDict(a=1)), lambda: Own(OrderedDict(a=2))),
    "set": (lambda: Own({"a", "b"}), lambda: Own({"a", "c"})),
    "array": (lambda: Own(np.arange(3)), lambda: Own(np.arange(3)[::-1])),
    "tensor": (lambda: Own(torch.ones(2)), lambda: Own(torch.zeros(2))),
    "type of tensor": (lambda: Own(torch.float32), lambda: Own(torch.float16)),
    "buffer that is not saved": (lambda: Buffered(1), lambda: Buffered(2)),
    "module in a list": (lambda: Own([Own(1)]), lambda: Own([Own(2)])),
    "part": (lambda: nn.Sequential(Own(1)), lambda: nn.Sequential(Own(2))),
    "part of torch": (lambda: nn.Sequential(nn.ReLU()), lambda: nn.Sequential(nn.GELU())),
    "function of torch": (lambda: Own(torch.relu), lambda: Own(torch.tanh)),
    "function": (lambda: Own(functional.gelu), lambda: Own(functional.silu)),
    "lambda": (lambda: Own(lambda x: x), lambda: Own(lambda x: -x)),
    "what a function encloses": (lambda: Own(scaled_by(1)), lambda: Own(scaled_by(2))),
    "partial": (lambda: Own(partial(functional.elu, alpha=1.0)), lambda: Own(partial(functional.elu, alpha=2.0))),
    "method": (lambda: Own(Pair(1, 2).__init__), lambda: Own(Pair(2, 2).__init__)),
    "slots": (lambda: Own(Pair(1, 2)), lambda: Own(Pair(1, 3))),
    "class": (lambda: Own(Pair), lambda: Own(Own)),
    "hook": (lambda: hooked(None), lambda: hooked(negated)),
}


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT)
def test_modules_that_differ_in_what_repr_and_weights_do_not_tell_have_different_digests(one, other):
    assert module_digest(one()) == module_digest(one())
    assert module_digest(one()) != module_digest(other())


def test_mode_and_gradients_have_no_part_in_it():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), Own(1))
    digest = module_digest(module.train())
    assert module_digest(module.eval().requires_grad_(False)) == digest
    with torch.no_grad():
        module[0].weight[0, 0] += 1
    assert module_digest(module) != digest


def test_the_order_of_modules_counts():
    assert module_digest(Own(1), Own(2)) != module_digest(Own(2), Own(1))


def test_it_is_the_same_in_another_process():
    """Whatever the seed of the hashes, by which sets are ordered, and wherever objects lie."""
    script = (
        "from torch import nn; from ovr.training.module_digest import module_digest\n"
        "module = nn.Linear(1, 1); nn.init.ones_(module.weight); nn.init.zeros_(module.bias)\n"
        "module.names, module.act = {'a', 'b', 'c', 'd'}, nn.functional.gelu; print(module_digest(module))"
    )
    run = partial(subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert len({run(env={**os.environ, "PYTHONHASHSEED": seed}).stdout for seed in "12"}) == 1


def test_a_class_that_is_written_anew_gives_another_digest(tmp_path, monkeypatch):
    digests = []
    for sign in ("", "-"):
        file = tmp_path / f"of_my_own{sign}.py"
        file.write_text(f"from torch import nn\nclass Mine(nn.Module):\n    def forward(self, x):\n        return {sign}x\n")
        spec = importlib.util.spec_from_file_location("of_my_own", file)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "of_my_own", module)
        spec.loader.exec_module(module)
        digests.append(module_digest(module.Mine()))
    assert digests[0] != digests[1]


def test_what_cannot_be_told_from_others_is_an_error(monkeypatch):
    with pytest.raises(TypeError, match=r"Own cannot be told from others like it: cannot pickle '_thread\.lock' object"):
        module_digest(Own(threading.Lock()))
    monkeypatch.setattr(Own, "__module__", "__main__")
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    with pytest.raises(TypeError, match="Own cannot be told from others like it: it is written in no file"):
        module_digest(Own(1))


def test_a_class_may_say_that_its_repr_tells_all_but_not_for_its_subclasses():
    class Told(Own):
        told_by_repr = True

    class More(Told):
        pass

    assert module_digest(Told(1)) == module_digest(Told(2))
    assert module_digest(More(1)) != module_digest(More(2))
    assert vars(Transformer)["told_by_repr"] is True
