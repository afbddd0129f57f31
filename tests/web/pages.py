"""Bundles of each kind of input for pages, and a browser to look at them."""

import functools
import http.server
import shutil
import threading
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from ovr.core.artifact import Calibration, DecisionPolicy, HeadArtifact
from ovr.core.bundle import ModelBundle, head_directory
from ovr.core.bundle_writer import write_bundle
from ovr.core.files import sha256_bytes
from ovr.core.schema import InputSchema
from ovr.core.shards import npy_bytes
from ovr.core.taxonomy import Taxonomy
from ovr.export.fused import fused_model
from ovr.export.head import head_metadata, head_model
from ovr.input.columns import CategoryColumn, DateColumn
from ovr.input.image import ImageEncoder
from ovr.input.table import TableEncoder
from ovr.input.table_fit import ColumnSettings, TableSettings, fit_table
from ovr.input.text import HashedText
from tests.bundles import small_bundle
from tests.cohorts import some_cohorts

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
LINES = ("my card is lost", "what does it cost?")


def digits_bundle(path: Path) -> ModelBundle:
    """Write linear heads on the 64 counts of scikit-learn's digits, fitted by logistic regression; it abstains below 0.5."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    x, column_N = load_digits(return_X_y=True)
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["features"])],
        "backbone",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 64])],
    )
    backbone = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    data = backbone.SerializeToString(deterministic=True)
    heads, models, logits_K = [], [], []
    for k in range(10):
        fitted = LogisticRegression(C=0.01, solver="newton-cholesky").fit(x, column_N == k)
        weights = {"weight": fitted.coef_.astype(np.float32), "bias": fitted.intercept_.astype(np.float32)}
        head = HeadArtifact(
            str(k), 1, sha256_bytes(data), "linear", Calibration(status="ok", num_rows=9, num_positives=3), 0.3 + 0.04 * k
        )
        heads.append(head)
        models.append(head_model("linear", weights, head.calibration, head_metadata(head)))
        logits_K.append(x[:64] @ weights["weight"][0].astype(np.float64) + weights["bias"][0])
    prob_NK = 1 / (1 + np.exp(-np.stack(logits_K, axis=1)))
    parts = {"backbone/model.onnx": data, "reference/x.npy": npy_bytes(x[:64].astype(np.float32))}
    parts |= {"reference/prob.npy": npy_bytes(prob_NK)}
    parts |= {
        f"{head_directory(h)}/model.onnx": m.SerializeToString(deterministic=True) for h, m in zip(heads, models, strict=True)
    }
    return write_bundle(
        path,
        taxonomy=Taxonomy.from_ids(str(k) for k in range(10)),
        heads=heads,
        input=InputSchema((64,), tuple(f"pixel_{row}_{column}" for row in range(8) for column in range(8))),
        policy=DecisionPolicy(mode="argmax", abstain_below=0.5),
        provenance={},
        parts=parts,
        fuse=lambda card: fused_model(backbone, models, card).SerializeToString(deterministic=True),
    )


def table_encoder() -> TableEncoder:
    """Return the encoder of a table with a column of each kind of field, whose numbers have a decimal comma."""
    rng = np.random.default_rng(0)
    cells = {
        "age": [None if n % 9 == 0 else float(value) for n, value in enumerate(rng.integers(18, 80, 60))],
        "income": np.round(np.exp(rng.normal(7.8, 0.5, 60)), 1).tolist(),
        "job": rng.choice(["nurse", "driver", "teacher"], 60).tolist(),
        "owner": rng.choice(["no", "yes"], 60).tolist(),
        "since": [
            f"20{year:02d}-0{month}-11" for year, month in zip(rng.integers(10, 25, 60), rng.integers(1, 10, 60), strict=True)
        ],
        "city": [f"city {n % 50:02d}" for n in range(60)],
    }
    settings = TableSettings(min_count=1)
    columns = {"income": ColumnSettings(out_of_range="error", missing="error")}
    return replace(fit_table(cells.items(), settings=settings, columns=columns)[0], decimal=",")


def table_bundle(path: Path) -> ModelBundle:
    """Write random heads on a table; multilabel."""
    encoder = table_encoder()
    policy = DecisionPolicy(mode="multilabel")
    return small_bundle(path, ("granted", "refused"), shape=encoder.tensor.shape, encoder=encoder.to_json(), policy=policy)


def times_bundle(path: Path) -> ModelBundle:
    """Write random heads on times, by format and to the second, and a text that must be known and that none is known of."""
    ends = [datetime(year, 2, 3, 16, 5, 6, tzinfo=timezone.utc).timestamp() for year in (2019, 2024)]
    columns = []
    for name, unit, formats in (("due", 86400, ("%d.%m.%Y",)), ("seen", 60, ("%m/%d/%y %I:%M %p", "%Y")), ("at", 1, ())):
        low, high = (end - end % unit for end in ends)
        parts, fill = ("year", "month sin"), (low + high) / 2
        columns.append(DateColumn(name, parts, fill, 2021.0, 1.0, low, high, False, formats, out_of_range="error"))
    city = CategoryColumn("city", (), (), False, False, "hashed", num_buckets=4, missing="error")
    encoder = TableEncoder((*columns, city))
    return small_bundle(path, shape=encoder.tensor.shape, encoder=encoder.to_json())


def people_bundle(path: Path) -> ModelBundle:
    """Write random heads on the table that docs/web_core.md asks of."""
    cells = {"age": [float(age) for age in range(20, 50)], "sex": ["F", "M"] * 15}
    encoder = fit_table(cells.items(), settings=TableSettings(min_count=1), columns={})[0]
    return small_bundle(path, ("granted", "refused"), shape=encoder.tensor.shape, encoder=encoder.to_json())


def text_bundle(path: Path) -> ModelBundle:
    """Write random heads on hashed texts."""
    encoder = HashedText(num_tokens=8, max_tokens=12)
    return small_bundle(path, ("card", "fee", "größe"), shape=encoder.tensor.shape, encoder=encoder.to_json())


def wide_bundle(path: Path) -> ModelBundle:
    """Write 120 random heads on six numbers without names, with cohorts."""
    return small_bundle(path, [f"class {k}" for k in range(120)], cohorts=some_cohorts(120))


def image_bundle(path: Path) -> ModelBundle:
    """Write random heads on coloured images of 8 x 6 pixels."""
    encoder = ImageEncoder(8, 6, mode="rgb", fit="crop")
    return small_bundle(path, shape=encoder.tensor.shape, encoder=encoder.to_json())


class Server:
    """A folder at an address of its own, as `python -m http.server` serves it, in a thread."""

    def __init__(self, folder: Path) -> None:
        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        """Stop it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
