"""What /metrics says of each class is what was answered."""

import re
import time
from collections import Counter
from urllib.request import urlopen

import numpy as np
import pytest

from ovr import Client
from ovr.core.class_metrics import ClassMetricsSettings
from ovr.errors import ConfigError
from ovr.serving.repository import publish
from tests.bundles import small_bundle

SAMPLE = re.compile(r"^(ovr_class_\w+)\{(.*)\} (\S+)$", re.MULTILINE)


@pytest.mark.triton
def test_the_counts_of_each_class_are_those_of_the_answers(tmp_path, started, rng):
    bundle = small_bundle(tmp_path / "bundle", ("a", 'b "x"\n', "c"))
    publish(bundle, tmp_path / "repo", class_metrics=ClassMetricsSettings(max_classes=2, interval_s=0.1))
    server = started(tmp_path / "repo")
    expected: Counter = Counter()
    num_rows_of_all = 0
    for url in (server.http_url, server.grpc_url):
        with Client(url) as client:
            for num_rows in (1, 5, 40):
                answer = client.predict(rng.normal(size=(num_rows, 6)).astype(np.float32))
                num_rows_of_all += num_rows
                client.predict(rng.normal(size=(1, 6)), request_id="ovr-serve")  # asks whether there is an answer
                for column, class_id in enumerate(("a", 'b "x"\n', "")):
                    own = [column] if class_id else [2]
                    prob_N = answer.prob_BK[:, own].ravel()
                    expected["ovr_class_requests_total", class_id] += 1
                    expected["ovr_class_rows_total", class_id] += len(prob_N)
                    expected["ovr_class_decisions_total", class_id] += int(answer.decision.label_BK[:, own].sum())
                    expected["ovr_class_score_bucket", class_id] += len(prob_N)
                    expected["ovr_class_score_sum", class_id] += float(prob_N.sum(dtype=np.float64))
                    expected["ovr_class_latency_seconds_bucket", class_id] += 1
    versions = dict(zip(bundle.taxonomy.ids, map(str, bundle.card.head_versions), strict=True))
    deadline = time.monotonic() + 20
    while True:
        got: Counter = Counter()
        for name, labels, value in SAMPLE.findall(urlopen(server.metrics_url).read().decode()):
            label = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels))
            class_id = label["class"].encode().decode("unicode_escape")
            assert label["head_version"] == versions.get(class_id, "0")
            if name.endswith("_bucket") and label["le"] != "+Inf":
                continue
            got[name, class_id] += float(value)
        if got["ovr_class_requests_total", ""] == expected["ovr_class_requests_total", ""] or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert {key: value for key, value in got.items() if key in expected} == {
        key: pytest.approx(value) for key, value in expected.items()
    }
    assert got["ovr_class_latency_seconds_sum", "a"] > 0
    (passed,) = re.findall(r'^ovr_rows_total\{.*outcome="passed".*\} (\S+)$', urlopen(server.metrics_url).read().decode(), re.M)
    assert float(passed) == num_rows_of_all


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_classes": -1}, "max_classes is -1; expected a whole number of at least 0"),
        ({"max_classes": True}, "max_classes is True"),
        ({"interval_s": 0}, "interval_s is 0; expected seconds above 0"),
        ({"interval_s": "5s"}, "interval_s is '5s'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        ClassMetricsSettings(**settings)
