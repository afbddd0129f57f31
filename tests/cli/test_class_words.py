import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from ovr.cli.bundle import text
from ovr.cli.class_words import ids_as_written
from ovr.cli.labelled_rows import class_ids
from ovr.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        ("class=1.50", "1.50"),
        ("class=1_000", "1_000"),
        ("class=true", "true"),
        ("class='1.50'", "1.50"),
        ("class=fire_truck", "fire_truck"),
        ("class=null", None),
        ("classes=[1.50,-1e3,.5,NaN,null,007, 7 ]", ["1.50", "-1e3", ".5", "NaN", "null", "007", "7"]),
        ("classes=['a, 1.50',\"2.0\",b c,1.2.3]", ["a, 1.50", "2.0", "b c", "1.2.3"]),
        ("changed=[]", []),
        ("class=größe", "größe"),
        ("classes=[größe,'größe, L',dog]", ["größe", "größe, L", "dog"]),
    ],
)
def test_ids_that_hydra_takes_for_numbers_are_texts_as_they_are_written(given, ids):
    assert OverridesParser.create().parse_override(ids_as_written(given)).value() == ids


def test_a_file_of_settings_has_to_quote_them():
    cfg = OmegaConf.create("{class: 1.50, classes: [true]}")
    with pytest.raises(ConfigError, match=r"class is 1\.5, which is no text; quote"):
        text(cfg, "class")
    with pytest.raises(ConfigError, match="classes holds True, which is no text; quote"):
        class_ids(cfg.classes, key="classes")


def test_other_settings_stay_as_they_are():
    for arg in ("seed=007", "fit.C=1.50", "class=1,2", "--help", "data.source.classes=[1.0]"):
        assert ids_as_written(arg) == arg
