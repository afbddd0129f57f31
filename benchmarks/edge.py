"""Models on a device: size, cold start, import, latency and memory of edge exports, beside torch eager and scikit-learn.

Each set is trained by `ovr train` and exported in fp32, fp16 and int8, the last two judged on its calibration rows. Peers are the
same network in torch eager (what `torch.save` writes), and scikit-learn's OneVsRestClassifier of logistic regressions, fitted on
4,000 rows of the set (texts behind a TfidfVectorizer) and pickled: another model, of other accuracy, for what its runtime costs.
All answer the same raw rows, one at a time, on one thread, each in a fresh process; these start one after the other, several times.

Cold start is the wall time from the start of the process to the first prediction; memory the highest of that process (VmHWM).
digits comes with scikit-learn; of the sets in OVR_REFERENCE_DATA fashion-mnist and clinc150 are measured. K = heads
"""

import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Row, main

PRECISIONS = ("fp32", "fp16", "int8")
SAME = 1e-4  # probabilities of torch eager and ours
IMPORTS = {
    "ours": "from ovr import EdgePredictor",
    "torch eager": "import torch",
    "scikit-learn OvR": "import pickle, sklearn.linear_model, sklearn.multiclass, sklearn.pipeline",
}
PREDICT = {
    "ours": "model = EdgePredictor(path)\npredict = model.predict_proba",
    "torch eager": """
torch.set_num_threads(1)
saved = torch.load(path, weights_only=False)
from ovr.input.encoder import encoder_from_json
encoder = encoder_from_json(saved['encoder'])
def predict(rows):
    x = torch.from_numpy(rows if encoder is None else encoder.encode(rows))
    with torch.inference_mode():
        return torch.sigmoid(saved['scale'] * saved['model'](x) + saved['bias']).numpy()
""",
    "scikit-learn OvR": """
model = pickle.load(open(path, 'rb'))
def predict(rows):
    return model.predict_proba(rows if isinstance(rows, list) else rows.reshape(len(rows), -1))
""",
}
CHILD = """
import json, sys, time
imports, code, path, rows_file, calls = *sys.argv[1:5], int(sys.argv[5])
began = time.perf_counter()
exec(imports)
import_s = time.perf_counter() - began
import numpy as np
rows = np.load(rows_file) if rows_file.endswith('.npy') else json.load(open(rows_file))
exec(code)
first = np.asarray(predict(rows[:1]))
print(flush=True)
times = []
for call in range(calls):
    row = rows[call % len(rows):][:1]
    began = time.perf_counter()
    predict(row)
    times.append(time.perf_counter() - began)
peak = next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'))
print(json.dumps({'import': import_s, 'times': times, 'peak': peak / 1024, 'first': first[0].tolist()}))
"""


@dataclass(frozen=True, slots=True)
class Set:
    """What is trained, and what rows and a peer come from."""

    train: list[str]  # settings of `ovr train`
    gate: list[str]  # of `ovr export`, for the rows that a reduced precision is judged on
    rows: Any  # raw rows (N, ...), or texts
    column_N: np.ndarray


@dataclass(slots=True)
class Found:
    """What the processes of one model showed."""

    cold_s: list[float]
    import_s: list[float]
    call_s: list[float]
    peak_mib: list[float]
    first_K: np.ndarray


def digits(data: Path | None, quick: bool) -> Set:
    """Return scikit-learn's digits."""
    from sklearn.datasets import load_digits

    x, column_N = load_digits(return_X_y=True)
    train = ["experiment=digits", *(["trainer.max_epochs=4"] if quick else [])]
    return Set(train, ["data=digits", "rows=calib"], x.astype(np.float32), column_N)


def fashion_mnist(data: Path | None, quick: bool) -> Set:
    """Return the images of fashion-mnist; three epochs, as the figures are not of its accuracy."""
    from ovr.data.idx import read_idx

    assert data is not None
    folder = data / "fashion-mnist"
    x, y = (read_idx(folder / f"t10k-{name}-ubyte") for name in ("images-idx3", "labels-idx1"))
    train = ["experiment=fashion_mnist", f"data.root={folder}", "trainer.max_epochs=3"]
    gate = ["data=idx", f"data.root={folder}", "rows=calib"]
    return Set(train, gate, np.asarray(x, np.float32), np.asarray(y).astype(np.int64))


