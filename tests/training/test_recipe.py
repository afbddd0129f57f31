from dataclasses import replace

import numpy as np

from ovr.backbone.identity import Identity
from ovr.training.recipe import build_model


class Fitted(Identity):
    """Notes the rows that it is fitted on."""

    def fit(self, x):
        self.seen = x


def test_a_backbone_that_has_fit_is_fitted_on_the_raw_training_rows(tmp_path, write_table, configure):
    table = write_table(tmp_path / "a.csv", ["a", "b"] * 30)
    recipe, splits = configure(tmp_path / "run", f"data.path={table}")
    model = build_model(replace(recipe, backbone=Fitted), splits)
    np.testing.assert_array_equal(model.backbone.seen, splits.train.x)
