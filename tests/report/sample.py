"""Probabilities of a few heads with labels, and the report dictionary that a run would make of them."""

from pathlib import Path
from typing import Any

import numpy as np

from ovr.core.artifact import Calibration, DecisionPolicy
from ovr.core.taxonomy import Taxonomy
from ovr.data.labels import Labels
from ovr.report import write_report
from ovr.training.evaluate import evaluate

ODD_IDS = ("<script>document.title='hit'</script>", "äöü 猫", "quo\"te\\'&amp;", "line\nbreak", "x" * 300, "a$b$_c^2", "\u202eevil")


class OneBlock:
    """Logits of all heads at once, as `evaluate` goes through them."""

    def __init__(self, logit_NK: np.ndarray) -> None:
        self.logit_NK = logit_NK
        self.num_heads = logit_NK.shape[1]

    def __len__(self) -> int:
        return len(self.logit_NK)

    def __iter__(self):
        yield slice(0, self.logit_NK.shape[1]), self.logit_NK


def sample(num_rows: int, num_heads: int, *, seed: int = 0, class_ids: tuple[str, ...] = ODD_IDS) -> dict[str, Any]:
    """Return what `write_report` takes, of rows with one class each."""
    rng = np.random.default_rng(seed)
    column_N = rng.integers(num_heads, size=num_rows)
    logit_NK = rng.normal(-4, 1, (num_rows, num_heads)).astype(np.float32)
    logit_NK[np.arange(num_rows), column_N] += rng.normal(5, 3, num_rows).astype(np.float32)
    labels = Labels.from_columns(column_N, num_heads=num_heads)
    ids = [*class_ids[:num_heads], *(f"class {k}" for k in range(len(class_ids), num_heads))]
    taxonomy = Taxonomy.from_ids(ids)
    policy = DecisionPolicy()
    calibrations = [Calibration(status="ok", num_rows=9, num_positives=3) for _ in ids]
    evaluation = evaluate(
        OneBlock(logit_NK),  # type: ignore[arg-type]
        labels,
        calibrations=calibrations,
        threshold_K=np.full(num_heads, 0.5),
        policy=policy,
        small_K=np.zeros(num_heads, bool),
        propensity_K=np.ones(num_heads),
    )
    target_NK, mask_NK = labels.dense()
    report = evaluation.report(taxonomy, calibrations)
    report.pop("confused_pairs", None)  # tests that are about them give their own
    return {
        "report": report,
        "taxonomy": taxonomy,
        "prob_NK": 1 / (1 + np.exp(-logit_NK)),
        "target_NK": target_NK,
        "mask_NK": mask_NK,
        "policy": policy,
    }


def written(folder: Path, num_rows: int = 200, num_heads: int = 7, **more: Any) -> Path:
    """Write the report of a sample and return the HTML file."""
    return write_report(folder, **{**sample(num_rows, num_heads), **more})
