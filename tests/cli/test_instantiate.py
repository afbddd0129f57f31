"""Only allowed targets are followed, and what a target refuses is told with its place in the configuration."""

import importlib.util
import sys

import pytest
from omegaconf import OmegaConf

from ovr.cli.instantiate import build, build_recorded
from ovr.core.artifact import DecisionPolicy
from ovr.errors import ArtifactError, ConfigError

POLICY = "ovr.core.artifact.DecisionPolicy"
ANYTHING = "ovr.core.prediction.Decision"  # holds what it is given, unchecked


def node(text, key=None):
    cfg = OmegaConf.create(text)
    return cfg if key is None else cfg[key]


def test_a_target_gets_the_values_of_its_node():
    cfg = node({"mode": "multilabel", "policy": {"_target_": POLICY, "mode": "${mode}", "top_k": 2}}, "policy")
    assert build(cfg) == DecisionPolicy(mode="multilabel", top_k=2)


def test_arguments_from_code_go_over_those_of_the_configuration_and_stay_the_same_object():
    marker = {"a": [1]}
    made = build({"_target_": ANYTHING, "label_BK": 1, "abstained_B": 2}, ["ovr."], abstained_B=marker, top_BM=3)
    assert (made.label_BK, made.top_BM) == (1, 3)
    assert made.abstained_B is marker


def test_a_dataclass_from_code_is_not_taken_for_configuration():
    policy = DecisionPolicy(top_k=3)
    waiting = build({"_target_": ANYTHING, "_partial_": True, "label_BK": 1}, ["ovr."], abstained_B=policy)
    assert waiting(top_BM=2).abstained_B is policy


def test_a_partial_waits_for_the_rest():
    sgd = build({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5})
    import torch

    assert sgd([torch.nn.Parameter(torch.zeros(1))]).defaults["lr"] == 0.5


def test_a_node_without_target_gives_what_its_values_describe():
    assert build({"a": {"_target_": POLICY}, "b": 3}) == {"a": DecisionPolicy(), "b": 3}
    assert build({}) == {}


def test_containers_arrive_plain():
    made = build({"_target_": ANYTHING, "label_BK": {"a": [1, {"b": 2}]}, "abstained_B": 1, "top_BM": 1}, ["ovr."])
    assert type(made.label_BK) is dict
    assert type(made.label_BK["a"]) is list
    assert type(made.label_BK["a"][1]) is dict


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "ovr.cli.main.main",
        "ovr.core.files.write_file",
        "pathlib.Path.unlink",
        "torch.load",
        "torch.hub.load",
        "numpy.load",
        "ovrx.evil",
        "torch.optimx.SGD",
        "ovr",
        "",
    ],
)
def test_other_targets_are_refused(target):
    with pytest.raises(ConfigError, match=f"_target_ {target} is not allowed"):
        build({"_target_": target})


def test_a_refused_target_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for cfg in ({"_target_": "evil_module.x"}, {"a": [{"b": {"_target_": "evil_module.x"}}]}):
        with pytest.raises(ConfigError, match=r"_target_ evil_module\.x is not allowed; allowed are those of the shipped"):
            build(cfg)
    with pytest.raises(ConfigError, match=r"_target_ evil_module\.x is not allowed"):
        build({"_target_": POLICY, "mode": {"_target_": "evil_module.x"}})
    with pytest.raises(ConfigError, match=r"_target_ evil_module\.x is not allowed"):
        build(node({"t": "evil_module.x", "a": {"_target_": "${t}"}}, "a"))
    assert "evil_module" not in sys.modules


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("ovr.core.files.shutil.rmtree", "is not allowed; it is a function of shutil"),
        ("ovr.core.files.os.replace", "is not allowed"),
        ("ovr.core.bundle.Path.unlink", "is not allowed"),
        ("ovr.core.files.MAX_JSON_BYTES", "is not allowed; it is a int of None"),
        ("ovr.core.files", "cannot be found|is not allowed"),
        ("ovr.loss.focal.Fokal", "cannot be found"),
        ("ovr.nothing.X", "cannot be found"),
    ],
)
def test_what_a_name_leads_to_is_checked_too(target, message):
    with pytest.raises(ConfigError, match=message):
        build({"_target_": target, "path": "/nonexistent"}, ["ovr."])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("lightning.fabric.utilities.cloud_io._load", "is not allowed; allowed are those of the shipped configuration"),
        ("lightning.pytorch.core.saving.load_hparams_from_yaml", "it is a function, expected a class of the kind Optimizer, "),
        ("lightning.pytorch.cli.LightningCLI", "it is a type, expected a class of the kind"),
        ("torch.nn.functional.relu", "it is a function, expected a class"),
    ],
)
def test_of_torch_and_lightning_only_classes_of_some_kinds_are_followed(target, message):
    with pytest.raises(ConfigError, match=message):
        build({"_target_": target})


