"""Logits, targets and masks that calibrators are tried on, odd ones among them."""

import numpy as np

from ovr.calibrator.apply import sigmoid


def heads(num_rows=400, num_heads=4, *, scale=0.5, bias=-0.5, known=0.9, seed=0):
    """Return logits (N, K) float32 whose best calibration is sigmoid(scale * z + bias), targets and a mask."""
    rng = np.random.default_rng(seed)
    logit_NK = rng.normal(-1.0, 2.5, (num_rows, num_heads)).astype(np.float32)
    target_NK = rng.random(logit_NK.shape) < sigmoid(scale * logit_NK.astype(np.float64) + bias)
    return logit_NK, target_NK, rng.random(logit_NK.shape) < known


def odd_heads(num_rows=60):
    """Return heads without rows, of one class, separable, falling, extreme, constant, and a plain one, by name, and the arrays."""
    rng = np.random.default_rng(1)
    z = rng.normal(0, 2, num_rows)
    plain = rng.random(num_rows) < sigmoid(z)
    columns = {
        "no_rows": (z, plain, np.zeros(num_rows)),
        "one_class": (z, np.zeros(num_rows), np.ones(num_rows)),
        "all_positive": (z, np.ones(num_rows), np.ones(num_rows)),
        "separable": (z, z > 1, np.ones(num_rows)),
        "falling": (z, rng.random(num_rows) < sigmoid(-2 * z), np.ones(num_rows)),
        "extreme": (np.where(np.arange(num_rows) % 7, z, np.sign(z) * 3e38), plain, np.ones(num_rows)),
        "constant": (np.full(num_rows, 0.5), plain, np.ones(num_rows)),
        "one_positive": (z, np.arange(num_rows) == np.argmax(z), np.ones(num_rows)),
        "one_row": (z, plain, np.arange(num_rows) == 0),
        "plain": (z, plain, np.ones(num_rows)),
    }
    logit_NK, target_NK, mask_NK = (np.stack([column[i] for column in columns.values()], axis=1) for i in range(3))
    return list(columns), (logit_NK, target_NK.astype(bool), mask_NK.astype(bool))
