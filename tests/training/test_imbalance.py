"""Every means against imbalance, trained to the end: what it does to probabilities before and after calibration."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from ovr.calibrator.temperature import fit_temperature
from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.data.labels import Labels
from ovr.data.splits import make_splits
from ovr.metric.calibration import nll
from ovr.training.feed import Feed
from ovr.training.loader import dense_batch
from ovr.training.module import OvrModule
from ovr.training.plan import head_plan
from ovr.training.recipe import build_model
from ovr.training.run import run_training
from tests.training.conftest import compose_recipe

pytestmark = pytest.mark.filterwarnings("ignore:.*GPU available but not used.*")

THREE, TWO = (0.75, 0.2, 0.05), (0.95, 0.05)
CENTRES = np.array([[0.0, 0.0], [1.5, 0.0], [0.0, 2.0]])
SIZES = {"train": 4_000, "val": 500, "calib": 4_000, "test": 20_000}
QUICK = (
    "backbone=identity",
    "data.normalize=none",
    "trainer.max_epochs=8",
    "batch_size=250",
    "optimizer.lr=0.05",
    "~callback.progress",
)


def drawn(shares, *, seed):
    """Return splits of overlapping classes of unequal size."""
    rng, parts = np.random.default_rng(seed), {}
    for name, num_rows in SIZES.items():
        column_N = rng.choice(len(shares), size=num_rows, p=shares)
        x = CENTRES[column_N] + rng.normal(size=(num_rows, 2))
        parts[name] = (x, Labels.from_columns(column_N, num_heads=len(shares)))
    return make_splits(Taxonomy.from_ids("abc"[: len(shares)]), InputSchema((2,)), parts)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Return the test report of a training on classes of these shares with these overrides; trained once for all tests."""
    known = {}

    def trained(shares, *overrides):
        if (shares, overrides) not in known:
            run_dir = tmp_path_factory.mktemp("run") / "run"
            recipe, _ = compose_recipe(run_dir, *QUICK, *overrides)
            known[shares, overrides] = run_training(recipe, drawn(shares, seed=0), run_dir).report
        return known[shares, overrides]

    return trained


@pytest.mark.parametrize(
    "overrides", [("loss.pos_weight=auto",), ("loss=subsampled", "loss.negatives_per_positive=2")], ids=" ".join
)
def test_weights_and_subsampling_leave_probabilities_right_before_any_calibration(report, overrides):
    plain, ours = report(THREE), report(THREE, *overrides)
    assert ours["nll_before"] <= 1.01 * plain["nll_before"]
    assert ours["ece_before"] <= plain["ece_before"] + 0.01


def test_with_two_classes_balanced_sampling_does_too(report):
    plain, ours = report(TWO), report(TWO, "sampler=class_balanced")
    assert ours["nll_before"] <= 1.01 * plain["nll_before"]
    assert ours["ece_before"] <= plain["ece_before"] + 0.01


@pytest.mark.parametrize(
    ("overrides", "factor"),
    [
        (("loss.pos_weight=auto",), 1.01),
        (("loss=focal", "loss.pos_weight=auto"), 1.01),
        (("loss=asymmetric",), 1.01),
        (("loss=smoothed",), 1.01),
        (("loss=subsampled", "loss.negatives_per_positive=2"), 1.01),
        (("sampler=class_balanced",), 1.07),  # among look-alikes of another class its odds are off, which no calibration mends
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_calibration_repairs_what_is_done_to_probabilities(report, overrides, factor):
    plain, ours = report(THREE), report(THREE, *overrides)
    assert ours["nll_after"] <= factor * plain["nll_after"]
    assert ours["ece_after"] <= plain["ece_after"] + 0.01


def test_there_is_something_to_repair(report):
    plain = report(THREE)
    for overrides in (("loss=focal", "loss.pos_weight=auto"), ("loss=asymmetric",)):
        assert report(THREE, *overrides)["nll_before"] > 1.15 * plain["nll_before"]


def test_a_temperature_cannot_take_out_a_shift_of_the_odds(rng):
    logit_NK = rng.normal(-3.0, 1.5, size=(20_000, 1))
    target_NK = rng.random((20_000, 1)) < 1 / (1 + np.exp(-logit_NK))
    mask_NK = np.ones_like(target_NK)
    shifted_NK = logit_NK + np.log(10.0)  # what a positive weight of 10 teaches
    repaired = nll(shifted_NK, target_NK, mask_NK, scale_K=fit_temperature(shifted_NK, target_NK, mask_NK).scale_K)
    assert repaired[0] > 1.5 * nll(logit_NK, target_NK, mask_NK)[0]


@pytest.mark.parametrize("grad", ["all", "a and c"])
def test_heads_start_at_their_base_rates(tmp_path, grad):
    recipe, _ = compose_recipe(tmp_path, *QUICK)
    recipe = replace(recipe, backbone_grad=grad if grad == "all" else ["a", "c"])
    splits = drawn(THREE, seed=0)
    torch.manual_seed(0)
    model = build_model(recipe, splits)
    torch.manual_seed(0)
    drawn_head = recipe.head(recipe.backbone((2,)).num_features, num_heads=3)
    bias_K = np.array([model.head.head_weights(k)["bias"][0] for k in range(3)])
    start_K = torch.from_numpy(bias_K - drawn_head.bias_K.detach().numpy()).sigmoid()
    np.testing.assert_allclose(start_K, splits.train.labels.counts().base_rate_K(), atol=2e-3)


def test_the_sampler_shifts_the_training_loss_and_not_the_model(tmp_path):
    recipe, _ = compose_recipe(tmp_path, *QUICK, "sampler=class_balanced")
    splits = drawn(THREE, seed=0)
    sampler = recipe.sampler(splits.train.labels)
    module = OvrModule(
        build_model(recipe, splits),
        recipe.loss(splits.taxonomy.ids),
        feed=Feed(splits, sampler, batch_size=100, seed=0),
        plan=head_plan(splits.taxonomy, frozen_heads=[], backbone_grad="all"),
        optimizer=recipe.optimizer,
        scheduler=recipe.scheduler,
    )
    x, target_BK = torch.from_numpy(splits.train.x[:50]), torch.from_numpy(splits.train.labels.dense(np.arange(50))[0]).float()
    shifted_BK = module.model(x) + torch.from_numpy(sampler.log_odds_shift_K).float()
    expected = binary_cross_entropy_with_logits(shifted_BK, target_BK, reduction="sum") / 50
    torch.testing.assert_close(module.losses(dense_batch(splits.train, np.arange(50))).sum() / 50, expected)
    assert "log_odds_shift_K" not in module.state_dict()
