"""A compiled step is the step: its weights, its checkpoints, and what it needs is asked for before work starts."""

import shutil
from types import SimpleNamespace

import pytest
import torch

from ovr.errors import ConfigError
from ovr.training import compiled as of_step
from ovr.training.compiled import check_compile, compiled
from tests.training.test_chunked import alike, train, weights  # noqa: F401

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*GPU available but not used.*"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning"),  # of torch's compiler, when it is imported
]

COMPILE = "solver.compile=true"


def trainer_on(device):
    return SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)), world_size=1)


def is_missing():
    """Return what keeps the step from being compiled on this machine, if anything does."""
    try:
        check_compile(trainer_on("cpu"))
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.exhaustive
@pytest.mark.skipif(is_missing() is not None, reason=str(is_missing()))
def test_a_compiled_step_gives_the_weights_of_one_that_is_not_and_checkpoints_that_either_goes_on_from(train, monkeypatch):  # noqa: F811
    first = train("first", "trainer.max_epochs=1")
    settings = (f"init_from={first / 'bundle'}", "frozen_heads=[c0,c3]", "backbone_grad=[c0,c1,c2]", "backbone.dropout=0")
    plain = train("plain", *settings)
    made = []
    monkeypatch.setattr(torch, "compile", lambda function, compile=torch.compile: made.append(function) or compile(function))
    for name, before, after in (("first_compiled", (COMPILE,), ()), ("then_compiled", (), (COMPILE,))):
        run_dir = train(name, *settings, *before, stop_at=1)
        assert weights(run_dir).keys() == weights(plain).keys()
        train(name, *settings, *after, resume=True)
        alike(plain, run_dir)
        a, b = weights(plain), weights(run_dir)
        assert all(torch.equal(a[key], b[key]) for key in a if "frozen" in key)
    assert [function.__name__ for function in made] == ["losses", "losses"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert not torch._dynamo.utils.counters["graph_break"]


def test_what_the_compiler_cannot_take_is_an_error_that_names_the_setting(monkeypatch):
    from torch._dynamo.exc import BackendCompilerFailed

    def losses():
        raise BackendCompilerFailed("inductor", RuntimeError("no such thing"), None)

    monkeypatch.setattr(torch, "compile", lambda function: function)
    with pytest.raises(ConfigError, match=r"^the training step cannot be compiled: .*; use solver\.compile=false$"):
        compiled(losses)()


def test_a_machine_that_cannot_compile_says_what_it_lacks_before_a_run_writes(tmp_path, train, monkeypatch):  # noqa: F811
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        ConfigError, match=r"needs a C\+\+ compiler, and there is no no-such-compiler; install one, .* variable CXX"
    ):
        train("run", COMPILE)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(of_step.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(ConfigError, match=r"needs Python's headers, and Python\.h is not there"):
        check_compile(trainer_on("cpu"))
    (tmp_path / "Python.h").touch()
    check_compile(trainer_on("cpu"))
    monkeypatch.setattr(of_step.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="needs Triton-lang on a GPU: pip install triton"):
        check_compile(trainer_on("cuda"))
    monkeypatch.setattr(of_step.importlib.util, "find_spec", lambda _: object())
    check_compile(trainer_on("cuda"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(ConfigError, match=r"needs a C compiler, and there is no gcc or clang; .* variable CC"):
        check_compile(trainer_on("cuda"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("solver.compile=yes_please", "solver.compile must be true or false, got 'yes_please'"),
        (f"{COMPILE} solver.head_step=chunked", r"solver\.compile=true is for heads .*, and these 6 are trained in chunks"),
        (
            f"{COMPILE} trainer=fsdp trainer.accelerator=cpu trainer.devices=1 trainer.precision=32-true",
            r"solver\.compile=true is for one process on one device, got 1 process and Fsdp; .* or use solver\.compile=false",
        ),
        (
            f"{COMPILE} trainer=ddp trainer.accelerator=cpu trainer.devices=2 trainer.precision=32-true",
            r"solver\.compile=true is for one process on one device, got 2 processes and DDPStrategy; use trainer\.devices=1",
        ),
    ],
)
def test_what_cannot_be_compiled_stops_a_run_before_it_writes(tmp_path, train, override, message):  # noqa: F811
    with pytest.raises(ConfigError, match=message):
        train("run", *override.split(" "))
    assert not (tmp_path / "run").exists()
