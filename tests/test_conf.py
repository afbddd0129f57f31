"""Every shipped YAML composes, names something that exists, and every plug-in has its YAML of the same name."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

import ovr
from ovr.cli.conf import COMMANDS, conf_dir, name_of
from ovr.cli.instantiate import shipped_targets

PLUG_INS = ("augment", "backbone", "head", "loss", "sampler", "data", "calibrator", "threshold", "abstention", "registry")
# What plug-ins are made of.
NOT_PLUG_INS = {
    "backbone/adapters",
    "backbone/pretrained",
    "data/delimited",
    "data/compact",
    "data/cohorts",
    "data/csr",
    "data/card",
    "data/entries",
    "data/fitted",
    "data/growing",
    "data/leakage",
    "data/near_duplicates",
    "data/origin",
    "data/sketch",
    "data/splitting",
    "data/stratify",
    "data/support",
    "data/json_rows",
    "data/label_cells",
    "data/labels",
    "data/lazy",
    "data/moments",
    "data/named_labels",
    "data/overlap",
    "data/parquet",
    "data/shards",
    "data/splits",
    "data/table_labels",
    "data/table_lookalikes",
    "data/text_rows",
    "data/table_parquet",
    "data/table_rows",
    "data/stream_files",
    "head/bank",
    "loss/even_odds",
    "calibrator/apply",
    "calibrator/blocks",
    "calibrator/cohort",
    "calibrator/families",
    "calibrator/known",
    "calibrator/logistic",
    "calibrator/parametric",
    "calibrator/pav",
    "calibrator/pooling",
    "calibrator/newton",
    "threshold/cuts",
    "threshold/fit",
    "abstention/fit",
    "abstention/promises",
    "registry/aliases",
    "registry/entries",
    "registry/lineage",
    "registry/lock",
}
# Groups that `ovr train` does not have.
COMMAND_OF = {"gate": "head add", "serving": "publish", "registry": "bundle path", "client": "predict"}
MOUNTED = {"encoder": ["data=text", "encoder@data.source.encoder"]}  # groups that are part of another group's options
GROUPS = sorted(path for path in conf_dir().glob("*/*.yaml"))


def targets(node):
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield node._target_
        node = [value for key, value in node.items_ex(resolve=False)]
    if isinstance(node, list | ListConfig):
        for value in node:
            yield from targets(value)


def composed(command: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base=None):
        return compose(name_of(command), overrides=list(overrides))


@pytest.mark.parametrize("path", GROUPS, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_every_option_composes_and_its_targets_exist(path):
    command = COMMAND_OF.get(path.parent.name, "train")
    more = MOUNTED.get(path.parent.name, [])
    cfg = composed(command, *more[:-1], f"{more[-1] if more else path.parent.name}={path.stem}")
    found = [target for target in targets(cfg) if target is not None]
    assert found or command == "publish"
    for target in found:
        assert target in shipped_targets()
        assert callable(get_object(target))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes_as_plain_values(command):
    assert isinstance(OmegaConf.to_container(composed(command), resolve=False), dict)


@pytest.mark.parametrize("group", PLUG_INS)
def test_every_plug_in_has_a_yaml_of_its_name(group):
    modules = {p.stem for p in (Path(ovr.__file__).parent / group).glob("*.py")} - {"__init__"}
    modules -= {name.partition("/")[2] for name in NOT_PLUG_INS if name.startswith(f"{group}/")}
    assert modules == {p.stem for p in (conf_dir() / group).glob("*.yaml")}
    for name in modules:
        assert f"ovr.{group}.{name}." in (conf_dir() / group / f"{name}.yaml").read_text()
