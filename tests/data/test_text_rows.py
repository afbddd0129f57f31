import numpy as np

from ovr.data.text_rows import Joined, Repeated, TextRows


def test_texts_come_back_as_they_were_put_in():
    texts = ["", "naïve", "日本\n語", "\ud800 half a pair", "a"]
    joined = Joined()
    for text in texts:
        joined.append(text)
    assert list(joined) == texts
    assert joined[-1] == "a"
    assert joined[1:4] == texts[1:4]
    some = joined.take(np.array([3, 1, 4])).take(np.array([1, 2]))
    assert list(some) == ["naïve", "a"]
    assert some[::-1] == ["a", "naïve"]


def test_values_come_back_with_their_types():
    values = [1, True, 1.0, "1", None, [1], [1], ("a", "b"), 1]
    repeated = Repeated()
    for value in values:
        repeated.append(value)
    assert [(type(value), value) for value in repeated] == [(type(value), value) for value in values]
    assert repeated[1:3] == [True, 1.0]
    assert list(repeated.take(np.array([8, 5])).take(np.array([1, 0]))) == [[1], 1]


def test_rows_keep_their_place_and_number():
    rows = TextRows(num_cohorts=1)
    for n in range(6):
        rows.add(f"{'ab'[n % 2]} b.csv, line {n + 2}", f"text {n}", (f"class {n % 3}",), n % 2, [n])
    some = rows.take(np.array([5, 2, 1])).take(np.array([0, 2]))
    assert [some.where(n) for n in range(2)] == ["b b.csv, line 7", "b b.csv, line 3"]
    assert some.numbers().tolist() == [5, 1]
    assert (list(some.texts), list(some.ids)) == (["text 5", "text 1"], [("class 2",), ("class 1",)])
    assert (list(some.cells), list(some.cohorts[0])) == ([1, 1], [5, 1])
    assert len(rows) == 6
