import pytest

from ovr.core.taxonomy import Taxonomy
from ovr.errors import ConfigError
from ovr.training.plan import head_plan

CLASSES = Taxonomy.from_ids(["x/y", "7", "..", "all", "größe"])


@pytest.mark.parametrize(
    ("frozen_heads", "backbone_grad", "frozen", "to_backbone", "record"),
    [
        ([], "all", (), (0, 1, 2, 3, 4), ([], "all")),
        ([], "none", (), (), ([], "none")),
        ([], [], (), (), ([], "none")),
        (["..", "x/y"], ["größe", 7], (0, 2), (1, 4), (["x/y", ".."], ["7", "größe"])),
        ([7, "7"], ["all"], (1,), (3,), (["7"], ["all"])),
        ((), ["x/y", "7", "..", "all", "größe"], (), (0, 1, 2, 3, 4), ([], "all")),
    ],
)
def test_class_ids_become_columns_in_order(frozen_heads, backbone_grad, frozen, to_backbone, record):
    plan = head_plan(CLASSES, frozen_heads=frozen_heads, backbone_grad=backbone_grad)
    assert (plan.frozen, plan.to_backbone) == (frozen, to_backbone)
    assert plan.is_plain == (not frozen and len(to_backbone) == 5)
    assert plan.record(CLASSES) == {"frozen_heads": record[0], "backbone_grad": record[1]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"frozen_heads": ["z", "7", "a"]},
            r"frozen_heads names classes \['a', 'z'\], which are not among the 5 of the taxonomy: 'x/y', '7', ",
        ),
        ({"backbone_grad": ["Größe"]}, r"backbone_grad names classes \['Größe'\]"),
        ({"frozen_heads": "all"}, "frozen_heads must be a list of class ids, got 'all'"),
        ({"frozen_heads": None}, "frozen_heads must be a list of class ids, got None"),
        ({"backbone_grad": "some"}, "backbone_grad must be all, none or a list of class ids, got 'some'"),
        ({"backbone_grad": True}, "backbone_grad must be all, none or a list of class ids, got True"),
        ({"frozen_heads": [True]}, "frozen_heads holds True, which is no text; quote class ids"),
        ({"backbone_grad": [1.5]}, r"backbone_grad holds 1\.5, which is no text"),
    ],
)
def test_what_names_no_heads_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        head_plan(CLASSES, **{"frozen_heads": [], "backbone_grad": "all", **settings})


def test_a_long_taxonomy_is_not_listed_whole():
    with pytest.raises(ConfigError, match=r"the 30 of the taxonomy: '0', .*'9', \.\.\.$"):
        head_plan(Taxonomy.from_ids(map(str, range(30))), frozen_heads=["x"], backbone_grad="all")
