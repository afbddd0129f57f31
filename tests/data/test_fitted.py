"""Rows read for a model that is there: every source gives what it gave in training, all rows or a split."""

import gzip

import numpy as np
import pytest
from omegaconf import OmegaConf

from ovr.cli.conf import conf_dir
from ovr.cli.instantiate import build
from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.data.digits import load_digits
from ovr.data.fitted import Fitted
from ovr.data.idx import load_idx
from ovr.data.splits import SPLIT_NAMES
from ovr.errors import DataError
from ovr.input.text import HashedText
from tests.data import test_features, test_idx, test_table, test_text, test_xmc

NUM_ROWS = 60


def from_yaml(name, *changes, fitted=None):
    """Load by the configuration that a user would use."""
    cfg = OmegaConf.create({"data": OmegaConf.load(conf_dir() / "data" / f"{name}.yaml"), "paths": {"output_dir": "."}})
    cfg.data.pop("defaults", None)
    if name == "text":
        cfg.data.source.encoder = OmegaConf.load(conf_dir() / "encoder" / "hashed.yaml")
    cfg.merge_with_dotlist([f"data.{change}" for change in changes])
    return build(cfg.data.source, **({} if fitted is None else {"fitted": fitted}))


def table(folder, rng):
    """Numbers, a category, a date and a missing cell here and there; fitted on other rows they would be encoded otherwise."""
    header = ("u", "kind", "day", "site", "label")
    rows = [
        [n if n % 7 else "", "abc"[n % 3], f"2024-01-{n % 28 + 1:02}", f"0{n % 2}", ("x/y", "..")[n % 2]] for n in range(NUM_ROWS)
    ]
    path = test_table.write(folder / "a.csv", rows, header=header)
    return lambda fitted=None, **more: from_yaml(
        "table",
        f"path={more.get('path', path)}",
        f"target={more.get('target', 'label')}",
        *more.get("more", ["source.drop=[site]", "source.cohorts=[site]"]),
        fitted=fitted,
    )


def text(folder, rng):
    path = test_text.write_csv(folder / "a.csv", test_text.some_rows(NUM_ROWS))
    return lambda fitted=None, more=(): from_yaml(
        # A model's own encoder counts, whatever is configured.
        "text",
        f"path={path}",
        "label=label",
        f"num_tokens={5000 if fitted is None else 70}",
        *more,
        fitted=fitted,
    )


def features(folder, rng):
    path = folder / "a.npz"
    np.savez(path, x=rng.normal(size=(NUM_ROWS, 3)), y=np.arange(NUM_ROWS) % 3)
    return lambda fitted=None, **more: test_features.load(**{"path": path, "fitted": fitted, **more})


def matrix(folder, rng):
    """Labels by column: in the order of the model's classes."""
    path = folder / "m.npz"
    np.savez(path, x=rng.normal(size=(NUM_ROWS, 3)), y=np.eye(3, dtype=int)[np.arange(NUM_ROWS) % 3])
    return lambda fitted=None, **more: test_features.load(
        path=path, fitted=fitted, classes=[] if fitted else ["b", "a", "c"], **more
    )


def xmc(folder, rng):
    path = test_xmc.write(folder / "a.txt", test_xmc.sample_lines(rng, 100)[0])
    fractions = {"train": 0.4, "val": 0.2, "calib": 0.2, "test": 0.2}
    return lambda fitted=None, **more: test_xmc.load(more.pop("path", path), fitted=fitted, fractions=fractions, **more)


def idx(folder, rng):
    for name, num_rows in (("train", 100), ("t10k", 20)):
        pixels = test_idx.idx(rng.integers(256, size=(num_rows, 5, 4)))
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(pixels))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(test_idx.idx(np.arange(num_rows) % 3))
    return lambda fitted=None: load_idx(root=str(folder), class_names=[], fractions=test_idx.FRACTIONS, seed=0, fitted=fitted)


def digits(folder, rng):
    return lambda fitted=None: load_digits(layout="flat", fractions=test_features.FRACTIONS, seed=0, fitted=fitted)


