import numpy as np
import pytest

from ovr.core.taxonomy import Taxonomy
from ovr.data.label_cells import LabelRule, labels_of
from ovr.errors import DataError

SETTINGS = {
    "many": True,
    "separator": None,
    "names_file": None,
    "no_class": [],
    "no_label": "refuse",
    "outside": "refuse",
    "hierarchy": "/",
    "add_parents": False,
}
ABC = Taxonomy.from_ids(["a", "b", "c"])


def rule(**changes):
    return LabelRule(**{**SETTINGS, **changes})


def labels(ids, **changes):
    return labels_of(ids, ABC, rule(**changes), lambda number: f"file, line {number + 2}")


@pytest.mark.parametrize(
    ("cell", "changes", "expected"),
    [
        (["b", "a", "b", " a "], {}, ("b", "a")),
        ([], {}, ()),
        (["", " "], {}, ()),
        ("a,b", {}, ("a,b",)),
        ("a, b,,", {"separator": ","}, ("a", "b")),
        ("a b", {"separator": " "}, ("a", "b")),
        (7, {}, ("7",)),
        ([1, 2], {}, ("1", "2")),
        ("", {}, None),
        (' ["b", "a, c"] ', {}, ("b", "a, c")),
        ("[]", {}, ()),
        ('["a"]', {"separator": ";"}, ('["a"]',)),
        ("[oos]", {"many": False}, ("[oos]",)),
        ("", {"separator": ","}, None),
        (None, {}, None),
        (" a ", {"many": False}, ("a",)),
        (["a"], {"many": False}, ("a",)),
        (None, {"many": False}, None),
        ([], {"many": False}, None),
        ("oos", {"many": False, "no_class": ["oos"]}, ()),
        (["oos", "a"], {"no_class": ["oos"]}, ("a",)),
        (["x/y/z", "x/w"], {"add_parents": True}, ("x", "x/y", "x/y/z", "x/w")),
    ],
)
def test_cells_become_class_ids(cell, changes, expected):
    assert rule(**changes).ids(cell, "here") == expected


@pytest.mark.parametrize(
    ("cell", "changes", "message"),
    [
        (["a", "b"], {"many": False}, r"here has 2 labels, 'a', 'b'; for many a row set data\.source\.rule\.many=true"),
        (1.5, {}, r"here has the label 1\.5; expected a text or a whole number"),
        (True, {}, "here has the label True; expected a text"),
        ([["a"]], {}, r"here has the label \['a'\]; expected a text"),
        ({"a": 1}, {}, "here has the label {'a': 1}; expected a text"),
    ],
)
def test_cells_that_hold_no_labels_are_named(cell, changes, message):
    with pytest.raises(DataError, match=message):
        rule(**changes).ids(cell, "here")


def test_a_json_list_in_a_text_is_never_one_class():
    with pytest.raises(DataError, match=r"line 2 has a JSON list of labels, '\[\"a\"\]'; for many a row set .*many=true"):
        rule(many=False).ids('["a"]', "file, line 2")
    with pytest.raises(DataError, match=r"line 2 has the label '\[a, b\]', which is no JSON list, .* set .*separator"):
        rule().ids("[a, b]", "file, line 2")


def test_numbers_can_stand_for_names(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("\ufeffjoy\n no thanks \n\n", encoding="utf-8")
    named = rule(names_file=str(path), separator=",", no_class=["no thanks"])
    assert named.names == ("joy", "no thanks")
    assert [named.ids(cell, "here") for cell in ("0", "1", "0,1", 0)] == [("joy",), (), ("joy",), ("joy",)]
    for cell in ("2", "-1", "joy", "²"):
        with pytest.raises(DataError, match=rf"here has the label '{cell}'; expected a number from 0 to 1, with a name each"):
            named.ids(cell, "here")


@pytest.mark.parametrize(
    ("text", "message"),
    [("", r"labels\.txt is empty; expected one name"), ("a\n\nb\n", "line 2, holds ''"), ("a\nb\na\n", "line 3, holds 'a'")],
)
def test_names_that_are_none_are_refused(tmp_path, text, message):
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        rule(names_file=str(tmp_path / "labels.txt"))
    with pytest.raises(DataError, match="cannot be read as names: No such file"):
        rule(names_file=str(tmp_path / "gone.txt"))


def test_labels_are_those_of_the_rows():
    found = labels([("b", "a"), (), ("c",)])
    assert found.kept.tolist() == [0, 1, 2]
    target_NK, mask_NK = found.labels.dense()
    np.testing.assert_array_equal(target_NK, [[1, 1, 0], [0, 0, 0], [0, 0, 1]])
    assert mask_NK.all()


def test_a_row_without_a_label_is_what_the_rule_says():
    rows = [("a",), None, ("c",), None]
    with pytest.raises(
        DataError, match=r"file, line 3 has no label, nor have 1 more; set data\.source\.rule\.no_label to negative"
    ):
        labels(rows)
    negative, unknown, left_out = (labels(rows, no_label=value) for value in ("negative", "unknown", "leave_out"))
    target_NK, mask_NK = negative.labels.dense()
    np.testing.assert_array_equal(target_NK, [[1, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0]])
    assert mask_NK.all()
    np.testing.assert_array_equal(unknown.labels.dense()[0], target_NK)
    np.testing.assert_array_equal(unknown.labels.dense()[1].all(axis=1), [True, False, True, False])
    assert not unknown.labels.dense()[1][1].any()
    assert left_out.kept.tolist() == [0, 2]
    np.testing.assert_array_equal(left_out.labels.dense()[0], target_NK[[0, 2]])


def test_a_label_outside_the_taxonomy_is_what_the_rule_says():
    rows = [("a",), ("z", "b"), ("y",)]
    with pytest.raises(DataError, match=r"file, line 3: labels outside the taxonomy of 3 classes: 'y', 'z' in 2 places; add them"):
        labels(rows)
    np.testing.assert_array_equal(labels(rows, outside="ignore").labels.dense()[0], [[1, 0, 0], [0, 1, 0], [0, 0, 0]])
    assert labels(rows, outside="leave_out").kept.tolist() == [0]
    with pytest.raises(DataError, match="file, line 2 and the 0 rows after it are all left out"):
        labels([("z",)], outside="leave_out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"no_label": "drop"}, r"rule\.no_label is 'drop'; expected one of refuse, negative, unknown, leave_out"),
        ({"outside": "drop"}, r"rule\.outside is 'drop'; expected one of refuse, ignore, leave_out"),
        ({"separator": ""}, "separator and hierarchy need one or more characters"),
        ({"separator": ",", "many": False}, r"rule\.separator=',' is for rows with many labels; add data\.source\.rule\.many=true"),
        ({"add_parents": True, "many": False}, "it needs many=true and a hierarchy separator"),
        ({"add_parents": True, "hierarchy": None}, "it needs many=true and a hierarchy separator"),
        ({"no_class": "oos"}, r"rule\.no_class is 'oos'; expected a list, such as \[oos\]"),
    ],
)
def test_settings_that_contradict_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        rule(**changes)


def test_paths_have_parents_in_the_taxonomy():
    assert [spec.parent for spec in rule().taxonomy(["a/b/c", "d"])] == ["a/b", ""]
    assert rule(add_parents=True).taxonomy(["a/b/c"]).ids == ("a", "a/b", "a/b/c")
    assert rule(hierarchy=None).taxonomy(["a/b"])[0].parent == ""
