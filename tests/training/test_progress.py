import pytest

from ovr.training.run import run_training
from tests.training.conftest import QUICK, compose_recipe


def run(tmp_path, write_table, *overrides):
    quick = [override for override in QUICK if "progress" not in override]
    table = write_table(tmp_path / "rows.csv", ["a", "b"] * 40)
    recipe, splits = compose_recipe(tmp_path / "run", "data=table", "data.target=label", f"data.path={table}", *quick, *overrides)
    return run_training(recipe, splits, tmp_path / "run")


def test_the_bar_counts_epochs_and_shows_the_figures(tmp_path, write_table, capsys):
    run(tmp_path, write_table)
    last = capsys.readouterr().err.rstrip().splitlines()[-1]
    assert "4/4" in last
    assert "val/macro_ap=" in last


def test_a_message_after_an_error_has_a_line_of_its_own(tmp_path, write_table, capsys):
    with pytest.raises(Exception, match="NaN or infinity"):
        run(tmp_path, write_table, "optimizer.lr=1e30")
    shown = capsys.readouterr().err
    assert "training:" in shown
    assert shown.endswith("\n")
