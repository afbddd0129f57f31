"""Small trained-looking bundles with calibration rows of their own, made once."""

import numpy as np
import pytest

from ovr.calibrator.temperature import Temperature
from ovr.core.artifact import DecisionPolicy
from ovr.core.calibrations import Calibrations
from ovr.core.shards import npy_bytes
from ovr.data.leakage import row_digests
from ovr.data.overlap import CALIB_ROWS, TRAIN_ROWS
from tests.export.sample import SHAPE, sample_bundle, sample_model, sample_sharded_bundle

CLASS_IDS = ("cat", 'a/b, "c"', "größe", "train")
NUM_ROWS = 400


def sample_labels(logit_NK, seed=0):
    """Labels drawn by the logits, each head's own temperature in them, and a mask with some unknown."""
    rng = np.random.default_rng(seed)
    prob_NK = 1 / (1 + np.exp(-logit_NK / np.linspace(1, 3, logit_NK.shape[1])))
    return rng.random(logit_NK.shape) < prob_NK, rng.random(logit_NK.shape) < 0.9


def rows_of(seed, num_rows=NUM_ROWS):
    return np.random.default_rng(seed).normal(size=(num_rows, *SHAPE)).astype(np.float32)


def torch_logits(model, x):
    import torch

    model.eval()
    with torch.no_grad():
        return model(torch.from_numpy(x)).numpy()


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Return a function of the kind of head that gives (model, bundle), calibrated on rows that the bundle keeps."""
    made = {}

    def make(head="linear"):
        if head not in made:
            model = sample_model(num_heads=len(CLASS_IDS), head=head)
            logit_NK = 20 * torch_logits(model, rows_of(1))
            target_NK, mask_NK = sample_labels(logit_NK)
            with_weights(model, 20.0)
            bundle, _ = sample_bundle(
                tmp_path_factory.mktemp("bundle") / "bundle",
                model,
                CLASS_IDS,
                calibrations=Temperature().fit(logit_NK, target_NK, mask_NK),
                policy=DecisionPolicy(mode="multilabel"),  # no head's decisions depend on another
                thresholds=[0.3, 0.4, 0.5, 0.6],
                versions=[1, 2, 3, 4],
                calibration_arrays={"logit": logit_NK, "target": target_NK, "mask": mask_NK},
                data_parts={
                    "data/card.json": b"{}",
                    TRAIN_ROWS: npy_bytes(np.unique(row_digests(rows_of(0)))),
                    CALIB_ROWS: npy_bytes(np.unique(row_digests(rows_of(1)))),
                },
            )
            made[head] = model, bundle
        return made[head]

    return make


def with_weights(model, factor):
    """Make the logits `factor` times as large, so that calibration matters."""
    import torch

    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if "hidden" not in name:
                parameter.mul_(factor)


@pytest.fixture(scope="session")
def sharded(tmp_path_factory):
    """Return (model, bundle) with head shards, and calibration rows as such bundles keep them."""
    from ovr.core import scale
    from ovr.data.labels import Labels

    model = sample_model(num_heads=len(CLASS_IDS))
    with_weights(model, 20.0)
    import torch

    model.eval()
    with torch.no_grad():
        z_ND = model.features(torch.from_numpy(rows_of(1))).numpy()
    logit_NK = torch_logits(model, rows_of(1))
    target_NK, mask_NK = sample_labels(logit_NK)
    labels = Labels.from_dense(target_NK, mask_NK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scale, "SHARD_HEADS", 2)
        bundle, _ = sample_sharded_bundle(
            tmp_path_factory.mktemp("sharded") / "bundle",
            model,
            CLASS_IDS,
            calibrations=Calibrations.of(Temperature().fit(logit_NK, target_NK, mask_NK)),
            calibration_arrays={
                "features": z_ND,
                "positive_start": labels.positives.start_N1,
                "positive_column": labels.positives.column_P,
                "unknown_start": labels.unknowns.start_N1,
                "unknown_column": labels.unknowns.column_P,
            },
            data_parts={"data/card.json": b"{}"},
        )
    return model, bundle


def flat(value, path=""):
    """Return every number, text and flag of a report by where it stands."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {path: value}
    return {where: leaf for key, item in items for where, leaf in flat(item, f"{path}/{key}").items()}
