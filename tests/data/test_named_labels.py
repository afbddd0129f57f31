import json

import numpy as np
import pytest

from ovr.core.taxonomy import Taxonomy
from ovr.data.named_labels import LabelReader, labels_of_array, labels_of_lines
from ovr.errors import DataError


def of_array(array, classes=(), label_numbers="ids"):
    return labels_of_array(np.asarray(array), classes=classes, label_numbers=label_numbers, where="y.npy")


def target(named, classes=()):
    return named.of(named.taxonomy(classes)).dense()


def test_numbers_are_ids_that_are_sorted_as_numbers():
    named = of_array([10, 2, 10, 7])
    assert named.taxonomy(()).ids == ("2", "7", "10")
    np.testing.assert_array_equal(target(named)[0].argmax(axis=1), [2, 0, 2, 1])
    assert named.taxonomy(["10", "7", "2"]).ids == ("10", "7", "2")
    np.testing.assert_array_equal(target(named, ["10", "7", "2"])[0].argmax(axis=1), [0, 2, 0, 1])


def test_numbers_may_be_columns_of_the_classes():
    named = of_array([1, 0, 1], classes=["b", "a"], label_numbers="columns")
    assert (named.taxonomy(["b", "a"]).ids, named.ids) == (("b", "a"), ("b", "a"))
    np.testing.assert_array_equal(target(named, ["b", "a"])[0].argmax(axis=1), [1, 0, 1])
    with pytest.raises(DataError, match=r"y\.npy, row 1 has label 2; expected a column of the 2 classes in .*, 0 to 1$"):
        of_array([1, 2], classes=["b", "a"], label_numbers="columns")
    with pytest.raises(DataError, match="which are not given"):
        of_array([1, 2], label_numbers="columns")


def test_texts_are_ids_and_paths_have_parents():
    named = of_array(["x/b", "x", "x/b"])
    assert [(spec.id, spec.parent) for spec in named.taxonomy(())] == [("x", ""), ("x/b", "x")]
    with pytest.raises(DataError, match=r"y\.npy, row 1: the label is empty"):
        of_array(["a", ""])


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_a_matrix_has_a_column_a_class(rng, dtype, monkeypatch):
    monkeypatch.setattr("ovr.data.named_labels.BLOCK_ROWS", 7)
    expected = rng.random((40, 12)) < 0.2
    named = of_array(expected.astype(dtype))
    assert named.taxonomy(()).ids == tuple(map(str, range(12)))
    np.testing.assert_array_equal(target(named)[0], expected)
    assert target(named)[1].all()
    ids = [f"c{k}" for k in range(12)]
    np.testing.assert_array_equal(target(of_array(expected.astype(dtype), ids), ids)[0], expected)


def test_minus_one_in_a_matrix_is_unknown():
    targets, mask = target(of_array([[1, -1], [0, 1]]))
    assert (targets.tolist(), mask.tolist()) == ([[True, False], [False, True]], [[True, False], [True, True]])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        ([[0, 2]], r"y\.npy, row 0, column 1 holds 2; expected 0, 1 or -1"),
        ([[0.0, np.nan]], "row 0, column 1 holds nan"),
        ([["a"]], "is a matrix of dtype <U1"),
        ([0.5], r"labels of shape \(1,\) and dtype float64; expected \(rows,\) of whole numbers or texts"),
        ([[[1]]], r"labels of shape \(1, 1, 1\)"),
    ],
)
def test_arrays_of_something_else_are_refused(array, message):
    with pytest.raises(DataError, match=message):
        of_array(array)


def test_a_matrix_of_other_classes_is_refused():
    with pytest.raises(DataError, match=r"has 2 columns of labels; data\.source\.classes names 3"):
        of_array([[0, 1]], ["a", "b", "c"])


def test_lines_are_lists_of_ids(tmp_path):
    lists = [["b", "a"], [], ["c"], ["a"]]
    (tmp_path / "y.jsonl").write_text("\n".join(map(json.dumps, lists)), encoding="utf-8-sig")
    named = labels_of_lines(tmp_path / "y.jsonl")
    assert (len(named), named.taxonomy(()).ids) == (4, ("a", "b", "c"))
    np.testing.assert_array_equal(target(named)[0], [[c in row for c in "abc"] for row in lists])
    np.testing.assert_array_equal(named.take(np.array([3, 0])).of(Taxonomy.from_ids("abc")).dense()[0], [[1, 0, 0], [1, 1, 0]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('["a"]\n"b"\n', "row 1: '\"b\"' is no JSON list of labels"),
        ('["a"\n', "row 0: .* is no JSON list"),
        ('["a"]\n["b", null]', "row 1: a label is missing or is neither text nor a whole number"),
        ('["a"]\n[true]', "row 1: a label is missing or is neither"),
        ('["a"]\n["b", "a", "b"]', "row 1: label 'b' is there twice"),
        ('["a"]\n[1]', "holds texts and numbers as labels; expected one kind"),
        ("[]\n[]", "holds no label"),
    ],
)
def test_lines_of_something_else_are_refused(tmp_path, text, message):
    (tmp_path / "y.jsonl").write_text(text)
    with pytest.raises(DataError, match=rf"y\.jsonl(, )?.*{message}"):
        labels_of_lines(tmp_path / "y.jsonl")


def test_a_file_of_lines_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl cannot be read as JSON lines: No such file"):
        labels_of_lines(tmp_path / "none.jsonl")
    (tmp_path / "y.jsonl").write_bytes(b'["\xe9"]')
    with pytest.raises(DataError, match="cannot be read as JSON lines: 'utf-8' codec"):
        labels_of_lines(tmp_path / "y.jsonl")


def test_labels_outside_the_taxonomy_are_named_with_the_first_row():
    with pytest.raises(DataError, match=r"y\.npy, row 1: labels outside the taxonomy of 2 classes: 'c', 'd'"):
        of_array(["a", "d", "c"]).of(Taxonomy.from_ids("ab"))


def test_labels_given_by_number_are_those_values():
    reader = LabelReader("y")
    reader.add(["a", "b"], [1, 2], np.array([1, 0, 1]))
    reader.add(["b"], [0, 1])
    np.testing.assert_array_equal(target(reader.result())[0], [[0, 1], [1, 1], [0, 0], [0, 1]])
    with pytest.raises(DataError, match="y, row 5: a label is missing"):
        reader.add(["a"], [1, 1], np.array([0, -1]))
