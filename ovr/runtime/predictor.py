"""Predictions from one ONNX file, with numpy and onnxruntime alone. Knows nothing of training or servers.

B = batch, K = heads
"""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ovr.core.artifact import ModelCard
from ovr.core.bundle import open_bundle
from ovr.core.cohorts import COHORT
from ovr.core.files import bytes_on_disk, check_foreign_json, strict_json
from ovr.core.onnx_file import EDGE_OPS, check_onnx, check_onnx_file
from ovr.core.prediction import Prediction
from ovr.core.schema import check_rows
from ovr.decision.decide import decide
from ovr.errors import ArtifactError, ConfigError, InputError
from ovr.input.encoder import encoder_from_json
from ovr.input.records import IMAGE
from ovr.input.row_problems import row_problems
from ovr.input.table import TableEncoder
from ovr.runtime.cohort_rows import check_takes_cohorts, cohort_names, split_cohorts
from ovr.runtime.edge_files import EXPORT_CARD, checked_model, checked_ort, is_edge_export
from ovr.runtime.edge_signatures import signed_model
from ovr.runtime.frames import index_of, numbers_of
from ovr.runtime.onnx_versions import of_another_runtime, too_old, versions_of

CARD_KEY = "ovr.card"  # of the ONNX file's metadata
OUTPUT = "prob"


