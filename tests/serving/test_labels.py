import ast

from hypothesis import given
from hypothesis import strategies as st

from ovr.core.taxonomy import Taxonomy
from ovr.serving.labels import escape_label, labels_file
from tests.bundles import ODD_IDS


def test_there_is_one_line_a_class_in_column_order():
    lines = labels_file(Taxonomy.from_ids(ODD_IDS)).decode().split("\n")
    assert lines.pop() == ""
    assert lines == [escape_label(class_id) for class_id in ODD_IDS]


def test_a_readable_id_is_its_own_label():
    assert escape_label("äöü 猫 / a:b") == "äöü 猫 / a:b"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_label_is_one_line_and_names_one_id(class_id):
    label = escape_label(class_id)
    assert not set(label) & set(map(chr, [*range(32), 127]))
    quoted = label.replace('"', '\\"').replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    assert ast.literal_eval(f'"{quoted}"') == class_id
