"""From what the numbers of a row add to a logit to what the parts add that a user knows: columns, words, pixels.

Knows encoders, no model.

K = heads, L = places of a row of tokens, F = words of a text, G = parts
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ovr.core.schema import InputSchema
from ovr.input.table import TableEncoder
from ovr.input.text import Ngrams

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


def column_groups(schema: InputSchema, encoder: TableEncoder | None) -> tuple[list[str], I64]:
    """Return the names of a flat row's columns (G), and of each of its D numbers the column that it is of.

    Columns are those of the user where an encoder made several numbers of one, and else the numbers themselves.
    """
    if encoder is None:
        names = list(schema.columns) or [f"column {at}" for at in range(schema.size)]
        return names, np.arange(schema.size)
    group_D = np.empty(schema.size, np.int64)
    places = encoder.places()
    names = [column.name for column in encoder.columns]
    for number, name in enumerate(names):
        group_D[places[name]] = number
    return names, group_D


def summed(value_KD: F64, group_D: I64, *, num_groups: int) -> F64:
    """Return the sums over each group's numbers, (K, G)."""
    member_DG = group_D[:, None] == np.arange(num_groups)
    sum_KG: F64 = value_KD @ member_DG
    return sum_KG


def of_words(value_KL: F64, number_L: I64, ngrams: Ngrams) -> F64:
    """Return what each word of a text adds, (K, F), of what its hashed tokens add.

    What a token adds is shared equally among the n-grams of its number, and of each among the words that it is of, so that sums
    stay as they are.
    """
    place_of = {int(number): place for place, number in enumerate(number_L)}
    place_P = np.array([place_of.get(int(number), -1) for number in ngrams.number_P], np.int64)
    kept_P = place_P >= 0  # of a long text some tokens were left out
    num_L = np.bincount(place_P[kept_P], minlength=len(number_L))
    word_KF = np.zeros((len(value_KL), len(ngrams.spans)))
    for place, first, num_words in zip(place_P[kept_P], ngrams.first_P[kept_P], ngrams.num_words_P[kept_P], strict=True):
        word_KF[:, first : first + num_words] += (value_KL[:, place] / (num_L[place] * num_words))[:, None]
    return word_KF


def without(text: str, spans: Sequence[tuple[int, int]], present_F: NDArray[np.bool_]) -> str:
    """Return a text without those of its words that are not present."""
    kept, at = [], 0
    for (start, end), is_there in zip(spans, present_F.tolist(), strict=True):
        if not is_there:
            kept.append(text[at:start])
            at = end
    return "".join([*kept, text[at:]])