def images(folder, rng):
    pytest.importorskip("PIL.Image")
    from tests.data import test_images

    path = folder / "a.npz"
    np.savez(path, x=rng.integers(256, size=(40, 8, 6, 3), dtype=np.uint8), y=np.arange(40) % 2)
    return lambda fitted=None: test_images.load(path, fitted=fitted, **({} if fitted is None else {"size": None, "mode": "grey"}))


def stream(folder, rng):
    pytest.importorskip("pyarrow")
    from ovr.data.stream import load_stream
    from tests.data import test_stream

    pattern = test_stream.write(folder / "s", rng.normal(size=(NUM_ROWS, 3)).astype(np.float32), np.arange(NUM_ROWS) % 4)
    settings = {"embedding": "x", "target": "y", "shape": [], "classes": [], "buffer_rows": 40, "cache_dir": str(folder / "kept")}
    split = {"by": "stratified", "fractions": test_features.FRACTIONS, "seed": 0}
    return lambda fitted=None: load_stream(files={**test_stream.NONE, "train": pattern}, split=split, fitted=fitted, **settings)


def of(splits, *, whole, taxonomy=None):
    return Fitted(taxonomy or splits.taxonomy, splits.input, whole)


def values(rows):
    return np.asarray(rows.x[: len(rows)])


@pytest.mark.parametrize("source", [table, text, features, matrix, xmc, idx, digits, images, stream])
def test_the_settings_of_training_give_its_splits_and_all_rows_are_those_of_the_source(tmp_path, rng, source):
    load = source(tmp_path, rng)
    trained = load()
    again, every = load(of(trained, whole=False)), load(of(trained, whole=True))
    for splits in (again, every):
        assert (splits.taxonomy, splits.input, splits.encoder) == (trained.taxonomy, trained.input, trained.encoder)
    assert [len(getattr(every, name)) for name in SPLIT_NAMES[:3]] == [0, 0, 0]
    target_NK, _ = every.test.labels.dense()
    for name in SPLIT_NAMES:
        rows, rows_again, number_N = getattr(trained, name), getattr(again, name), trained.origin.row_numbers[name]
        np.testing.assert_array_equal(values(rows), values(rows_again))
        if source is idx and name == "test":
            number_N = 100 + number_N  # the t10k files come after the others
        np.testing.assert_array_equal(values(rows), every.test.x[number_N])
        np.testing.assert_array_equal(rows.labels.dense()[0], target_NK[number_N])
        assert {name: value_N.tolist() for name, value_N in rows.cohorts.items()} == {
            name: value_N[number_N].tolist() for name, value_N in every.test.cohorts.items()
        }
    assert every.origin.row_numbers["test"].tolist() == list(range(len(every.test)))


@pytest.mark.parametrize("source", [table, text, features])
def test_labels_that_the_model_does_not_know_are_named(tmp_path, rng, source):
    load = source(tmp_path, rng)
    trained = load()
    fewer = Taxonomy.from_ids(trained.taxonomy.ids[1:])
    with pytest.raises(DataError, match=f"labels outside the taxonomy of {len(fewer)} classes: {trained.taxonomy.ids[0]!r}"):
        load(of(trained, whole=True, taxonomy=fewer))


@pytest.mark.parametrize("source", [table, text, features, xmc, digits, images])
def test_a_model_of_other_rows_is_refused(tmp_path, rng, source):
    load = source(tmp_path, rng)
    trained = load()
    other = HashedText(50, 4, (1, 1), None).to_json() if source is not text else None
    takes = r"texts \(data=text\)" if source is not text else r"rows of numbers as they are \(data=features"
    with pytest.raises(DataError, match=f"the model takes {takes}.*, not what"):
        load(Fitted(trained.taxonomy, InputSchema(trained.input.shape, encoder=other), True))


