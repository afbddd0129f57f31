"""scikit-learn's bundled handwritten digits: 1,797 images of 8x8 pixels with values 0 to 16, classes "0" to "9"."""

from collections.abc import Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.data.fitted import Fitted
from ovr.data.labels import Labels
from ovr.data.origin import Origin
from ovr.data.splits import Splits, make_splits, stratified_split
from ovr.data.splitting import SplitRule
from ovr.errors import DataError


def load_digits(*, layout: str, fractions: Mapping[str, float], seed: int, fitted: Fitted | None = None) -> Splits:
    """Return the digits, stratified by `seed`; rows are flat (64,) or images (1, 8, 8), as `layout` says ("flat" or "image").

    With `fitted` they are for a model that is there, all of them or a split.

    Raises:
        DataError: scikit-learn is not installed, or another layout.
    """
    shapes = {"flat": (64,), "image": (1, 8, 8)}
    if layout not in shapes:
        raise DataError(f"digits layout is {layout!r}; expected 'flat' or 'image'")
    try:
        from sklearn.datasets import load_digits as load
    except ImportError:
        raise DataError(
            "data=digits needs scikit-learn, which carries the images; install it with: pip install 'ovr[digits]'"
        ) from None
    pixels, column_N = load(return_X_y=True)
    taxonomy = Taxonomy.from_ids(str(digit) for digit in range(10))
    names = tuple(f"pixel_{row}_{column}" for row in range(8) for column in range(8))
    schema = InputSchema(shapes[layout], names if layout == "flat" else ())
    x = pixels.reshape(-1, *schema.shape)
    if fitted is not None:
        fitted.check_numbers(schema.columns, source="data=digits")
        if taxonomy.ids != fitted.taxonomy.ids:
            raise DataError(
                f"the model has the classes {', '.join(map(repr, fitted.taxonomy.ids[:5]))}, ...; data=digits has '0' to '9'"
            )
        taxonomy = fitted.taxonomy
    if fitted is not None and fitted.whole:
        every = {"test": (x, Labels.from_columns(column_N, num_heads=10))}
        origin = Origin((), None, {"test": np.arange(len(x))}, shown={"test": partial(_picture, pixels)})
        return make_splits(taxonomy, schema, every, origin=origin, fitted=fitted)
    rows = stratified_split(column_N, fractions, seed=seed)
    parts = {name: (x[r], Labels.from_columns(column_N[r], num_heads=10)) for name, r in rows.items()}
    shown = {name: partial(_picture, pixels[r]) for name, r in rows.items()}
    origin = Origin((), SplitRule("stratified", None, fractions, seed), rows, shown=shown)
    return make_splits(taxonomy, schema, parts, origin=origin, fitted=fitted)


def _picture(pixels_N64: NDArray[np.float64], row: int) -> NDArray[np.float64]:
    picture: NDArray[np.float64] = pixels_N64[row].reshape(8, 8)
    return picture