def clinc150(data: Path | None, quick: bool) -> Set:
    """Return the intents of clinc150, for a bag of embeddings trained from nothing."""
    assert data is not None
    file = data / "clinc150" / "data_full.json"
    pairs = json.loads(file.read_text())["train"]
    names = sorted({name for _, name in pairs})
    train = ["experiment=clinc150_bag", f"data.path={file}"]
    split = ["data.source.keys={train:[train],val:[val],test:[test]}", "data.source.split={of:val,fractions:{val:0.5,calib:0.5}}"]
    gate = ["data=text", f"data.path={file}", "data.text=0", "data.label=1", *split, "rows=calib", "max_overlap=0.002"]
    return Set(train, gate, [text for text, _ in pairs], np.array([names.index(name) for _, name in pairs]))


SETS: dict[str, tuple[str, Callable[[Path | None, bool], Set]]] = {
    "digits": ("", digits),
    "fashion-mnist": ("fashion-mnist", fashion_mnist),
    "clinc150": ("clinc150/data_full.json", clinc150),
}


def ovr(*arguments: str) -> None:
    """Run a command of ovr.

    Raises:
        RuntimeError: it fails; what it said is in it.
    """
    done = subprocess.run([sys.executable, "-m", "ovr", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ovr {' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")


def save_torch(bundle_path: Path, file: Path) -> None:
    """Save the network of a bundle, and its heads' scales and biases, as torch does."""
    import torch

    from ovr.cli.explain import _model
    from ovr.core.bundle import open_bundle

    bundle = open_bundle(bundle_path)
    model = _model(bundle, list(bundle.taxonomy.ids), [])
    scale, bias = (torch.tensor([getattr(head.calibration, name) for head in bundle.heads]) for name in ("scale", "bias"))
    torch.save({"model": model, "scale": scale, "bias": bias, "encoder": bundle.input.encoder}, file)


def save_sklearn(found: Set, file: Path) -> None:
    """Fit and pickle scikit-learn's one-vs-rest model; numbers as a flat row."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler

    first = TfidfVectorizer() if isinstance(found.rows, list) else MinMaxScaler()
    some = np.random.default_rng(0).permutation(len(found.column_N))[:4000]
    rows = [found.rows[n] for n in some] if isinstance(found.rows, list) else found.rows[some].reshape(len(some), -1)
    classifier = OneVsRestClassifier(LogisticRegression(max_iter=100, tol=1e-2))
    file.write_bytes(pickle.dumps(make_pipeline(first, classifier).fit(rows, found.column_N[some])))


def start(subject: str, path: Path, rows: Path, calls: int, found: dict[str, Found]) -> None:
    """Start one process, and add what it shows."""
    kind = subject if subject in PREDICT else "ours"
    command = [sys.executable, "-c", CHILD, IMPORTS[kind], PREDICT[kind], str(path), str(rows), str(calls)]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        cold_s = time.perf_counter() - began
        answer = process.stdout.readline()
    if process.returncode:
        raise RuntimeError(f"{subject} ended with status {process.returncode}")
    told = json.loads(answer)
    entry = found.setdefault(subject, Found([], [], [], [], np.array(told["first"])))
    entry.cold_s.append(cold_s)
    entry.import_s.append(told["import"])
    entry.call_s += told["times"]
    entry.peak_mib.append(told["peak"])


def of_set(name: str, found_set: Set, folder: Path, *, turns: int, calls: int) -> Iterator[Row]:
    """Yield the figures of one set."""
    ovr("train", *found_set.train, f"hydra.run.dir={folder / 'run'}", "report=false")
    bundle = folder / "run" / "bundle"
    paths, cards = {}, {}
    for precision in PRECISIONS:
        gate = [] if precision == "fp32" else found_set.gate
        out = folder / precision
        ovr("export", f"bundle={bundle}", f"out={out}", "target=edge", f"precision={precision}", *gate)
        paths[precision], cards[precision] = out, json.loads((out / "card.json").read_bytes())
    paths |= {"torch eager": folder / "model.pt", "scikit-learn OvR": folder / "model.pickle"}
    save_torch(bundle, paths["torch eager"])
    save_sklearn(found_set, paths["scikit-learn OvR"])
    some = np.random.default_rng(1).permutation(len(found_set.column_N))[:200]
    if isinstance(found_set.rows, list):
        rows = folder / "rows.json"
        rows.write_text(json.dumps([found_set.rows[n] for n in some]))
    else:
        rows = folder / "rows.npy"
        shape = json.loads((bundle / "manifest.json").read_bytes())["input"]["shape"]
        np.save(rows, found_set.rows[some].reshape(len(some), *shape))
    found: dict[str, Found] = {}
    for turn in range(turns):
        for subject in list(paths)[:: -1 if turn % 2 else 1]:
            start(subject, paths[subject], rows, calls, found)
    worst = float(np.abs(found["torch eager"].first_K - found["fp32"].first_K).max())
    if worst > SAME:
        raise RuntimeError(f"{name}: torch eager gives a probability that differs by {worst:.1e} from ours")
    num_heads = cards["fp32"]["num_classes"]
    sizes = {subject: size_bytes(path) / 2**20 for subject, path in paths.items()}
    measures: dict[str, tuple[str, Callable[[str], float]]] = {
        "size": ("MiB", lambda s: sizes[s]),
        "cold start": ("s", lambda s: statistics.median(found[s].cold_s)),
        "import": ("s", lambda s: statistics.median(found[s].import_s)),
        "p50 of one row": ("ms", lambda s: 1e3 * float(np.quantile(found[s].call_s, 0.5))),
        "p99 of one row": ("ms", lambda s: 1e3 * float(np.quantile(found[s].call_s, 0.99))),
        "peak memory": ("MiB", lambda s: statistics.median(found[s].peak_mib)),
    }
    for what, (unit, value) in measures.items():
        for ours, against in (
            ("fp32", "torch eager"),
            ("fp32", "scikit-learn OvR"),
            ("fp16", "fp32"),
            ("int8", "fp32"),
        ):
            a, b = value(ours), value(against)
            yield Row(f"{name}: {what}, {ours}", against, num_heads, a, b, unit, b / a)
    for precision in PRECISIONS[1:]:
        yield from of_gate(f"{name}: {precision}", num_heads, cards[precision])


def of_gate(what: str, num_heads: int, card: dict[str, Any]) -> Iterator[Row]:
    """Yield what the gate found, of the head that lost most."""
    heads = card["gate"]["heads"]
    kept = card["precision"]["num_heads"].get("fp32", 0)
    num_rows = card["gate"]["data"]["num_rows"]
    note = f"backbone {card['precision']['backbone']}, {kept} of {num_heads} heads in fp32, on {num_rows} rows"
    for state in ("without_refit", "final"):
        rise = max(head["ece_upper"][state] - head["ece_upper"]["fp32"] for head in heads)
        fall = max((head["average_precision"]["fp32"] or 0) - (head["average_precision"][state] or 0) for head in heads)
        refit = "without refit" if state == "without_refit" else "as written"
        yield Row(f"{what}: rise of the ECE bound, {refit}", "fp32", num_heads, rise, None, "share", None, note)
        yield Row(f"{what}: fall of AP, {refit}", "fp32", num_heads, fall, None, "share", None, note)
    changed = card["gate"]["num_rows_decided_otherwise"]
    yield Row(f"{what}: rows decided otherwise", "fp32", num_heads, changed, None, "rows", None, note)


def size_bytes(path: Path) -> int:
    """Return the bytes of a file, or of the model in an export."""
    return (path / "model.onnx" if path.is_dir() else path).stat().st_size


def measure(quick: bool) -> Iterator[Row]:
    """Yield all rows."""
    given = os.environ.get("OVR_REFERENCE_DATA")
    data = Path(given).absolute() if given else None
    for name, (needed, load) in SETS.items():
        if needed and (quick or data is None or not (data / needed).exists()):
            if not quick:
                print(f"skipped: OVR_REFERENCE_DATA names no folder with {needed}")
            continue
        with tempfile.TemporaryDirectory() as folder:
            yield from of_set(name, load(data, quick), Path(folder), turns=1 if quick else 7, calls=50 if quick else 1000)


if __name__ == "__main__":
    main(measure, __doc__ or "")
