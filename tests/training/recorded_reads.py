"""A callback that writes down what one rank reads; named by the configuration of a test."""

import json
import os
from pathlib import Path

from lightning import Callback

from ovr.data.parquet import ParquetRows


class RecordedReads(Callback):
    """Writes `reads-RANK.json`: for each epoch the row groups read, as [file name, number], and the rows of each step."""

    def __init__(self, folder):
        self.folder, self.epochs, self.groups = Path(folder), [], []
        read_group = ParquetRows.read_group

        def recorded(rows, group, **how):
            self.groups.append([rows.path.name, group])
            return read_group(rows, group, **how)

        ParquetRows.read_group = recorded

    def on_train_epoch_start(self, trainer, module):
        self.groups.clear()
        self.epochs.append({"steps": []})

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.epochs[-1]["steps"].append(batch[-1].tolist())

    def on_train_epoch_end(self, trainer, module):
        self.epochs[-1]["groups"] = [group for group in self.groups if group[0].startswith("train")]
        rank = trainer.global_rank
        (self.folder / f"reads-{rank}.json").write_text(json.dumps({"pid": os.getpid(), "epochs": self.epochs}))
