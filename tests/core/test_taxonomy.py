"""Class ids of any kind, their columns and their names on disk."""

import json
import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovr.core.taxonomy import MAX_ID_CHARS, ClassSpec, Taxonomy, _look, ancestors, slug, with_parents
from ovr.errors import TaxonomyError

ODD_IDS = (
    "/",
    "..",
    ".",
    "train",
    "a b",
    "A",
    "a",
    "äöü 猫",
    "ﬁ",
    "c" * 300,
    "line\nbreak",
    "nul\0",
    'quo"te',
    "con",
    "-",
    " ",
    "’",
    "%00",
)
ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


@settings(max_examples=2000, deadline=None)
@given(ids)
def test_a_slug_is_a_safe_name(class_id):
    assert re.fullmatch(r"[a-z0-9_-]{1,53}", slug(class_id))
    assert slug(class_id) == slug(class_id)


@settings(max_examples=500, deadline=None)
@given(st.lists(ids, min_size=2, max_size=30, unique=True))
def test_different_ids_have_different_slugs_also_where_case_is_ignored(class_ids):
    assert len({slug(class_id).casefold() for class_id in class_ids}) == len(class_ids)


@settings(max_examples=500, deadline=None)
@given(ids)
def test_the_slug_of_a_slug_or_of_another_spelling_is_another(class_id):
    others = {class_id.upper(), class_id.lower(), unicodedata.normalize("NFD", class_id), class_id + " ", slug(class_id)} - {
        class_id
    }
    plain = re.fullmatch(r"[a-z0-9_]{1,40}", class_id)
    for other in others - {slug(class_id)} if plain else others:
        assert slug(other) != slug(class_id)


@pytest.mark.parametrize(
    ("class_id", "expected"),
    [
        ("cat", "cat"),
        ("t_shirt_2", "t_shirt_2"),
        ("a" * 40, "a" * 40),
        ("Cat", r"cat-\w{12}"),
        ("T-shirt/top", r"t_shirt_top-\w{12}"),
        ("..", r"class-\w{12}"),
        ("猫", r"class-\w{12}"),
        ("é", r"e-\w{12}"),
        ("a" * 41, r"a{40}-\w{12}"),
    ],
)
def test_a_slug_is_readable(class_id, expected):
    assert re.fullmatch(expected, slug(class_id))


def test_odd_ids_are_classes_like_others():
    taxonomy = Taxonomy.from_ids(ODD_IDS)
    assert taxonomy.ids == ODD_IDS
    assert [taxonomy.column(class_id) for class_id in ODD_IDS] == list(range(len(ODD_IDS)))
    assert len({slug(class_id) for class_id in ODD_IDS}) == len(ODD_IDS)


def test_a_taxonomy_is_a_sequence_of_its_classes():
    taxonomy = Taxonomy([ClassSpec("a", "An a", "team a", True, "b"), ClassSpec("b")])
    assert len(taxonomy) == 2
    assert taxonomy[0].owner == "team a"
    assert [spec.name for spec in taxonomy] == ["An a", "b"]
    assert repr(taxonomy) == "Taxonomy(['a', 'b'])"
    assert Taxonomy.from_json(taxonomy.to_json()) == taxonomy
    assert hash(Taxonomy.from_json(taxonomy.to_json())) == hash(taxonomy)
    assert taxonomy != Taxonomy(reversed(taxonomy.classes))


@pytest.mark.parametrize("large_k", [3, 4])
def test_costs_and_limits_of_classes_are_kept_and_take_no_place_where_there_are_none(monkeypatch, large_k):
    monkeypatch.setattr("ovr.core.scale.LARGE_K", large_k)
    plain = Taxonomy.from_ids(["a", "fraud", "c"])
    priced = plain.with_settings({"fraud": {"false_negative": 50, "max_ece": 0.01, "owner": "risk"}, "a": {"false_positive": 0.0}})
    assert priced[1] == ClassSpec("fraud", owner="risk", false_negative=50, max_ece=0.01)
    assert (priced[0].false_positive, priced[2]) == (0.0, ClassSpec("c"))
    for taxonomy in (plain, priced):
        assert Taxonomy.from_json(json.loads(json.dumps(taxonomy.to_json()))) == taxonomy
    assert not {"false_positive", "false_negative", "max_ece"} & set(str(plain.to_json()).replace("'", " ").split())
    before = [{"id": "a", "name": "A", "owner": "x", "critical": True, "parent": ""}]  # as it was written without them
    assert Taxonomy.from_json(before)[0] == ClassSpec("a", "A", "x", True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"frod": {}}, r"taxonomy of 2 classes does not have: 'frod' \(nearest: fraud\)"),
        (
            {"fraud": {"cost": 1}},
            r"class 'fraud' is set to {'cost': 1}; expected values of some of name, .*false_negative, max_ece",
        ),
        ({"fraud": 3}, "class 'fraud' is set to 3; expected"),
        ({"fraud": {"false_negative": -1}}, "cost of a false_negative of class 'fraud' is -1; expected a number of at least 0"),
        ({"fraud": {"false_positive": True}}, "cost of a false_positive of class 'fraud' is True"),
        ({"fraud": {"false_positive": 0, "false_negative": 0}}, "both costs of class 'fraud' are 0"),
        ({"fraud": {"max_ece": 0}}, "max_ece of class 'fraud' is 0; expected a number above 0 and at most 1"),
        ({"fraud": {"critical": "yes"}}, "critical of class 'fraud' is 'yes'; expected true or false"),
    ],
)
def test_settings_of_classes_that_mean_nothing_are_refused(given, message):
    with pytest.raises(TaxonomyError, match=message):
        Taxonomy.from_ids(["fraud", "b"]).with_settings(given)