def test_rows_of_another_shape_or_other_columns_are_refused(tmp_path, rng):
    load = features(tmp_path, rng)
    taxonomy = load().taxonomy
    with pytest.raises(DataError, match=r"rows have shape \(60, 3\); expected \(rows, 4\)"):
        load(Fitted(taxonomy, InputSchema((4,)), True))
    splits = load_digits(layout="flat", fractions=test_features.FRACTIONS, seed=0)
    names = ("other", *splits.input.columns[1:])
    with pytest.raises(DataError, match=r"data=digits gives columns 'pixel_0_0', .*, the model takes 'other'"):
        digits(tmp_path, rng)(Fitted(splits.taxonomy, InputSchema((64,), names), True))


def test_fixed_classes_must_be_the_model_s(tmp_path, rng):
    for source in (digits, idx):
        load = source(tmp_path, rng)
        with pytest.raises(DataError, match=r"the model has the classes 'a', 'b', \.\.\.; data="):
            load(Fitted(Taxonomy.from_ids(["a", "b"]), load().input, True))


def test_all_rows_are_those_of_one_file(tmp_path, rng):
    load = features(tmp_path, rng)
    trained = load()
    files = {**test_features.NONE, "train": str(tmp_path / "a.npz"), "test": str(tmp_path / "a.npz")}
    with pytest.raises(DataError, match=r"rows=all takes one file: give data.path=FILE; or say rows=train, val, calib or test"):
        load(of(trained, whole=True), path=None, files=files)
    assert len(load(of(trained, whole=False), path=None, files=files).test) == NUM_ROWS


def test_columns_of_a_table_are_those_of_the_model(tmp_path, rng):
    load = table(tmp_path, rng)
    whole = of(load(), whole=True)
    rows = [[1, "a", "2024-01-01", "x/y"]] * 3
    header = ("u", "kind", "day", "label")
    new = test_table.write(tmp_path / "new.csv", rows, header=header)
    assert len(load(whole, path=new, more=()).test) == 3  # a class without a row, and no column that training left out
    for path, more, message in (
        (test_table.write(tmp_path / "b.csv", [row[1:] for row in rows], header=header[1:]), (), "b.csv has no column 'u'"),
        (
            test_table.write(tmp_path / "c.csv", [[*row, 1] for row in rows], header=(*header, "more")),
            (),
            "c.csv has columns that the model does not know: 'more'; leave them out with data.source.drop",
        ),
        (test_table.write(tmp_path / "d.csv", [["?!", *row[1:]] for row in rows], header=header), (), "column 'u' holds '\\?!'"),
        (new, ["source.drop=[kind]"], "data.source.drop has the columns 'kind', which the model takes as features"),
    ):
        with pytest.raises(DataError, match=message):
            load(whole, path=path, more=more)
    with pytest.raises(DataError, match=r"data\.target has the columns 'u', which the model takes as features"):
        load(whole, path=new, target="u", more=())
    zeros = test_table.write(tmp_path / "z.csv", [[*row, 1] for row in rows], header=("u", "kind", "day", "x/y", "other"))
    with pytest.raises(DataError, match=r"data\.target names classes that are not among the model's 2: 'other'"):
        load(whole, path=zeros, target="[x/y,other]", more=())


def test_features_and_labels_of_an_xmc_file_are_the_model_s(tmp_path, rng):
    load = xmc(tmp_path, rng)
    whole = of(load(), whole=True)
    more = test_xmc.write(tmp_path / "more.txt", ["1 2:1"], num_features=21)
    with pytest.raises(DataError, match=r"more\.txt has 21 features; the model takes 20"):
        load(whole, path=more, num_tokens=21)
    fewer = test_xmc.write(tmp_path / "fewer.txt", ["1 2:1"], num_labels=2)
    with pytest.raises(DataError, match=r"fewer\.txt has 2 labels, and none for the model's classes '2', '3'"):
        load(whole, path=fewer)
    turned = Fitted(Taxonomy.from_ids(reversed(whole.taxonomy.ids)), whole.input, True)
    with pytest.raises(DataError, match="has the labels of the model's classes in another order than the model"):
        load(turned)
