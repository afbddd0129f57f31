"""A small untrained model and what an export needs beside it."""

import numpy as np
import torch

from ovr.backbone.cnn import Cnn
from ovr.backbone.identity import Identity
from ovr.backbone.mlp import Mlp
from ovr.core.artifact import Calibration, DecisionPolicy
from ovr.core.calibrations import Calibrations
from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.export.bundle import export_bundle
from ovr.export.sharded import export_sharded_bundle
from ovr.head.linear import Linear
from ovr.head.mlp import Mlp as MlpHead
from ovr.model import Normalizer, OvrModel

SHAPE = (1, 8, 8)
BACKBONES = {
    "mlp": lambda: Mlp(SHAPE, hidden=[32, 16], activation="gelu", dropout=0.2),
    "cnn": lambda: Cnn(SHAPE, channels=[4, 8], width=16, dropout=0.2),
    "identity": lambda: Identity(SHAPE),
}
HEADS = {
    "linear": lambda num_features, num_heads: Linear(num_features, num_heads=num_heads),
    "mlp": lambda num_features, num_heads: MlpHead(num_features, num_heads=num_heads, hidden=6),
}


def sample_model(*, backbone="mlp", head="linear", num_heads=5, seed=0):
    """Return a model in training mode whose batch norm has seen data, so that a forgotten eval() shows."""
    torch.manual_seed(seed)
    trunk = BACKBONES[backbone]()
    model = OvrModel(
        Normalizer(torch.full((1, 1, 1), 0.3), torch.full((1, 1, 1), 1.7)), trunk, HEADS[head](trunk.num_features, num_heads)
    )
    with torch.no_grad():
        model.train()(torch.randn(64, *SHAPE))
    return model


def sample_rows(num_rows=32, seed=0):
    return np.random.default_rng(seed).normal(size=(num_rows, *SHAPE)).astype(np.float32)


def sample_calibrations(num_heads, seed=0):
    rng = np.random.default_rng(seed)
    return [Calibration(scale=float(rng.uniform(0.3, 3.0)), bias=float(rng.normal()), status="ok") for _ in range(num_heads)]


def sample_bundle(final, model, class_ids, **changes):
    """Export `model` with plausible values for the rest; returns the bundle and the differences."""
    num_heads = len(class_ids)
    arguments = {
        "model": model,
        "taxonomy": Taxonomy.from_ids(class_ids),
        "input": InputSchema(SHAPE),
        "policy": DecisionPolicy(),
        "calibrations": sample_calibrations(num_heads),
        "thresholds": [0.5] * num_heads,
        "versions": [1] * num_heads,
        "metrics": [{"test": {"f1": 0.5, "positives": 3}}] * num_heads,
        "reference_rows": sample_rows(),
        "calibration_arrays": {"logit": np.zeros((3, num_heads), np.float32)},
        "report": {"accuracy": 0.5},
        "data_parts": {"data/card.json": b"{}"},
        "provenance": {"created_at": "2026-01-01T00:00:00Z"},
    }
    return export_bundle(final, **{**arguments, **changes})


def sample_sharded_bundle(final, model, class_ids, **changes):
    """Export `model` in shards, with plausible values for the rest; returns the bundle and the differences."""
    num_heads = len(class_ids)
    arguments = {
        "model": model,
        "taxonomy": Taxonomy.from_ids(class_ids),
        "input": InputSchema(SHAPE),
        "policy": DecisionPolicy(),
        "calibrations": Calibrations.of(sample_calibrations(num_heads)),
        "threshold_K": np.linspace(0.1, 0.9, num_heads),
        "version": 3,
        "figures": {"f1": np.where(np.arange(num_heads) % 2, 0.5, np.nan), "positives": np.arange(num_heads)},
        "reference_rows": sample_rows(),
        "calibration_arrays": {"features": np.zeros((3, 16), np.float32)},
        "report": {"accuracy": 0.5},
        "data_parts": {"data/card.json": b"{}"},
        "provenance": {"created_at": "2026-01-01T00:00:00Z"},
    }
    return export_sharded_bundle(final, **{**arguments, **changes})


def torch_prob(model, x, calibrations):
    """Return what torch gives in eval mode, calibrated by the formula."""
    model.eval()
    with torch.no_grad():
        logit_NK = model(torch.from_numpy(x)).double().numpy()
    scale_K, bias_K = (np.array([getattr(c, name) for c in calibrations]) for name in ("scale", "bias"))
    return 1 / (1 + np.exp(-(scale_K * logit_NK + bias_K)))