@settings(deadline=None)
@given(st.lists(ids, min_size=1, max_size=10, unique_by=_look))
def test_json_gives_the_taxonomy_back(class_ids):
    taxonomy = Taxonomy.from_ids(class_ids)
    assert Taxonomy.from_json(taxonomy.to_json()) == taxonomy


def test_no_class_is_no_model():
    with pytest.raises(TaxonomyError, match="at least one class, got K = 0"):
        Taxonomy([])


@pytest.mark.parametrize(
    ("one", "other"),
    [("\u00e9", "e\u0301"), ("d9 ", "d9"), ("d9", "d9\u200b"), ("d9", "\uff449"), ("gr\u00fc n", "\u00a0gr\u00fc n")],
)
def test_ids_that_are_or_look_alike_are_refused(one, other):
    with pytest.raises(TaxonomyError, match=r"\(column 2\) is there twice"):
        Taxonomy.from_ids([one, "other", one])
    with pytest.raises(TaxonomyError, match=r"\(column 2\) looks like .* which is there too"):
        Taxonomy.from_ids([one, "other", other])


def test_ids_that_people_can_tell_apart_are_taken():
    ids = ["A", "a", "a b", "a  b", "b a", "1", "1.0", "\u00e4", "a\u0308\u0308"]
    assert Taxonomy.from_ids(ids).ids == tuple(ids)


def test_an_unknown_class_is_named_with_those_there_are():
    with pytest.raises(TaxonomyError, match=r"class 'x' is not in the taxonomy; its 2 classes are 'a', 'b'$"):
        Taxonomy.from_ids("ab").column("x")
    with pytest.raises(TaxonomyError, match=r"its 12 classes are 'a', .*'j', \.\.\."):
        Taxonomy.from_ids("abcdefghijkl").column("x")


@pytest.mark.parametrize("wrong", [1, None, True, 1.5, b"a"])
def test_an_id_is_text(wrong):
    with pytest.raises(TaxonomyError, match=r"a class id is text, got .*; quote it"):
        ClassSpec(wrong)


@pytest.mark.parametrize("wrong", ["", "x" * (MAX_ID_CHARS + 1)])
def test_an_id_has_a_length(wrong):
    with pytest.raises(TaxonomyError, match=f"1 to {MAX_ID_CHARS} characters, got {len(wrong)}"):
        ClassSpec(wrong)


def test_text_that_no_file_can_hold_is_refused():
    with pytest.raises(TaxonomyError, match="not valid Unicode"):
        ClassSpec("\ud800")
    for field in ("name", "owner", "parent"):
        with pytest.raises(TaxonomyError, match=rf"the {field} of class 'a', .* is not valid Unicode \(a lone surrogate\)"):
            ClassSpec("a", **{field: "\ud800"})
        with pytest.raises(TaxonomyError, match=f"the {field} of class 'a' is 3; expected text"):
            ClassSpec("a", **{field: 3})


@pytest.mark.parametrize("rows", [[{"id": "a", "colour": "red"}], [{}], ["a"], None])
def test_json_that_is_no_taxonomy_is_refused(rows):
    with pytest.raises(TaxonomyError, match="cannot be read"):
        Taxonomy.from_json(rows)


def test_ids_that_are_paths_have_parents():
    taxonomy = with_parents(["animal/cat", "animal/cat/lion", "animal", ClassSpec("plant/oak", parent="tree", name="Oak")])
    assert taxonomy.ids == ("animal/cat", "animal/cat/lion", "animal", "plant/oak")
    assert [spec.parent for spec in taxonomy] == ["animal", "animal/cat", "", "tree"]
    assert taxonomy[3].name == "Oak"
    assert Taxonomy.from_json(taxonomy.to_json()) == taxonomy


def test_missing_ancestors_can_be_added_before_what_is_below_them():
    taxonomy = with_parents(["z", "a/b/c", "a/b/d", "a"], add=True)
    assert [(spec.id, spec.parent) for spec in taxonomy] == [("z", ""), ("a/b", "a"), ("a/b/c", "a/b"), ("a/b/d", "a/b"), ("a", "")]


@pytest.mark.parametrize("class_id", ["plain", "http://host", "/a", "a/", "/", "a//b"])
def test_an_id_with_an_empty_part_is_no_path(class_id):
    assert ancestors(class_id) == ()
    assert with_parents([class_id], add=True) == Taxonomy.from_ids([class_id])


def test_the_separator_of_paths_can_be_another():
    assert ancestors("a > b > c", separator=" > ") == ("a", "a > b")
    assert with_parents(["a.b"], separator=".")[0].parent == "a"
    assert with_parents(["a/b"], separator=".")[0].parent == ""
