"""What a Triton model repository holds. Knows nothing of how it got there or how it is served."""

from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from ovr.errors import ArtifactError
from ovr.serving.pbtxt import from_text


def model_names(repository: Path) -> tuple[str, ...]:
    """Return the models in a repository, callees before their callers.

    Raises:
        ArtifactError: there is none.
    """
    names = sorted(path.parent.name for path in repository.glob("*/config.pbtxt"))
    if not names:
        raise ArtifactError(f"{repository} holds no model; publish a bundle there with `ovr publish`")
    return tuple(sorted(names, key=lambda name: name in ("ovr", "ovr_heads")))


def read_config(repository: Path, name: str) -> pb.ModelConfig | None:
    """Return the configuration of a model in the repository, or None if it has no such model.

    Raises:
        ArtifactError: the file cannot be read.
    """
    path = repository / name / "config.pbtxt"
    try:
        return from_text(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from None


def served_versions(repository: Path, name: str) -> set[int]:
    """Return the versions that a model's configuration names; none where there is no such model."""
    config = read_config(repository, name)
    return set() if config is None else set(config.version_policy.specific.versions)


def versions_of(model: Path) -> list[int]:
    """Return the versions of the model in directory `model`, rising; none where it does not exist."""
    if not model.is_dir():
        return []
    return sorted(int(path.name) for path in model.iterdir() if path.is_dir() and path.name.isdecimal())
