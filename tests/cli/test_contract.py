"""`ovr evaluate --contract`: its settings. With a real server: tests/triton/test_contract.py."""

import pytest
from omegaconf import OmegaConf

from ovr.cli.evaluate import contract_settings
from ovr.errors import ConfigError
from tests.cli.test_main import error_of

CFG = {"max_ece": 0.05, "max_ece_of": None, "confidence": 0.95, "undecided": "fail", "server": None}


def test_limits_are_by_class_id_also_where_it_looks_like_a_number():
    settings = contract_settings(OmegaConf.create({**CFG, "max_ece_of": {7: 0.1, "cat": 0.2}}))
    assert settings["limit_of"] == {"7": 0.1, "cat": 0.2}
    assert contract_settings(OmegaConf.create(CFG))["limit_of"] == {}
    with pytest.raises(ConfigError, match=r"max_ece_of is 0\.1; expected limits by class id"):
        contract_settings(OmegaConf.create({**CFG, "max_ece_of": 0.1}))


def test_the_flag_is_a_setting_that_is_true_or_false(tmp_path, capsys):
    args = ["evaluate", "bundle=none", f"out={tmp_path / 'out'}"]
    assert "contract is 'maybe'; expected true or false" in error_of(capsys, *args, "contract=maybe")
    assert "data is not given: a bundle keeps no test rows" in error_of(capsys, *args, "--contract")
