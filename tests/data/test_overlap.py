import logging

import numpy as np
import pytest

from ovr.data.overlap import CALIB_ROWS, CALIBRATION, TRAIN_ROWS, TRAINING, Overlap, check_overlap, read_digests, rows_of_step
from ovr.errors import ArtifactError, ConfigError, DataError


def overlap(numbers, num_rows=40, kind=TRAINING):
    return Overlap(kind, np.array(numbers, np.int64), num_rows)


def test_too_many_rows_are_refused_with_their_number_and_the_first_of_them(caplog):
    evens, numbers = overlap(range(0, 20, 2)), np.arange(40) + 100
    with pytest.raises(
        DataError, match=r"10 of 40 rows \(25\.00%\) of new\.csv .* row 100, 102, 104, 106, 108, \.\.\. .*max_overlap=0\.25"
    ):
        check_overlap([evens], max_overlap=0.2, purpose="measured", row_numbers=numbers, source="new.csv")
    with caplog.at_level(logging.WARNING):
        check_overlap([evens], max_overlap=0.25, purpose="measured")
        check_overlap([overlap([])], max_overlap=0, purpose="measured")
        check_overlap([], max_overlap=0, purpose="measured")
    assert [record.message.startswith("10 of 40 rows") for record in caplog.records] == [True]


def test_training_and_calibration_rows_are_told_apart_and_count_once(caplog):
    both = [overlap([1, 2, 3]), overlap([3, 7], kind=CALIBRATION)]
    check_overlap(both, max_overlap=0.1, purpose="measured")
    told = (
        "3 of 40 rows (7.50%) of the rows are also training rows of the model: row 1, 2, 3; 2 of 40 rows (5.00%) of the rows are "
        "also calibration rows of the model: row 3, 7"
    )
    assert [record.message for record in caplog.records] == [told]
    with pytest.raises(DataError, match=r"row 3, 7 \(counted from 0\).*not to be measured: .*max_overlap=0\.1 allows them"):
        check_overlap(both, max_overlap=0.09, purpose="measured")


@pytest.mark.parametrize("limit", [-0.1, 1.1, True, "none"])
def test_the_limit_is_a_share(limit):
    with pytest.raises(ConfigError, match="max_overlap must be a share"):
        check_overlap([], max_overlap=limit, purpose="measured")


@pytest.mark.parametrize(("kind", "name"), [(TRAINING, TRAIN_ROWS), (CALIBRATION, CALIB_ROWS)])
def test_a_bundle_without_digests_is_told_of_and_damaged_ones_are_refused(tmp_path, caplog, kind, name):
    with caplog.at_level(logging.WARNING):
        assert read_digests(tmp_path, kind) is None
    assert f"has no digests of its {kind} rows ({name})" in caplog.text
    file = tmp_path / name
    file.parent.mkdir()
    file.write_bytes(b"no array")
    with pytest.raises(ArtifactError, match=rf"{file.name} cannot be read"):
        read_digests(tmp_path, kind)
    np.save(file, np.zeros((2, 2)))
    with pytest.raises(ArtifactError, match=r"holds float64 \(2, 2\); expected digests, uint64 \(rows,\)"):
        read_digests(tmp_path, kind)
    np.save(file, np.arange(3, dtype=np.uint64))
    assert read_digests(tmp_path, kind).tolist() == [0, 1, 2]


def test_the_rows_of_later_steps_count_too(tmp_path, caplog):
    (tmp_path / "data").mkdir()
    for step, values in ((2, [5, 9]), (10, [1, 5])):
        np.save(tmp_path / rows_of_step(CALIBRATION, step), np.array(values, np.uint64))
    assert read_digests(tmp_path, CALIBRATION).tolist() == [1, 5, 9]
    assert "has no digests of its calibration rows" in caplog.text  # those of training, which are not known
    np.save(tmp_path / CALIB_ROWS, np.array([0], np.uint64))
    caplog.clear()
    assert read_digests(tmp_path, CALIBRATION).tolist() == [0, 1, 5, 9]
    assert not caplog.records
