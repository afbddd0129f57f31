"""The report of a finished run, from what the run leaves. Knows the files of a bundle and a run, not how a page is made."""

import json
import logging
from pathlib import Path

from ovr.data.card import CARD
from ovr.data.splits import Splits
from ovr.report import write_report
from ovr.training.report_parts import readable, with_worst
from ovr.training.run import TrainResult

log = logging.getLogger(__name__)


def write_run_report(result: TrainResult, splits: Splits, run_dir: Path) -> Path:
    """Write report.html, report.json and tables/ of the test rows into `run_dir`, and return the first.

    Rows are shown as their source keeps them (`Origin.shown`), or else as the network is given them.
    """
    bundle = result.bundle
    target_NK, mask_NK = splits.test.labels.dense() if result.test_prob_NK is not None else (None, None)
    path = write_report(
        run_dir,
        report=with_worst(result.report, bundle.heads),
        taxonomy=splits.taxonomy,
        prob_NK=result.test_prob_NK,
        target_NK=target_NK,
        mask_NK=mask_NK,
        policy=bundle.policy,
        rows=readable(splits.test.x, splits.input, splits.origin.shown.get("test")),
        row_number_N=splits.origin.row_numbers.get("test"),
        provenance={**bundle.provenance, "bundle_sha256": bundle.bundle_sha256, "seconds": result.seconds},
        data_card=json.loads((bundle.path / CARD).read_bytes()),
        title=f"Test report of {run_dir.name}",
    )
    log.info("report %s", path)
    return path
