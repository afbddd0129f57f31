import numpy as np
import pytest
from scipy import stats

from ovr.errors import ConfigError
from ovr.metric.drift import share_p, shift


@pytest.mark.parametrize(("num", "other", "moved", "spread"), [(400, 300, 0.0, 1.0), (80, 500, 0.4, 1.0), (300, 300, 0.0, 2.0)])
def test_the_distance_and_its_p_value_are_scipy_s(num, other, moved, spread):
    rng = np.random.default_rng(num)
    before, now = rng.normal(size=num), moved + spread * rng.normal(size=other)
    peer = stats.ks_2samp(before, now, method="asymp")
    found = shift(before, now)
    assert found.distance == pytest.approx(peer.statistic, abs=1e-12)
    assert found.p == pytest.approx(peer.pvalue, rel=0.1, abs=1e-3)
    assert found.value == pytest.approx((now.mean() - before.mean()) / before.std(ddof=1))
    half = stats.norm.ppf(0.975) * np.sqrt(before.var(ddof=1) / num + now.var(ddof=1) / other) / before.std(ddof=1)
    assert (found.high - found.value, found.value - found.low) == (pytest.approx(half), pytest.approx(half))


def test_chance_is_called_drift_as_rarely_as_it_is_said():
    rng = np.random.default_rng(0)
    drawn = [shift(rng.normal(size=150), rng.normal(size=90)).p for _ in range(400)]
    assert np.mean(np.array(drawn) < 0.05) < 0.08
    counted = [share_p(rng.binomial(200, 0.3), 200, rng.binomial(500, 0.3), 500) for _ in range(400)]
    assert np.mean(np.array(counted) < 0.05) < 0.05


def test_a_share_is_compared_by_the_exact_conditional_test():
    assert share_p(30, 1000, 10, 1000) == pytest.approx(stats.binomtest(30, 40, 0.5).pvalue)
    assert share_p(10, 1000, 30, 1000) == share_p(30, 1000, 10, 1000)
    assert share_p(5, 100, 50, 1000) > 0.9
    assert share_p(0, 100, 0, 100) == share_p(0, 0, 3, 10) == 1.0


def test_samples_that_say_nothing_have_no_shift():
    assert shift([1.0], [1.0, 2.0]) is None
    assert shift([1.0, 1.0], [1.0, 2.0]) is None
    assert shift([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]).p > 0.2
    with pytest.raises(ConfigError, match="confidence is 1"):
        shift([1.0, 2.0], [1.0, 2.0], confidence=1)
