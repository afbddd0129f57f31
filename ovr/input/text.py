"""Texts as hashed word and character n-grams: nothing is fitted, and no vocabulary is kept. Knows nothing of files or labels.

B = batch, L = places of a row, F = words of all rows, Q = their hashes, P = n-grams of all rows, E = tokens of all rows
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ovr.core.schema import InputSchema
from ovr.errors import ArtifactError
from ovr.input.long_text import counted, ngrams_of
from ovr.input.records import columns_of, records_of, without_no_columns
from ovr.input.text_hashes import I64, PAIR, U64, hashes_of_runs, hashes_of_word, hashes_of_words, mixed

if TYPE_CHECKING:
    from typing import Self

F32 = NDArray[np.float32]

MAX_TOKENS = 1 << 24  # float32 holds whole numbers below it exactly
MAX_NGRAM = 10
BLOCK_CHARS = 1 << 18  # of texts at a time, so that memory does not grow with the number of rows; of a longer one, see `long_text`
NORMAL_FORMS = ("none", "NFC", "NFKC")

# Letters, digits and _, with what is written above or below them in scripts that have it (`\w` lacks it), and apostrophes within;
# and each punctuation mark or symbol alone.
_MARKS = (
    "\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u0610-\u061a\u064b-\u065f"
    "\u0900-\u0963\u0971-\u0df3\u0e31-\u0e4e\u0eb1-\u0ecd\u1ab0-\u1aff"
)
_WORD = re.compile(rf"\w[\w{_MARKS}]*(?:['\u2019]\w[\w{_MARKS}]*)*|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Ngrams:
    """The n-grams (P,) of a text: n-gram p has the number `number_P[p]` and is of `num_words_P[p]` words from `first_P[p]` on."""

    text: str  # in its normal form
    spans: tuple[tuple[int, int], ...]  # of the words in it
    number_P: I64
    first_P: I64
    num_words_P: I64


@dataclass(frozen=True, slots=True)
class HashedText:
    """Encodes texts as (max_tokens, 2): the number of a token and its weight, then zeros. Each text is encoded alone.

    A text is brought to a Unicode normal form and then to lower case, and cut into words: runs of letters, digits and _ with
    apostrophes within, and each punctuation mark or symbol alone. Its n-grams are runs of words, and runs of characters within a
    word that is put between two spaces (all of it, where it is shorter than the shortest; as in scikit-learn's char_wb). An
    n-gram's number is a hash of it, the same on every machine; n-grams of one number are one token. A token's weight is
    1 + ln(times it is there).

    Of a text with more than `max_tokens` tokens those of the largest weight are kept, of equal ones those that come first: words,
    then pairs of words and so on, then runs of characters, each in the order of the text. A text without a word is all zeros.
    Numbers depend on the Unicode tables of Python only for characters that its version does not know yet.
    """

    kind: ClassVar[str] = "text"
    num_tokens: int
    max_tokens: int
    words: tuple[int, int] | None = (1, 2)
    chars: tuple[int, int] | None = (3, 5)
    lowercase: bool = True
    normal_form: Literal["none", "NFC", "NFKC"] = "NFKC"
    columns: tuple[str, ...] = ()  # of a file, whose cells with `joiner` between them are a text; (): the only one, or "text"
    joiner: str = "\n"

    def __post_init__(self) -> None:
        for name in ("num_tokens", "max_tokens"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_TOKENS:
                raise ArtifactError(f"{name} of hashed text must be a whole number from 1 to {MAX_TOKENS}, got {value!r}")
        for name in ("words", "chars"):
            object.__setattr__(self, name, _lengths(name, getattr(self, name)))
        if self.words is None and self.chars is None:
            raise ArtifactError("hashed text needs words, chars or both: lengths of n-grams, such as [1, 2]")
        if not isinstance(self.lowercase, bool):
            raise ArtifactError(f"lowercase of hashed text must be true or false, got {self.lowercase!r}")
        if self.normal_form not in NORMAL_FORMS:
            raise ArtifactError(f"normal_form of hashed text is {self.normal_form!r}; expected one of {', '.join(NORMAL_FORMS)}")

    @property
    def tensor(self) -> InputSchema:
        """What `encode` returns, a row: (max_tokens, 2)."""
        return InputSchema((self.max_tokens, 2))

    def records(self, rows: Any) -> list[str]:
        """Return the texts.

        Raises:
            InputError: not a sequence of str, or no rows.
        """
        return records_of(rows, self.kind)

    def encode(self, rows: Any) -> F32:
        """Return texts as (B, max_tokens, 2).

        Raises:
            InputError: what `records` refuses.
        """
        texts = self.records(rows)
        x = np.zeros((len(texts), self.max_tokens, 2), np.float32)
        for block in _blocks(texts):
            if block.stop == block.start + 1 and len(texts[block.start]) >= BLOCK_CHARS:
                token_E, weight_E = self._tokens_of_long(texts[block.start])
                x[block.start, : len(token_E)] = np.stack([token_E, weight_E], axis=1)
                continue
            row_E, place_E, token_E, weight_E = self._tokens(texts[block.start : block.stop])
            x[block.start + row_E, place_E, 0] = token_E
            x[block.start + row_E, place_E, 1] = weight_E
        return x

    def to_json(self) -> dict[str, Any]:
        """Return plain values for the bundle."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {"kind": self.kind, **without_no_columns(plain)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Self":
        """Return the encoder that `to_json` wrote.

        Raises:
            ArtifactError: other keys, or values out of range.
        """
        expected = {"kind", *(field.name for field in fields(cls))} - {"columns", "joiner"}
        if set(value) - {"columns", "joiner"} != expected or value["kind"] != cls.kind:
            raise ArtifactError(
                f"an encoder of hashed text has {', '.join(sorted(expected))}; got {', '.join(map(repr, sorted(value)))}"
            )
        settings = {name: setting for name, setting in value.items() if name not in ("kind", "columns", "joiner")}
        return cls(**settings, **columns_of(value))

    def ngrams(self, text: str) -> "Ngrams":
        """Return the n-grams of one text with the words that they are of, before any are left out."""
        if self.normal_form != "none":
            text = unicodedata.normalize(self.normal_form, text)
        spans = [found.span() for found in _WORD.finditer(text)]
        words = self._words(text)
        if len(words) != len(spans):  # lower case made other words of it
            text = text.lower()
            spans = [found.span() for found in _WORD.finditer(text)]
        _, hash_P = self._ngrams([words])
        first, count = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for length in range(self.words[0], self.words[1] + 1) if self.words is not None else ():
            first.append(np.arange(max(0, len(words) - length + 1)))
            count.append(np.full(len(first[-1]), length))
        if self.chars is not None:
            size_F = np.array([len(hashes_of_word(word, *self.chars)) - 1 for word in words], np.int64)
            first.append(np.repeat(np.arange(len(words)), size_F))
            count.append(np.ones(len(first[-1]), np.int64))
        return Ngrams(text, tuple(spans), self._numbers(hash_P), np.concatenate(first), np.concatenate(count))

    def _numbers(self, hash_P: U64) -> I64:
        return (((hash_P >> np.uint64(32)) * np.uint64(self.num_tokens)) >> np.uint64(32)).astype(np.int64)

    def _tokens(self, texts: Sequence[str]) -> tuple[I64, I64, I64, NDArray[np.float64]]:
        """Return (row, place, number, weight) of each token."""
        row_P, hash_P = self._ngrams([self._words(text) for text in texts])
        number_P = self._numbers(hash_P)
        key_E, first_E, count_E = np.unique(row_P * self.num_tokens + number_P, return_index=True, return_counts=True)
        weight_E = 1 + np.log(count_E)
        row_E, number_E = np.divmod(key_E, self.num_tokens)
        order_E = np.lexsort((first_E, -weight_E, row_E))
        num_B = np.bincount(row_E, minlength=len(texts))
        place_E = np.arange(len(row_E)) - np.repeat(np.cumsum(num_B) - num_B, num_B)  # rows keep their size in either order
        kept_E = place_E < self.max_tokens
        order_E, place_E = order_E[kept_E], place_E[kept_E]
        return row_E[order_E], place_E, number_E[order_E], weight_E[order_E]

    def _tokens_of_long(self, text: str) -> tuple[I64, NDArray[np.float64]]:
        """Return (number, weight) of the tokens of one text that are kept, which is not held n-gram by n-gram."""
        words = (found[0] for found in _WORD.finditer(self._plain(text)))
        number_E, count_E = counted((group, self._numbers(hash_P)) for group, hash_P in ngrams_of(words, self.words, self.chars))
        return number_E[: self.max_tokens], 1 + np.log(count_E[: self.max_tokens])

    def _words(self, text: str) -> list[str]:
        return _WORD.findall(self._plain(text))

    def _plain(self, text: str) -> str:
        if self.normal_form != "none":
            text = unicodedata.normalize(self.normal_form, text)
        return text.lower() if self.lowercase else text

    def _ngrams(self, words_of_rows: Sequence[Sequence[str]]) -> tuple[I64, U64]:
        """Return row and hash of each n-gram, in the order that decides which are kept."""
        hash_Q, at_F, size_F = hashes_of_words([word for words in words_of_rows for word in words], self.chars)
        row_F = np.repeat(np.arange(len(words_of_rows)), [len(words) for words in words_of_rows])
        rows, hashes = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
        if self.words is not None:
            word_F = run_F = hash_Q[at_F]
            for length in range(1, self.words[1] + 1):
                if length > 1:
                    run_F = mixed(run_F[:-1] * PAIR + word_F[length - 1 :])
                if length >= self.words[0]:
                    end_F = length - 1 + np.arange(len(run_F))
                    within_F = row_F[: len(run_F)] == row_F[end_F]
                    rows.append(row_F[: len(run_F)][within_F])
                    hashes.append(run_F[within_F])
        if self.chars is not None:
            rows.append(np.repeat(row_F, size_F))
            hashes.append(hashes_of_runs(hash_Q, at_F, size_F))
        return np.concatenate(rows), np.concatenate(hashes)


def _blocks(texts: Sequence[str]) -> Iterator[range]:
    """Yield the numbers of texts that are encoded together; one that is as large as a block alone is alone."""
    start = size = 0
    for number, text in enumerate(texts):
        if start < number and len(text) >= BLOCK_CHARS:
            yield range(start, number)
            start, size = number, 0
        size += len(text)
        if size >= BLOCK_CHARS or number == len(texts) - 1:
            yield range(start, number + 1)
            start, size = number + 1, 0


def _lengths(name: str, value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    pair = tuple(value) if isinstance(value, list | tuple) else ()
    if (
        len(pair) != 2
        or not all(isinstance(n, int) and not isinstance(n, bool) for n in pair)
        or not 1 <= pair[0] <= pair[1] <= MAX_NGRAM
    ):
        raise ArtifactError(
            f"{name} of hashed text must be two lengths from 1 to {MAX_NGRAM}, such as [1, 2], or null; got {value!r}"
        )
    return pair[0], pair[1]
