"""No calibration: the sigmoid of each logit as it is. What to choose where the loss already teaches probabilities, or to compare.

N = rows, K = heads
"""

from typing import Any

from ovr.calibrator.known import known
from ovr.core.artifact import Calibration
from ovr.core.targets import check_targets


class Identity:
    """Plug-in: leaves every head as it is, and counts its rows."""

    kinds: tuple[str, ...] = ("identity",)

    def fit(self, logit_NK: Any, target_NK: Any, mask_NK: Any) -> list[Calibration]:
        """Return one calibration a head, in column order, with status `ok`, `one_class` or `no_rows`.

        Raises:
            DataError: NaN or infinite logits, shapes that differ, targets or mask other than 0 and 1.
        """
        about = known(*check_targets(logit_NK, target_NK, mask_NK, score_name="logit"))
        counts = zip(about.both_K.tolist(), about.num_rows_K.tolist(), about.num_positives_K.tolist(), strict=True)
        return [
            Calibration("identity", 1.0, 0.0, "ok" if both else "one_class" if num_rows else "no_rows", num_rows, num_positives)
            for both, num_rows, num_positives in counts
        ]