def test_a_part_of_torch_or_lightning_that_ovr_does_not_ship_is_followed():
    assert type(build({"_target_": "lightning.pytorch.callbacks.LearningRateMonitor"})).__name__ == "LearningRateMonitor"
    assert build({"_target_": "torch.optim.Adagrad", "_partial_": True}).func.__name__ == "Adagrad"
    assert type(build({"_target_": "torch.nn.Identity"})).__name__ == "Identity"
    for target in ("pytorch.strategies.DDPStrategy", "pytorch.plugins.MixedPrecision", "pytorch.profilers.SimpleProfiler"):
        build({"_target_": f"lightning.{target}", "_partial_": True})


def test_a_bundle_names_the_parts_that_ovr_ships_for_the_place_and_nothing_else():
    assert build_recorded({"_target_": "ovr.calibrator.platt.Platt"}, "calibrator").__class__.__name__ == "Platt"
    for target in ("torch.nn.Identity", "ovr.threshold.cost.Cost", "lightning.fabric.utilities.cloud_io._load"):
        for settings in ({"_target_": target}, {"_target_": "ovr.calibrator.auto.Auto", "x": [{"y": {"_target_": target}}]}):
            with pytest.raises(
                ConfigError, match=rf"the bundle's calibrator: _target_ {target} is not allowed, since a bundle is data"
            ):
                build_recorded(settings, "calibrator")
    with pytest.raises(ConfigError, match=r"expected one of ovr\.threshold\.conformal\.Conformal, ovr\.threshold\.cost\.Cost, "):
        build_recorded({"_target_": "ovr.calibrator.platt.Platt"}, "threshold")


def test_the_user_allows_further_packages(tmp_path, monkeypatch):
    (tmp_path / "my_package.py").write_text("def made(x):\n    return x + 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    cfg = {"_target_": "my_package.made", "x": 1}
    with pytest.raises(ConfigError, match=r"others are added with allow_targets=\[PREFIX\]"):
        build(cfg)
    assert build(cfg, ["my_package."]) == build(cfg, ["my_package"]) == 2
    with pytest.raises(ConfigError, match="is not allowed"):
        build({"_target_": "os.getcwd"}, [""])


def test_an_unknown_argument_is_refused_with_the_nearest_even_if_the_target_waits():
    for extra in ({}, {"_partial_": True}):
        with pytest.raises(ConfigError, match=r"p: DecisionPolicy: .*'topk'; nearest: top_k"):
            build(node({"p": {"_target_": POLICY, "topk": 3, **extra}}, "p"))
    with pytest.raises(ConfigError, match="'xyzzy'; it takes mode, abstain_below, top_k"):
        build({"_target_": POLICY}, xyzzy=1)
    with pytest.raises(ConfigError, match="missing a required argument: 'id'"):
        build({"_target_": "ovr.core.taxonomy.ClassSpec"}, ["ovr."])


def test_an_error_of_the_target_comes_as_it_is():
    with pytest.raises(ArtifactError, match="top_k is 0; expected at least 1"):
        build({"_target_": POLICY, "top_k": 0})
    with pytest.raises(ArtifactError, match="top_k is 0; expected at least 1"):
        build({"a": {"_target_": POLICY, "top_k": 0}})


def test_values_that_are_missing_are_named():
    with pytest.raises(ConfigError, match=r"p\.top_k is not given; add p\.top_k=VALUE"):
        build(node({"p": {"_target_": POLICY, "top_k": "???"}}, "p"))
    with pytest.raises(ConfigError, match="Interpolation key 'none' not found"):
        build({"_target_": POLICY, "top_k": "${none}"})


def test_settings_that_a_target_cannot_even_compare_are_named():
    node = {"_target_": "ovr.calibrator.temperature.Temperature", "max_temperature": "abc"}
    with pytest.raises(ConfigError, match="Temperature refuses its settings: '<=' not supported"):
        build(node)


def test_a_package_that_is_not_installed_is_named_in_its_own_words(tmp_path):
    pytest.importorskip("lightning")
    if importlib.util.find_spec("tensorboard") or importlib.util.find_spec("tensorboardX"):
        pytest.skip("tensorboard is installed")
    node = {"tb": {"_target_": "lightning.pytorch.loggers.TensorBoardLogger", "save_dir": str(tmp_path)}}
    with pytest.raises(ConfigError, match="Neither `tensorboard` nor `tensorboardX` is available"):
        build(node)
