import numpy as np
import pytest

from ovr.core import scale
from ovr.core.artifact import Calibration
from ovr.core.calibrations import Calibrations
from ovr.core.heads import HeadColumns
from ovr.core.shards import FIGURES, npz_bytes, read_columns, read_weights, shard_bytes, shards_of
from ovr.errors import ArtifactError

IDS = tuple("abcde")
WEIGHTS = {"weight": np.arange(10, dtype=np.float32).reshape(5, 1, 2), "bias": np.arange(5, dtype=np.float32).reshape(5, 1)}


def columns(**changes):
    arguments = {
        "kind": "linear",
        "backbone_sha256": "ab" * 32,
        "version_K": np.array([1, 2, 3, 4, 5]),
        "threshold_K": np.linspace(0, 1, 5),
        "calibrations": Calibrations.of(
            [Calibration("platt" if k else "temperature", 1 + k, status="ok" if k % 2 else "one_class") for k in range(5)]
        ),
        "figures": lambda: {"f1": np.array([0.5, np.nan, 1, 0, 0]), "rows": np.arange(5)},
    }
    return HeadColumns(IDS, **{**arguments, **changes})


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "SHARD_HEADS", 2)
    for shard in shards_of(5, head_bytes=12):
        (tmp_path / shard.path).mkdir(parents=True)
        stack = {name: value[shard.columns] for name, value in WEIGHTS.items()}
        (tmp_path / shard.heads_file).write_bytes(shard_bytes(columns(), shard, stack))
    (tmp_path / "report").mkdir()
    (tmp_path / FIGURES).write_bytes(npz_bytes(columns().figures))
    return tmp_path


def test_shards_cover_every_head_once():
    shards = shards_of(2 * scale.SHARD_HEADS + 5, head_bytes=4)
    assert [shard.num_heads for shard in shards] == [scale.SHARD_HEADS, scale.SHARD_HEADS, 5]
    assert [shard.path for shard in shards] == ["heads/shard-00000", "heads/shard-00001", "heads/shard-00002"]
    assert [shard.columns.start for shard in shards[1:]] == [shard.columns.stop for shard in shards[:-1]]
    assert scale.SHARD_HEADS % 32 == 0, "whole blocks of the fused graph"


@pytest.mark.parametrize(
    ("head_bytes", "num_heads"), [(1 << 15, 8192), ((1 << 15) + 1, 8160), (1 << 22, 64), (1 << 25, 8), (1 << 40, 1)]
)
def test_shards_of_large_heads_stay_within_their_bytes(head_bytes, num_heads):
    shards = shards_of(num_heads + 1, head_bytes=head_bytes)
    assert [shard.num_heads for shard in shards] == [num_heads, 1]
    assert num_heads == 1 or num_heads * head_bytes <= scale.SHARD_BYTES


def test_shards_give_back_the_heads_and_their_weights(root):
    read = read_columns(root, shards_of(5, head_bytes=12), IDS, backbone_sha256="ab" * 32)
    assert read == columns()
    assert list(read) == list(columns())
    assert read[1:3] == (columns()[1], columns()[2])
    assert read[1].metrics == {"test": {"f1": None, "rows": 1}}
    for shard in shards_of(5, head_bytes=12):
        for name, value in read_weights(root, shard).items():
            np.testing.assert_array_equal(value, WEIGHTS[name][shard.columns])


def test_the_same_heads_give_the_same_bytes(root):
    shard = shards_of(5, head_bytes=12)[0]
    stack = {name: value[shard.columns] for name, value in WEIGHTS.items()}
    assert shard_bytes(columns(), shard, stack) == (root / shard.heads_file).read_bytes()


def test_shards_of_other_heads_are_refused(root):
    shards = shards_of(5, head_bytes=12)
    with pytest.raises(ArtifactError, match="were trained on backbone abababababab, this bundle has cdcd"):
        read_columns(root, shards, IDS, backbone_sha256="cd" * 32)
    with pytest.raises(ArtifactError, match=r"shards that end at columns \[2, 4, 5\]; the taxonomy has 4 classes"):
        read_columns(root, shards, IDS[:4], backbone_sha256="ab" * 32)
    for first, class_ids in ((0, "badce"), (2, "abdce")):
        with pytest.raises(
            ArtifactError, match=rf"holds heads of other classes than columns {first} to {first + 1} of the taxonomy"
        ):
            read_columns(root, shards, tuple(class_ids), backbone_sha256="ab" * 32)
    (root / shards[0].heads_file).write_bytes((root / shards[1].heads_file).read_bytes())
    with pytest.raises(ArtifactError, match=r"shard-00000/heads\.npz holds heads of other classes than columns 0 to 1"):
        read_columns(root, shards, IDS, backbone_sha256="ab" * 32)
    (root / shards[0].heads_file).write_bytes((root / shards[2].heads_file).read_bytes())
    with pytest.raises(ArtifactError, match="does not hold 2 heads"):
        read_columns(root, shards, IDS, backbone_sha256="ab" * 32)
    (root / shards[0].heads_file).write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_columns(root, shards, IDS, backbone_sha256="ab" * 32)


def test_shards_are_of_one_kind_of_head(root):
    shard = shards_of(5, head_bytes=12)[2]
    stack = {name: value[shard.columns] for name, value in WEIGHTS.items()}
    (root / shard.heads_file).write_bytes(shard_bytes(columns(kind="mlp"), shard, stack))
    with pytest.raises(ArtifactError, match=r"of kinds \['linear', 'mlp'\]; expected one kind"):
        read_columns(root, shards_of(5, head_bytes=12), IDS, backbone_sha256="ab" * 32)
