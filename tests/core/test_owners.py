import pytest

from ovr.core.owners import Owners
from ovr.core.taxonomy import Taxonomy
from ovr.errors import TaxonomyError

LINES = """# who owns what
* @core

vehicle/* @traffic # all of it
vehicle/fire_truck @fire
vehicle/toy*
a?b @space
""".splitlines()


@pytest.mark.parametrize(
    ("class_id", "owner"),
    [
        ("cat", "@core"),
        ("vehicle/car", "@traffic"),
        ("vehicle/car/red", "@traffic"),
        ("vehicle/fire_truck", "@fire"),
        ("vehicle/toy_car", ""),
        ("Vehicle/car", "@core"),
        ("a b", "@space"),
    ],
)
def test_the_last_pattern_that_fits_counts(class_id, owner):
    assert Owners.of_lines(LINES).of(class_id) == owner


def test_classes_that_no_pattern_fits_keep_their_owner():
    taxonomy = Taxonomy.from_ids(["cat", "vehicle/car"]).with_settings({"cat": {"owner": "me"}})
    owned = taxonomy.with_settings(Owners.of_lines(LINES[3:]).given(taxonomy))
    assert [spec.owner for spec in owned] == ["me", "@traffic"]
    assert Owners().of("cat") is None


def test_a_line_that_is_no_pattern_and_owner_is_refused():
    with pytest.raises(TaxonomyError, match=r"owners, line 2: 'fire truck @fire' has 3 words; expected a pattern"):
        Owners.of_lines(["* @core", "fire truck @fire"])
