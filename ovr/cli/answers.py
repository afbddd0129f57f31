"""Predictions as text, a line a row: CSV or JSON lines. Knows nothing of where they came from."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from itertools import count
from typing import IO

from ovr.core.artifact import ModelCard
from ovr.core.outcomes import OUTPUTS, PER_CLASS
from ovr.core.prediction import Prediction

FORMATS = (".csv", ".jsonl", ".ndjson")


def writer(
    ending: str,
    file: IO[bytes],
    card: ModelCard,
    *,
    probabilities: bool,
    outputs: Sequence[str] = (),
    files: Sequence[str] | None = None,
) -> Callable[[Prediction], None]:
    """Return the function that appends the rows of a prediction to `file`, UTF-8; row numbers go on from call to call.

    jsonl: row, labels, names, abstained, top (class, prob), and prob by class id. csv: row, label and name (of argmax; empty where
    it abstained) or labels and names (of multilabel; JSON arrays, as ids may hold any character), abstained, confidence (the
    highest probability), and a column `prob:<class id>` for each class.

    Args:
        ending: one of `FORMATS`.
        probabilities: whether every class's probability is written.
        outputs: names of `ovr.core.outcomes.OUTPUTS` to write too, in csv a column each, or `<name>:<class id>` for each class.
        files: the file that each row is, if any, which is then written after its number.
    """
    make = _csv_writer if ending == ".csv" else _jsonl_writer
    return make(file, card, probabilities, outputs, files)


def _jsonl_writer(
    file: IO[bytes], card: ModelCard, probabilities: bool, outputs: Sequence[str], files: Sequence[str] | None
) -> Callable[[Prediction], None]:
    rows = count()
    name = {spec.id: spec.name for spec in card.taxonomy}

    def write(prediction: Prediction) -> None:
        for record in prediction.records(outputs):
            if not probabilities:
                del record["prob"]
            labels = record.pop("labels")
            row = next(rows)
            own = {} if files is None else {"file": files[row]}
            line = {"row": row, **own, "labels": labels, "names": [name[class_id] for class_id in labels], **record}
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")

    return write


def _csv_writer(
    file: IO[bytes], card: ModelCard, probabilities: bool, outputs: Sequence[str], files: Sequence[str] | None
) -> Callable[[Prediction], None]:
    rows = count()
    name = {spec.id: spec.name for spec in card.taxonomy}
    single = card.policy.mode == "argmax"
    columns = [
        "row",
        *([] if files is None else ["file"]),
        *(["label", "name"] if single else ["labels", "names"]),
        "abstained",
        "confidence",
    ]
    columns += [output for output in outputs if output not in PER_CLASS]
    per_class = [*(["prob"] if probabilities else []), *(output for output in outputs if output in PER_CLASS)]
    columns += [f"{output}:{class_id}" for output in per_class for class_id in card.taxonomy.ids]

    def append(lines: list[list[object]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        file.write(text.getvalue().encode())

    def write(prediction: Prediction) -> None:
        lines: list[list[object]] = []
        values = {output: OUTPUTS[output](prediction.prob_BK).tolist() for output in outputs}
        for n, (labels, abstained, prob_K) in enumerate(
            zip(prediction.labels(), prediction.decision.abstained_B.tolist(), prediction.prob_BK.tolist(), strict=True)
        ):
            names = [name[class_id] for class_id in labels]
            if single:
                cells = [labels[0], names[0]] if labels else ["", ""]
            else:
                cells = [json.dumps(labels, ensure_ascii=False), json.dumps(names, ensure_ascii=False)]
            shown = [values[output][n] for output in outputs if output not in PER_CLASS]
            for output in per_class:
                shown += prob_K if output == "prob" else values[output][n]
            row = next(rows)
            own = [] if files is None else [files[row]]
            lines.append([row, *own, *cells, str(abstained).lower(), max(prob_K), *shown])
        append(lines)

    append([list(columns)])
    return write
