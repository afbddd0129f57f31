import pytest

from ovr.errors import ArtifactError
from ovr.serving.contents import model_names, read_config, versions_of


def test_an_empty_repository_is_said_to_be_empty(tmp_path):
    with pytest.raises(ArtifactError, match="holds no model; publish a bundle there"):
        model_names(tmp_path)


def test_a_damaged_configuration_is_named(tmp_path):
    (tmp_path / "ovr").mkdir()
    (tmp_path / "ovr/config.pbtxt").write_bytes(b"\xff")
    with pytest.raises(ArtifactError, match=r"ovr/config\.pbtxt cannot be read"):
        read_config(tmp_path, "ovr")


def test_only_numbered_directories_are_versions(tmp_path):
    for name in ("10", "2", "labels", ".3.tmp-1-00000000"):
        (tmp_path / name).mkdir()
    (tmp_path / "7").touch()
    assert versions_of(tmp_path) == [2, 10]
    assert versions_of(tmp_path / "none") == []


def test_a_model_that_is_not_there_has_no_configuration(tmp_path):
    assert read_config(tmp_path, "ovr") is None
