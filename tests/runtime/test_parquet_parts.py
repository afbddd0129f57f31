"""Parts of a Parquet file have their final places from the first, and together are the file that one writer makes."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ovr.core.artifact import DecisionPolicy, ModelCard
from ovr.core.prediction import Prediction
from ovr.core.schema import InputSchema
from ovr.core.taxonomy import ClassSpec, Taxonomy
from ovr.decision.decide import decide
from ovr.runtime.batch.answers import Answers, Rows
from ovr.runtime.batch.parquet_parts import MAGIC, RowGroups, whole_footer

IDS = ("a.b", "prob:c", "ñ")


def answers(mode="argmax", **more):
    card = ModelCard(
        taxonomy=Taxonomy([ClassSpec(IDS[0], name="Alpha"), ClassSpec(IDS[1]), ClassSpec(IDS[2])]),
        head_versions=(1, 1, 1),
        thresholds=(0.5, 0.5, 0.6),
        policy=DecisionPolicy(mode=mode, abstain_below=0.7),
        input=InputSchema((1,)),
        backbone_sha256="0" * 64,
        bundle_sha256="1" * 64,
    )
    return Answers(".parquet", card, **more)


def batch(made, first, prob_BK, kept_B=None):
    kept_B = np.ones(len(prob_BK), bool) if kept_B is None else kept_B
    card, kept_BK = made.card, prob_BK[kept_B]
    decision = decide(kept_BK, threshold_K=card.thresholds, policy=card.policy) if len(kept_BK) else None
    prediction = None if decision is None else Prediction(card, kept_BK, decision)
    return made.write(Rows(np.arange(first, first + len(prob_BK)), kept_B, prediction))


def part(file, made, batches):
    groups = RowGroups(file, file.tell(), made)
    for each in batches:
        groups.write(each)
    return groups.finish()


@pytest.mark.parametrize("mode", ["argmax", "multilabel"])
def test_parts_are_one_file_of_the_rows_of_all(rng, monkeypatch, mode):
    monkeypatch.setattr("ovr.runtime.batch.parquet_parts.ROW_GROUP_BYTES", (500, 500))
    monkeypatch.setattr("ovr.runtime.batch.parquet_parts.COLUMN_BYTES", 1)
    made, file = answers(mode), io.BytesIO()
    prob_BK = rng.random((90, 3)).astype(np.float32)
    batches = [batch(made, first, prob_BK[first : first + 10]) for first in range(0, 90, 10)]
    footers = [part(file, made, batches[start : start + 3]) for start in (0, 3, 6)]
    file.write(whole_footer(footers))
    read = pq.ParquetFile(io.BytesIO(file.getvalue()))
    assert read.metadata.num_row_groups == 6
    assert read.metadata.metadata[b"ovr.bundle_sha256"] == b"1" * 64
    table = read.read()
    assert table["row"].to_pylist() == [*range(90)]
    for k, class_id in enumerate(IDS):
        np.testing.assert_array_equal(table[f"prob:{class_id}"], prob_BK[:, k])
    decision = decide(prob_BK, threshold_K=made.card.thresholds, policy=made.card.policy)
    sets = [[IDS[k] for k in np.flatnonzero(row)] for row in decision.label_BK]
    assert set(decision.abstained_B.tolist()) == {False, True}
    single = mode == "argmax"
    assert table["label" if single else "labels"].to_pylist() == ([next(iter(ids), None) for ids in sets] if single else sets)
    assert table.schema.field("label" if single else "labels").type == (pa.string() if single else pa.list_(pa.string()))
    assert [table.schema.field(f"prob:{class_id}").nullable for class_id in IDS] == [False] * 3


def test_rows_without_a_prediction_are_null_in_all_but_their_number(rng):
    made, file = answers(with_empty=True), io.BytesIO()
    prob_BK, kept_B = rng.random((8, 3)).astype(np.float32), np.arange(8) % 3 > 0
    batches = [batch(made, 0, prob_BK, kept_B), batch(made, 8, prob_BK, np.zeros(8, bool))]
    file.write(whole_footer([part(file, made, batches)]))
    rows = pq.read_table(io.BytesIO(file.getvalue())).to_pylist()
    assert [row["prob:ñ"] for row in rows] == [*np.where(kept_B, prob_BK[:, 2], None).tolist(), *[None] * 8]
    assert {value for row in rows[8:] for name, value in row.items() if name != "row"} == {None}


def test_a_part_knows_its_place_behind_more_bytes_than_fit_the_memory(rng):
    made, file, start = answers(), io.BytesIO(), 5 << 40
    groups = RowGroups(file, start, made)
    groups.write(batch(made, 0, rng.random((8, 3)).astype(np.float32)))
    footer = groups.finish()
    assert not file.getvalue().startswith(MAGIC)
    group = pq.read_metadata(pa.BufferReader(MAGIC + footer)).row_group(0)
    places = [group.column(c).dictionary_page_offset or group.column(c).data_page_offset for c in range(group.num_columns)]
    sizes = [group.column(c).total_compressed_size for c in range(group.num_columns)]
    assert places == (start + np.cumsum([0, *sizes[:-1]])).tolist()
    assert len(file.getvalue()) == sum(sizes)


def test_a_part_that_is_given_up_writes_nothing_more(rng):
    made, file = answers(), io.BytesIO()
    groups = RowGroups(file, 0, made)
    groups.write(batch(made, 0, rng.random((8, 3)).astype(np.float32)))
    groups.abort()
    assert file.getvalue() == MAGIC
