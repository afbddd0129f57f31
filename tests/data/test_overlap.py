import logging

import numpy as np
import pytest

from ovr.data.leakage import row_digests
from ovr.data.overlap import TRAIN_ROWS, Overlap, check_overlap, find_overlap, read_train_rows
from ovr.errors import ArtifactError, ConfigError, DataError


def test_rows_that_were_trained_on_are_found_wherever_they_stand(rng):
    train, new = rng.normal(size=(50, 2, 3)).astype(np.float32), rng.normal(size=(20, 2, 3)).astype(np.float32)
    new[[3, 17]] = train[[40, 2]]
    train[40, 0, 0] = new[3, 0, 0] = 0.0
    new[3, 0, 0] = -0.0  # is 0
    overlap = find_overlap(new, np.unique(row_digests(train)))
    assert overlap.row_P.tolist() == [3, 17]
    assert overlap.share == 0.1


def test_too_many_rows_are_refused_with_their_number_and_the_first_of_them(caplog):
    overlap = Overlap(np.arange(0, 20, 2), 40)
    numbers = np.arange(40) + 100
    with pytest.raises(
        DataError, match=r"10 of 40 rows \(25\.00%\) of new\.csv .* row 100, 102, 104, 106, 108, \.\.\. .*max_overlap=0\.25"
    ):
        check_overlap(overlap, max_overlap=0.2, purpose="measured", row_numbers=numbers, source="new.csv")
    with caplog.at_level(logging.WARNING):
        check_overlap(overlap, max_overlap=0.25, purpose="measured")
        check_overlap(Overlap(np.zeros(0, np.int64), 40), max_overlap=0, purpose="measured")
    assert [record.message.startswith("10 of 40 rows") for record in caplog.records] == [True]


@pytest.mark.parametrize("limit", [-0.1, 1.1, True, "none"])
def test_the_limit_is_a_share(limit):
    with pytest.raises(ConfigError, match="max_overlap must be a share"):
        check_overlap(Overlap(np.zeros(0, np.int64), 1), max_overlap=limit, purpose="measured")


def test_a_bundle_without_digests_is_told_of_and_damaged_ones_are_refused(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert read_train_rows(tmp_path) is None
    assert "has no digests of its training rows" in caplog.text
    file = tmp_path / TRAIN_ROWS
    file.parent.mkdir()
    file.write_bytes(b"no array")
    with pytest.raises(ArtifactError, match=r"train_rows\.npy cannot be read"):
        read_train_rows(tmp_path)
    np.save(file, np.zeros((2, 2)))
    with pytest.raises(ArtifactError, match=r"holds float64 \(2, 2\); expected digests, uint64 \(rows,\)"):
        read_train_rows(tmp_path)
    np.save(file, np.arange(3, dtype=np.uint64))
    assert read_train_rows(tmp_path).tolist() == [0, 1, 2]
