"""What must hold of a repository at every moment: whatever a configuration names is there, whole."""

from pathlib import Path

from ovr.serving.contents import read_config


def check_repository(repository: Path) -> int | None:
    """Return the version of the router that is served, or None where there is none yet."""
    served = {}
    for directory in repository.iterdir():
        config = read_config(repository, directory.name)
        assert config is not None, f"{directory} has no configuration"
        served[directory.name] = list(config.version_policy.specific.versions)
        for version in served[directory.name]:
            present = {path.name for path in (directory / str(version)).iterdir()}
            if directory.name == "ovr":
                assert {"model.py", "card.json", "ovr"} <= present
            elif directory.name != "ovr_heads":
                assert "model.onnx" in present
            if directory.name == "ovr_scores":
                assert (directory / config.output[0].label_filename).is_file()
        for step in config.ensemble_scheduling.step:
            called = read_config(repository, step.model_name)
            assert called is not None
            assert step.model_version in called.version_policy.specific.versions
    if "ovr" not in served:
        return None
    (version,) = served["ovr"]
    assert version in served["ovr_scores"]
    return version
