"""The report of a finished run, from what the run leaves. Knows the files of a run, not how a page is made."""

import logging
import time
from pathlib import Path

from ovr.data.splits import Splits
from ovr.training.report_parts import write_bundle_report
from ovr.training.run import TrainResult

log = logging.getLogger(__name__)


def write_run_report(result: TrainResult, splits: Splits, run_dir: Path) -> Path:
    """Write report.html, report.json and tables/ of the test rows into `run_dir`, and return the first."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    path = write_bundle_report(
        run_dir,
        result.bundle,
        splits.test,
        report=result.report,
        prob_NK=result.test_prob_NK,
        shown=splits.origin.shown.get("test"),
        row_number_N=splits.origin.row_numbers.get("test"),
        measured={"at": now, "rows": "test", "num_rows": len(splits.test), **splits.origin.to_json()},
        title=f"Test report of {run_dir.name}",
        seconds=result.seconds,
    )
    log.info("report %s", path)
    return path
