"""One progress bar over the epochs of a fit. Lightning's own draws a bar an epoch, which scrolls the terminal away."""

import sys

from lightning import Callback, LightningModule, Trainer
from tqdm import tqdm


class EpochProgress(Callback):
    """Shows epochs done, the training loss and the validation macro average precision, on the first rank."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar at the epoch that a resumed run begins with."""
        if trainer.is_global_zero:
            self._bar = tqdm(
                total=trainer.max_epochs,
                initial=trainer.current_epoch,
                desc="training",
                unit="epoch",
                file=sys.stderr,
                mininterval=0.5,
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Advance by an epoch."""
        if self._bar is not None:
            figures = {
                key: float(trainer.callback_metrics[key])
                for key in ("train/loss", "val/macro_ap")
                if key in trainer.callback_metrics
            }
            self._bar.set_postfix({key: f"{value:.4f}" for key, value in figures.items()}, refresh=False)
            self._bar.update(1)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the message has a line of its own; there is no teardown then."""
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the bar."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