class EdgePredictor:
    """A fused model, ready to predict.

    A row's probabilities are the same bytes whatever rows come with it, and however the other heads change.
    """

    def __init__(
        self, path: str | PathLike[str], *, num_threads: int = 1, trusted_keys: Sequence[str | PathLike[str]] = ()
    ) -> None:
        """Open a bundle directory (every digest is checked first), what `ovr export target=edge` wrote, or a fused ONNX file.

        Args:
            num_threads: of ONNX Runtime; 0: as many as there are cores.
            trusted_keys: files of public keys, one of which must have signed the export (`ovr sign`); without any, nobody needs to.

        Raises:
            ArtifactError: the path is missing, the bundle or the export is damaged, or the file is no fused ONNX model of ovr; no
                trusted key signed the export.
            ConfigError: `path` is none, `num_threads` is not a whole number of at least 0; keys are given for what is no edge
                export, or cannot be used, or cryptography is not installed.
        """
        if not isinstance(num_threads, int) or isinstance(num_threads, bool) or num_threads < 0:
            raise ConfigError(f"num_threads is {num_threads!r}; expected a whole number of at least 0")
        if not isinstance(path, str | PathLike):
            raise ConfigError(f"path is {path!r}; expected that of a bundle directory, an edge export or a fused ONNX file")
        if isinstance(trusted_keys, str | PathLike):
            raise ConfigError(f"trusted_keys is {str(trusted_keys)!r}; expected a list of files")
        try:
            self._open(Path(path), num_threads, [Path(key) for key in trusted_keys])
        except OSError as error:
            raise ArtifactError(f"{error.filename or path} cannot be read: {error.strerror or error}") from None
        self._encoder = encoder_from_json(self.card.input.encoder)
        self.num_rows = {
            "passed": 0,
            "refused": 0,
        }  # given to `encode`: those that fit, and those that `check` tells of
        self.num_cohort_rows = {"known": 0, "unknown": 0, "missing": 0}  # of models with cohorts: those of the last two are pooled

    def _open(self, path: Path, num_threads: int, trusted_keys: Sequence[Path]) -> None:
        """Open the model and read its card, each only once it was checked."""
        if trusted_keys and not is_edge_export(path):
            raise ConfigError(
                f"signatures are required of {path}, which is no directory of `ovr export target=edge`; those of bundles are "
                "checked by `ovr verify` and `ovr predict require_signature=true`"
            )
        signed = None  # the bytes that a trusted key signed
        if is_edge_export(path):
            path = checked_model(path, trusted_keys)
            if trusted_keys:
                signed = signed_model(path, path.parent / EXPORT_CARD, trusted_keys)
        elif path.suffix == ".ort" and path.is_file():
            checked_ort(path)
        bundle = open_bundle(path) if path.is_dir() else None
        model_path = path if bundle is None else bundle.fused_onnx
        options = ort.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if signed is None and not model_path.is_file():
            raise ArtifactError(f"{path} does not exist; expected a bundle directory, an edge export or a fused ONNX file")
        if bundle is None and path.suffix != ".ort":
            if signed is None:
                check_onnx_file(model_path, allowed_ops=EDGE_OPS, what=str(model_path))
            else:
                check_onnx(signed, allowed_ops=EDGE_OPS, what=str(model_path))
        try:
            self._session = ort.InferenceSession(
                str(model_path) if signed is None else signed, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            hint = (
                of_another_runtime(ort.__version__)
                if path.suffix == ".ort"
                else too_old(*versions_of(model_path), runtime=ort.__version__, error=str(error))
            )
            raise ArtifactError(
                f"{model_path} cannot be opened as an ONNX model: {f'{hint}; ' if hint else ''}{str(error).strip()}"
            ) from None
        self.card = self._read_card(model_path, bytes_on_disk(model_path) if signed is None else len(signed))
        if bundle is not None and self.card != bundle.card:
            raise ArtifactError(f"the model card in {model_path} is not that of the bundle; export the bundle again")

    def encode(self, rows: Any) -> NDArray[np.float32]:
        """Return the rows (B, *card.input.shape) float32 that the network is given.

        Args:
            rows: what the model was trained on: texts, or objects with a value a column (see `ovr.input.records.records_of`);
                numbers (B, *card.input.shape) where `card.input.encoder` is None.

        Raises:
            InputError: a row that does not fit, naming row and column.
        """
        try:
            x = self._encoded(rows)
        except InputError:
            num_rows = _num_rows(rows)
            try:
                num_refused = len(self.check(rows))
            except InputError:  # of rows that are none, or lack a column
                num_refused = num_rows
            self.num_rows["refused"] += num_refused
            self.num_rows["passed"] += num_rows - num_refused
            raise
        self.num_rows["passed"] += len(x)
        return x

    def check(self, rows: Any) -> dict[int, str]:
        """Return what is wrong with each row that `encode` refuses, by its number from 0, ascending; empty where it takes all.

        Nothing is counted.

        Args:
            rows: as `encode` takes them.

        Raises:
            InputError: `rows` are in none of the forms that `encode` takes, or there are none.
        """
        rows = split_cohorts(rows, self.card, self._encoder)[1]
        if isinstance(self._encoder, TableEncoder) and not isinstance(rows, list | tuple):
            return self._encoder.problems(rows)
        num_rows = _num_rows(rows)
        if num_rows == 0:
            self._encoded(rows)
        if isinstance(self._encoder, TableEncoder):
            try:
                return self._encoder.problems(rows)
            except InputError:  # of rows that are no objects, or have other columns
                pass
        dear = self.card.input.raw_kind == IMAGE
        return row_problems(num_rows, lambda some: self._encoded(_some(rows, some)), one_by_one=dear)

    def _encoded(self, rows: Any) -> NDArray[np.float32]:
        rows = split_cohorts(rows, self.card, self._encoder)[1]
        return (
            check_rows(numbers_of(rows, self.card.input), self.card.input) if self._encoder is None else self._encoder.encode(rows)
        )

    def predict_proba(
        self,
        rows: Any,
        *,
        cohort: Any = None,
        encoded: bool = False,
        batch_size: int = 256,
        progress: Callable[[int], Any] | None = None,
    ) -> NDArray[np.float32]:
        """Return calibrated probabilities (B, K) float32; column k belongs to `card.taxonomy[k]`.

        Args:
            rows: as `encode` takes them, or with `encoded` as it returns them.
            cohort: of a model with cohorts: one text a row (None where it is not known), or one for all. Where it is None, it is
                taken from the rows if these are objects with the model's cohort column. Rows without a cohort, or of one that the
                model does not know, get the pooled calibration, and are counted in `num_cohort_rows`.
            batch_size: rows given to ONNX Runtime at a time.
            progress: called with the number of rows done since the last call.

        Raises:
            InputError: the rows do not fit the model's input schema, batch_size is no whole number of at least 1, or cohorts of
                another number than rows, or for a model that has none.
        """
        if not isinstance(batch_size, int | np.integer) or isinstance(batch_size, bool) or batch_size < 1:
            raise InputError(f"batch_size is {batch_size!r}; expected a whole number of at least 1")
        check_takes_cohorts(self.card, cohort)
        x = check_rows(rows, self.card.input) if encoded else self.encode(rows)
        return self._prob(x, self._cohort_numbers(rows, cohort, len(x)), batch_size, progress)

    def predict_encoded(
        self, x: NDArray[np.float32], *, cohort: Any = None, batch_size: int = 256, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Return what `predict_proba` returns for rows as `encode` has just returned them, which are not looked at again.

        Args:
            out: (B, K) float32 that is filled and returned; None makes an array.
        """
        return self._prob(x, self._cohort_numbers(x, cohort, len(x)), batch_size, None, out)

    def _prob(
        self,
        x: NDArray[np.float32],
        number_B1: NDArray[np.int64] | None,
        batch_size: int,
        progress: Callable[[int], Any] | None,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        prob_BK = np.empty((len(x), len(self.card.taxonomy)), dtype=np.float32) if out is None else out
        for start in range(0, len(x), batch_size):
            part = x[start : start + batch_size]
            feed: dict[str, NDArray[Any]] = {self.card.input.name: part}
            if number_B1 is not None:
                feed[COHORT] = number_B1[start : start + len(part)]
            prob_BK[start : start + len(part)] = self._session.run([OUTPUT], feed)[0]
            if progress is not None:
                progress(len(part))
        return prob_BK

    def predict(
        self,
        rows: Any,
        *,
        cohort: Any = None,
        encoded: bool = False,
        batch_size: int = 256,
        progress: Callable[[int], Any] | None = None,
    ) -> Prediction:
        """Return probabilities and the decision of the model's policy; arguments and errors as in `predict_proba`."""
        prob_BK = self.predict_proba(rows, cohort=cohort, encoded=encoded, batch_size=batch_size, progress=progress)
        decision = decide(prob_BK, threshold_K=self.card.thresholds, policy=self.card.policy)
        return Prediction(self.card, prob_BK, decision, index=index_of(rows))

    def _cohort_numbers(self, rows: Any, cohort: Any, num_rows: int) -> NDArray[np.int64] | None:
        """Return the number of each row's cohort in the graph, (B, 1); None where the model has none."""
        if self.card.cohorts is None:
            return None
        given = cohort if cohort is not None else split_cohorts(rows, self.card, self._encoder)[0]
        names = cohort_names(given, num_rows)
        for outcome, count in self.card.cohorts.count(names).items():
            self.num_cohort_rows[outcome] += count
        return self.card.cohorts.numbers(names)[:, None]

    def _read_card(self, model_path: Path, size_bytes: int) -> ModelCard:
        text = self._session.get_modelmeta().custom_metadata_map.get(CARD_KEY)
        if text is None:
            raise ArtifactError(f"{model_path} has no {CARD_KEY} in its metadata; expected a fused ONNX file made by `ovr export`")
        what, data = f"the model card in {model_path}", text.encode()
        check_foreign_json(data, beside_bytes=max(size_bytes - len(data), 0), what=what)
        try:
            value = strict_json(data)
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{what} is not JSON: {error}") from None
        return ModelCard.from_json(value)


def _num_rows(rows: Any) -> int:
    """Return how many rows there are, 0 where that is not to be told."""
    if isinstance(rows, str | bytes):
        return 0
    cells = next(iter(rows.values()), ()) if isinstance(rows, Mapping) else rows
    try:
        return len(cells)
    except TypeError:
        return 0


def _some(rows: Any, some: slice) -> Any:
    return {name: cells[some] for name, cells in rows.items()} if isinstance(rows, Mapping) else rows[some]
