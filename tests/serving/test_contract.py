"""The contract without a server: what it says and refuses. With a real one: tests/triton/test_cohorts.py."""

import numpy as np
import pytest

from ovr.errors import ConfigError, ContractError, DataError, ServingError
from ovr.metric.contract import HeadVerdict
from ovr.serving import contract
from ovr.serving.contract import Contract, Served, measure_contract
from tests.bundles import small_bundle


def verdict(class_id, outcome, cohort=None):
    return HeadVerdict(class_id, outcome, 0.01, 0.02, 0.05, 100, 10, 200, 0.008, 300, cohort)


def of(*verdicts, diff=0.0, undecided="fail"):
    served = Served(np.zeros((4, len(verdicts)), np.float32), "grpc://here", diff, diff == 0)
    return Contract("a" * 64, served, verdicts, 0.95, undecided)


def test_it_is_kept_where_every_head_passes():
    kept = of(verdict("cat", "pass"), verdict("dog", "pass"))
    kept.check()
    value = kept.to_json()
    assert value["kept"] is True
    assert value["num_heads"] == {"pass": 2, "fail": 0, "undecided": 0}
    assert value["num_rows"] == 4
    assert value["heads"][1]["class_id"] == "dog"


def test_heads_that_do_not_keep_it_are_named():
    mixed = of(verdict("cat", "pass"), verdict("dog", "fail"), verdict("owl", "undecided"))
    with pytest.raises(ContractError, match=r"contract of bundle a{12} is broken: 2 of 3 heads .*'dog': fail .*'owl': undec"):
        mixed.check()
    assert mixed.to_json()["kept"] is False
    of(verdict("cat", "pass"), verdict("owl", "undecided"), undecided="allow").check()
    of_cohorts = of(verdict("cat", "pass"), verdict("cat", "fail", "F"), verdict("cat", "pass", "M"))
    with pytest.raises(ContractError, match=r"broken: 1 of 3 heads, with those of each cohort, .*'cat \(F\)': fail"):
        of_cohorts.check()
    value = of_cohorts.to_json()
    assert (value["num_heads"]["pass"], value["num_heads_of_cohorts"]["fail"]) == (1, 1)
    assert [head["cohort"] for head in value["heads_of_cohorts"]] == ["F", "M"]
    many = of(*(verdict(f"c{k}", "fail") for k in range(23)))
    with pytest.raises(ContractError, match="; and 3 more"):
        many.check()


def test_a_server_that_gives_other_probabilities_breaks_it():
    with pytest.raises(ContractError, match=r"differ by up to 0\.002 from those of ONNX Runtime; expected at most 1e-06"):
        of(verdict("cat", "pass"), diff=2e-3).check()


def test_what_cannot_be_measured_is_refused_before_a_server_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(contract, "start", lambda *args, **kwargs: pytest.fail("a server was started"))
    bundle = small_bundle(tmp_path / "bundle")
    x, label_NK = np.zeros((4, 6), np.float32), np.zeros((4, 3), bool)
    for settings, message in (
        ({"undecided": "maybe"}, "undecided is 'maybe'; expected 'fail' or 'allow'"),
        ({"confidence": 1.0}, r"confidence is 1\.0"),
        ({"confidence": "much"}, "confidence is 'much'; expected a number above 0 and below 1"),
        ({"limit_of": {"cow": 0.1}}, "model of 3 classes does not have: 'cow'"),
    ):
        with pytest.raises(ConfigError, match=message):
            measure_contract(bundle, x, label_NK, ~label_NK, **settings)
    with pytest.raises(DataError, match="the contract got no rows"):
        measure_contract(bundle, x[:0], label_NK[:0], ~label_NK[:0])
    with pytest.raises(ServingError, match="no server answers at grpc://127"):
        measure_contract(bundle, x, label_NK, ~label_NK, server="127.0.0.1:9")
