"""Training by two processes, by DDP and by FSDP: the weights of one process, and checkpoints that either goes on from."""

import json
import re
from contextlib import chdir
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.plugins.precision import FSDPPrecision
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn

from ovr.errors import ConfigError
from ovr.optimizer.adamw import AdamW
from ovr.optimizer.rowwise_adagrad import RowwiseAdagrad
from ovr.training.fsdp import Fsdp, check_fsdp, units
from ovr.training.run import run_training
from tests.training.conftest import compose_recipe
from tests.training.test_chunked import alike, checkpoint, drawn, weights
from tests.training.two_ranks import ALONE, CHUNKED, FROZEN, ONE_EPOCH, QUICK, fit, start

pytestmark = pytest.mark.filterwarnings("ignore:.*GPU available but not used.*")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a folder of runs by one process, NAME_1, and by two, NAME_2; NAME_2_to_1 began with two."""
    folder = tmp_path_factory.mktemp("two_ranks")
    with chdir(folder):
        recipe, _ = compose_recipe(folder / "first", *QUICK, *ALONE, ONE_EPOCH)
        run_training(recipe, drawn(), folder / "first")
        both = start(folder, "ddp_2", "fsdp_2", "mixed", "chunked_2_to_1", "ddp_diverged", "fsdp_diverged")
        fit(folder / "ddp_1", *ALONE, "trainer.gradient_clip_val=0.5")
        fit(folder / "fsdp_1", *ALONE, *FROZEN)
        fit(folder / "chunked_1", *ALONE, *CHUNKED)
        end(both)
        fit(folder / "chunked_2_to_1", *ALONE, *CHUNKED, resume=True)
    return folder


@pytest.fixture(scope="module")
def more_runs(runs):
    """Return the same folder with more runs; NAME_1_to_2 began with one process."""
    with chdir(runs):
        fit(runs / "fsdp_1_to_2", *ALONE, *FROZEN, ONE_EPOCH)
        fit(runs / "chunked_1_to_2", *ALONE, *CHUNKED, ONE_EPOCH)
        end(start(runs, "fsdp_1_to_2", "fsdp_2_to_1", "chunked_1_to_2"))
        fit(runs / "fsdp_2_to_1", *ALONE, *FROZEN, resume=True)
    return runs


def end(both):
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(said)[-5000:]


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_dense_training_by_two_processes_gives_the_weights_of_one(runs, kind):
    alike(runs / f"{kind}_1", runs / f"{kind}_2", tolerance=1e-6)
    a, b = (checkpoint(runs / f"{kind}_{ranks}")["optimizer_states"][0] for ranks in (1, 2))
    assert a["param_groups"] == b["param_groups"]
    assert a["state"].keys() == b["state"].keys()
    for key, state in a["state"].items():
        for part, value in state.items():
            torch.testing.assert_close(b["state"][key][part], value, atol=1e-6, rtol=1e-4)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp_2", "mixed"])
def test_sharding_leaves_frozen_heads_and_the_normaliser_bit_for_bit(runs, name):
    first, found = weights(runs / "first"), weights(runs / name)
    for group, column in (("frozen", 0), ("frozen_stopped", 3)):
        for part in ("weight_KD", "bias_K"):
            assert torch.equal(found[f"model.head.groups.{group}.{part}"][0], first[f"model.head.{part}"][column])
    before = weights(runs / "fsdp_1")
    kept = [key for key in found if "frozen" in key or "normalizer" in key]
    assert len(kept) == 6
    for key in kept:
        assert found[key].dtype == torch.float32
        assert torch.equal(found[key], before[key]), key
    assert all(not torch.equal(value, first[key]) for key, value in found.items() if "backbone" in key)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_heads_spread_over_two_processes_are_gone_on_with_by_one(runs):
    alike(runs / "chunked_1", runs / "chunked_2_to_1", tolerance=1e-6)
    assert checkpoint(runs / "chunked_2_to_1")["epoch"] == 2


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp_1_to_2", "fsdp_2_to_1", "chunked_1_to_2"])
def test_a_checkpoint_of_one_process_is_gone_on_from_by_two_and_the_reverse(more_runs, name):
    alike(more_runs / f"{name.partition('_')[0]}_1", more_runs / name, tolerance=1e-6)
    assert checkpoint(more_runs / name)["epoch"] == 2


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_row_that_overflows_in_one_process_is_one_error_of_both_that_names_it_and_the_heads(runs, kind):
    run_dir = runs / f"{kind}_diverged"
    first, second = ((run_dir / f"said_by_{rank}.txt").read_text() for rank in (0, 1))
    assert first == second
    assert re.search(r"; in \d of 6 heads: 'c\d'", first)
    # Of sharded weights no process has what features are made with.
    assert ("row 37 has a normalised value of 3e+38, far from the others" in first) == (kind == "ddp")
    record = json.loads((run_dir / "diverged.json").read_text())
    assert record["rows_not_finite"]["loss"] == [37]
    assert len(record["rows"]) == 12


def test_layers_of_a_list_are_gathered_apart_and_what_is_small_with_the_whole():
    def block(width):
        return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 8))

    model = nn.Module()
    model.stages = nn.ModuleList([nn.Sequential(block(4), block(4)), nn.ModuleList([block(2)])])
    model.head = nn.Linear(8, 1000)
    inner = {model.stages[0][0], model.stages[0][1]}
    assert units(model, 60) == inner
    assert units(model, 41) == {*inner, model.stages[1][0]}
    assert units(model, 100) == {model.stages[0]}
    assert units(model, 10_000) == set()


def sharded(**changes):
    strategy = changes.pop("strategy", None) or Fsdp(unit_weights=None)
    strategy.parallel_devices = [torch.device("cpu")]
    return SimpleNamespace(**{"strategy": strategy, "precision": "32-true", "gradient_clip_val": None, **changes})


@pytest.mark.parametrize(
    ("changes", "optimizer", "message"),
    [
        ({"strategy": FSDPStrategy()}, AdamW, r"trainer\.strategy=fsdp rounds frozen heads .*; use trainer=fsdp"),
        ({"precision": "bf16-true"}, AdamW, r"precision=bf16-true cannot be used with trainer=fsdp on cpu; expected 32-true$"),
        ({"gradient_clip_val": 1.0}, AdamW, r"gradient_clip_val=1\.0 cannot be used with trainer=fsdp"),
        ({}, lambda p: RowwiseAdagrad(p, lr=0.1, eps=1e-8, weight_decay=0.0), "the optimizer RowwiseAdagrad cannot be used with"),
        ({}, torch.optim.LBFGS, "the optimizer LBFGS cannot be used with"),
    ],
)
def test_what_sharding_rules_out_is_refused_by_name(changes, optimizer, message):
    check_fsdp(SimpleNamespace(optimizer=AdamW), sharded())
    with pytest.raises(ConfigError, match=message):
        check_fsdp(SimpleNamespace(optimizer=optimizer), sharded(**changes))


@pytest.mark.parametrize("unit_weights", [0, 1.5, True, "all"])
def test_a_unit_is_of_a_number_of_weights(unit_weights):
    with pytest.raises(ConfigError, match=r"trainer\.strategy\.unit_weights must be a whole number of at least 1, or null, got"):
        Fsdp(unit_weights=unit_weights)


def test_no_precision_of_lightnings_makes_fsdp_cast_a_buffer():
    strategy = Fsdp(unit_weights=None)
    strategy.precision_plugin = FSDPPrecision("bf16-mixed")
    config = strategy.mixed_precision_config
    assert (config.param_dtype, config.reduce_dtype, config.buffer_dtype) == (None, None, None)
