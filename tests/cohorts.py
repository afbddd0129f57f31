"""Cohorts for tests, with random calibrations.

C = cohorts, K = heads
"""

import numpy as np

from ovr.core.cohorts import CohortCalibrations


def some_cohorts(num_heads: int, names=("F", "M"), *, column="sex", seed=0) -> CohortCalibrations:
    """Return random calibrations of every head for each cohort."""
    rng = np.random.default_rng(seed)
    shape = (len(names), num_heads)

    def table(values):
        return tuple(map(tuple, values.tolist()))

    return CohortCalibrations(
        column,
        tuple(names),
        table(rng.uniform(0.3, 3.0, shape)),
        table(rng.normal(size=shape)),
        table(np.full(shape, "ok")),
        table(np.full(shape, 90)),
        table(np.full(shape, 30)),
    )
