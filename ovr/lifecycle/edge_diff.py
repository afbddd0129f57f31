"""`ovr edge diff`: the patch from one edge export to another, and which classes it changes. Needs no torch.

B = rows, K = heads
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.artifact import ModelCard
from ovr.core.files import write_file
from ovr.edge.matches import copies
from ovr.edge.patch_file import patch_bytes, read_patch
from ovr.errors import ArtifactError
from ovr.runtime.edge_files import checked_model, export_files
from ovr.runtime.edge_signatures import PATCH_KIND, sign
from ovr.runtime.predictor import EdgePredictor

NUM_ROWS = 16
Change = tuple[str, str, str, str]  # class, what of it, old, new


@dataclass(frozen=True, slots=True)
class Written:
    """A patch that was written."""

    size_bytes: int
    model: str  # the name of the new model's file
    model_bytes: int
    whole: tuple[str, ...]  # files that it holds whole, as they have nothing in common with the base
    changes: tuple[Change, ...]


def write_patch(old: Path, new: Path, out: Path, *, key: Path | None = None, password: bytes | None = None) -> Written:
    """Write the patch that makes the edge export `old` what `new` is, byte for byte, which was tried before it is written.

    Args:
        key: private EC key (PEM) that signs the patch, with its password.

    Raises:
        ArtifactError: either is no edge export, holds other files too, or was changed; both are the same; `out` exists, or lies
            within one of them.
        ConfigError: the key cannot be used, or cryptography is not installed.
    """
    if out.exists():
        raise ArtifactError(f"{out} exists already; choose another file")
    for directory in (old, new):
        if out.resolve().is_relative_to(directory.resolve()):
            raise ArtifactError(f"{out} is within {directory}, which would be no edge export with it; choose a place outside of it")
    base, target = ({name: file.read_bytes() for name, file in export_files(directory).items()} for directory in (old, new))
    model = checked_model(new)
    checked_model(old)
    if base == target:
        raise ArtifactError(f"{old} and {new} are the same, byte for byte; there is nothing to patch")
    data = patch_bytes(base, target, copies, None if key is None else partial(_signed, key=key, password=password))
    changes = tuple(_changes(old, new))
    write_file(out, data)
    with out.open("rb") as file:
        parts = read_patch(file, str(out)).parts
    return Written(len(data), model.name, len(target[model.name]), tuple(part.name for part in parts if part.is_whole), changes)


def _signed(digest: str, *, key: Path, password: bytes | None) -> dict[str, str]:
    return sign(PATCH_KIND, digest, key, password)


def _changes(old: Path, new: Path) -> Iterator[Change]:
    """Yield what differs between two exports, class by class, and what differs of all.

    That a head answers otherwise is seen on a few rows that stand for nothing: values from 0 to 1, which every model of ovr takes.
    By how much is not told: on the model's own rows, of another range, it would be another number.
    """
    before, after = EdgePredictor(old), EdgePredictor(new)
    cards = before.card, after.card
    for class_id in [id_ for id_ in cards[0].taxonomy.ids if id_ not in cards[1].taxonomy.ids]:
        yield class_id, "retired", "", ""
    same_input = cards[0].input.shape == cards[1].input.shape
    prob_BK, new_prob_BK = (_answers(predictor) if same_input else None for predictor in (before, after))
    for column, spec in enumerate(cards[1].taxonomy):
        if spec.id not in cards[0].taxonomy.ids:
            yield spec.id, "added", "", ""
            continue
        was = cards[0].taxonomy.column(spec.id)
        for (what, one), other in zip(_of_class(cards[0], was).items(), _of_class(cards[1], column).values(), strict=True):
            if one != other:
                yield spec.id, what, str(one), str(other)
        if prob_BK is not None and new_prob_BK is not None and (prob_BK[:, was] != new_prob_BK[:, column]).any():
            yield spec.id, "answers", "", "differ"
    for what in ("backbone_sha256", "policy", "input", "cohorts"):
        one, other = (getattr(card, what) for card in cards)
        if one != other:
            yield "(all)", what.removesuffix("_sha256"), "", "another"


def _of_class(card: ModelCard, column: int) -> dict[str, Any]:
    said = {name: value for name, value in asdict(card.taxonomy[column]).items() if name != "id"}
    return {**said, "version": card.head_versions[column], "threshold": card.thresholds[column]}


def _answers(predictor: EdgePredictor) -> NDArray[np.float32]:
    rng, schema = np.random.default_rng(0), predictor.card.input
    row = np.linspace(0, 1, schema.size, dtype=np.float32)
    return predictor.predict_encoded(np.stack([rng.permutation(row) for _ in range(NUM_ROWS)]).reshape(NUM_ROWS, *schema.shape))
