"""Whether the models that a server has loaded give a bundle's recorded answers. Knows nothing of repositories.

N = reference rows, K = heads, D = features
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from ovr.core.bundle import ModelBundle
from ovr.core.cohorts import COHORT
from ovr.core.taxonomy import slug
from ovr.errors import ArtifactError, ServingError
from ovr.runtime.reference import load_reference
from ovr.serving.pbtxt import head_model_name

TIMEOUT_S = 60.0
READY_TIMEOUT_S = 10.0  # until a new router has had an answer of every head
REQUEST_BYTES = 1 << 20  # of rows: a request waits for its turn behind the clients', so that many would take long


class RecordedAnswers:
    """The reference rows of one bundle, asked of versions of one server's models by their numbers."""

    def __init__(self, bundle: ModelBundle, server: str, *, max_batch_size: int) -> None:
        """Read them.

        Args:
            server: HTTP address.
            max_batch_size: rows a request, at most; fewer are sent.

        Raises:
            ArtifactError: the bundle has no reference rows.
        """
        self.bundle = bundle
        self.reference = load_reference(bundle)
        self._server = server
        row_bytes = self.reference.x[:1].nbytes
        self._num_rows = min(max(1, REQUEST_BYTES // max(1, row_bytes)), max_batch_size)

    def check_scores(self, version: int) -> None:
        """Raise ServingError unless that version of `ovr_scores` gives them; for rows of every cohort where there are any."""
        x, cohorts = {self.bundle.input.name: self.reference.x}, self.bundle.cohorts
        if cohorts is None:
            (prob_NK,) = self._ask("ovr_scores", version, x, ["prob"])
            self._compare(self.reference, prob_NK, f"ovr_scores version {version}")
            return
        for number, name in enumerate((None, *cohorts.names)):
            number_N1 = np.full((len(self.reference.x), 1), number, np.int64)
            (prob_NK,) = self._ask("ovr_scores", version, {**x, COHORT: number_N1}, ["prob"])
            what = f"ovr_scores version {version}" + (f" for {cohorts.column}={name}" if number else "")
            self._compare(self.reference.of_cohort(number) if number else self.reference, prob_NK, what)

    def check_router(self, version: int) -> None:
        """Raise ServingError unless that version of `ovr` gives them, with the versions of the bundle's heads.

        A router that takes texts, cells or images is not asked: the recorded rows are as the network takes them.
        """
        if self.bundle.input.raw_kind is not None:
            return
        x = {self.bundle.input.name: self.reference.x}
        prob_NK, version_NK, unavailable_NK = self._ask("ovr", version, x, ["prob", "head_version", "unavailable"])
        deadline = time.monotonic() + READY_TIMEOUT_S
        while unavailable_NK.any() and time.monotonic() < deadline:  # heads that take too long at first, or on a machine at work
            time.sleep(0.1)
            prob_NK, version_NK, unavailable_NK = self._ask("ovr", version, x, ["prob", "head_version", "unavailable"])
        if unavailable_NK.any():
            class_id = self.bundle.taxonomy.ids[int(unavailable_NK.any(axis=0).argmax())]
            raise ServingError(
                f"ovr version {version} says that class {class_id!r} is unavailable: its head does not answer in time"
            )
        self._compare(self.reference, prob_NK, f"ovr version {version}")
        expected = list(self.bundle.card.head_versions)
        if (wrong := version_NK[0].tolist()) != expected:
            raise ServingError(f"ovr version {version} says that its heads are of versions {wrong}; expected {expected}")

    def check_heads(self, backbone_version: int, class_ids: Sequence[str]) -> None:
        """Raise ServingError unless the models of these classes' heads give them on the features of `backbone`."""
        x = {self.bundle.input.name: self.reference.x}
        (features_ND,) = self._ask("backbone", backbone_version, x, ["features"])
        for class_id in class_ids:
            version = self.bundle.head(class_id).version
            (prob_N1,) = self._ask(head_model_name(class_id), version, {"features": features_ND}, ["prob"])
            column = self.reference.of([self.bundle.taxonomy.column(class_id)])
            self._compare(column, prob_N1, f"{head_model_name(class_id)} version {version}")

    def check_ensemble(self, version: int) -> None:
        """Raise ServingError unless that version of `ovr_heads` gives them."""
        outputs = [f"prob_{slug(class_id)}" for class_id in self.bundle.taxonomy.ids]
        columns = self._ask("ovr_heads", version, {self.bundle.input.name: self.reference.x}, outputs)
        self._compare(self.reference, np.concatenate(columns, axis=1), f"ovr_heads version {version}")

    def _compare(self, reference: Any, prob_NK: NDArray[np.float32], what: str) -> None:
        try:
            reference.compare(prob_NK, what=what)
        except ArtifactError as error:
            raise ServingError(f"the server does not give the bundle's recorded answers: {error}") from None

    def _ask(self, model: str, version: int, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Return each output for all rows, in the order of `outputs`."""
        import tritonclient.http as http_api
        from tritonclient.utils import np_to_triton_dtype

        parts = urlsplit(self._server)
        answers: list[list[NDArray[Any]]] = []
        with http_api.InferenceServerClient(
            parts.netloc, ssl=parts.scheme == "https", network_timeout=TIMEOUT_S, connection_timeout=TIMEOUT_S
        ) as connection:
            for start in range(0, len(self.reference.x), self._num_rows):
                tensors = []
                for name, values in inputs.items():
                    part = np.ascontiguousarray(values[start : start + self._num_rows])
                    tensors.append(http_api.InferInput(name, list(part.shape), np_to_triton_dtype(part.dtype)))
                    tensors[-1].set_data_from_numpy(part)
                wanted = [http_api.InferRequestedOutput(name) for name in outputs]
                result = self._infer(connection, model, tensors, model_version=str(version), outputs=wanted)
                answers.append([result.as_numpy(name) for name in outputs])
        return [np.concatenate(chunks) for chunks in zip(*answers, strict=True)]

    def _infer(self, connection: Any, model: str, tensors: Any, **options: Any) -> Any:
        """Return the server's answer; where clients fill the model's queue, the request waits for its turn."""
        from tritonclient.utils import InferenceServerException

        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                return connection.infer(model, tensors, **options)
            except InferenceServerException as error:
                if "maximum queue size" not in str(error) or time.monotonic() > deadline:
                    what = f"{model} version {options['model_version']} does not answer the bundle's reference rows"
                    raise ServingError(f"{what}: {error.message()}") from None
            except (OSError, ValueError) as error:
                raise ServingError(f"no Triton server answers at {self._server}: {error}") from None
            time.sleep(0.05)
