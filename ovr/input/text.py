"""Texts as hashed word and character n-grams: nothing is fitted, and no vocabulary is kept. Knows nothing of files or labels.

B = batch, L = places of a row, F = words of all rows, U = different words, P = n-grams of all rows, E = tokens of all rows
"""

import re
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ovr.core.schema import InputSchema
from ovr.errors import ArtifactError
from ovr.input.records import columns_of, records_of, without_no_columns

if TYPE_CHECKING:
    from typing import Self

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]

MAX_TOKENS = 1 << 24  # float32 holds whole numbers below it exactly
MAX_NGRAM = 10
BLOCK_CHARS = 1 << 18  # of texts at a time, so that memory does not grow with the number of rows
CACHED_WORDS = 1 << 16
CACHED_CHARS = 40  # of a word; longer ones are hashed anew each time
NORMAL_FORMS = ("none", "NFC", "NFKC")

# Letters, digits and _, with what is written above or below them in scripts that have it (`\w` lacks it), and apostrophes within;
# and each punctuation mark or symbol alone.
_MARKS = (
    "\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u0610-\u061a\u064b-\u065f"
    "\u0900-\u0963\u0971-\u0df3\u0e31-\u0e4e\u0eb1-\u0ecd\u1ab0-\u1aff"
)
_WORD = re.compile(rf"\w[\w{_MARKS}]*(?:['\u2019]\w[\w{_MARKS}]*)*|[^\w\s]")

# Odd 64-bit constants of splitmix64 (Steele et al. 2014) and of Weyl's sequence.
_MIX_A, _MIX_B, _PAIR = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB), np.uint64(0x9E3779B97F4A7C15)
_CHARS_SALT = 0x63686172  # of checksums of character n-grams, so that "the" as a word and within one are different tokens


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
        start = size = 0
        for stop, text in enumerate(texts, start=1):
            size += len(text)
            if size >= BLOCK_CHARS or stop == len(texts):
                row_E, place_E, token_E, weight_E = self._tokens(texts[start:stop])
                x[start + row_E, place_E, 0] = token_E
                x[start + row_E, place_E, 1] = weight_E
                start, size = stop, 0
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
            size_F = np.array([len(_hashes(word, *self.chars)) - 1 for word in words], np.int64)
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

    def _words(self, text: str) -> list[str]:
        if self.normal_form != "none":
            text = unicodedata.normalize(self.normal_form, text)
        return _WORD.findall(text.lower() if self.lowercase else text)

    def _ngrams(self, words_of_rows: Sequence[Sequence[str]]) -> tuple[I64, U64]:
        """Return row and hash of each n-gram, in the order that decides which are kept."""
        number_of: dict[str, int] = {}
        number_F = np.array([number_of.setdefault(word, len(number_of)) for words in words_of_rows for word in words], np.int64)
        row_F = np.repeat(np.arange(len(words_of_rows)), [len(words) for words in words_of_rows])
        shortest, longest = self.chars or (0, 0)
        pieces = [(_cached_hashes if len(word) <= CACHED_CHARS else _hashes)(word, shortest, longest) for word in number_of]
        size_U = np.array([len(piece) for piece in pieces], np.int64)
        hash_Q = np.concatenate([np.zeros(0, np.uint64), *pieces])
        at_F = (np.cumsum(size_U) - size_U)[number_F]  # where a word's own hash is; those of its characters follow
        rows, hashes = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
        if self.words is not None:
            word_F = run_F = hash_Q[at_F]
            for length in range(1, self.words[1] + 1):
                if length > 1:
                    run_F = _mixed(run_F[:-1] * _PAIR + word_F[length - 1 :])
                if length >= self.words[0]:
                    end_F = length - 1 + np.arange(len(run_F))
                    within_F = row_F[: len(run_F)] == row_F[end_F]
                    rows.append(row_F[: len(run_F)][within_F])
                    hashes.append(run_F[within_F])
        if self.chars is not None:
            size_F = size_U[number_F] - 1
            within_P = np.arange(size_F.sum()) - np.repeat(np.cumsum(size_F) - size_F, size_F)
            rows.append(np.repeat(row_F, size_F))
            hashes.append(hash_Q[np.repeat(at_F, size_F) + 1 + within_P])
        return np.concatenate(rows), np.concatenate(hashes)


def _hashes(word: str, shortest: int, longest: int) -> U64:
    """Return the hash of a word and then those of its runs of `shortest` to `longest` characters; with 0, of the word alone."""
    checksums = [zlib.crc32(word.encode("utf-8", "surrogatepass"))]
    if longest:
        padded = f" {word} "
        size = len(padded)
        runs = [padded[at : at + n] for n in range(shortest, min(longest, size) + 1) for at in range(size - n + 1)] or [padded]
        checksums += [zlib.crc32(run.encode("utf-8", "surrogatepass"), _CHARS_SALT) for run in runs]
    return _mixed(np.array(checksums, np.uint64))


_cached_hashes = lru_cache(maxsize=CACHED_WORDS)(_hashes)


def _mixed(hash_P: U64) -> U64:
    """Return hashes whose every bit depends on every bit of the given ones (the finaliser of splitmix64); 64 bits wrap."""
    hash_P = hash_P + _PAIR
    hash_P = (hash_P ^ (hash_P >> np.uint64(30))) * _MIX_A
    hash_P = (hash_P ^ (hash_P >> np.uint64(27))) * _MIX_B
    return hash_P ^ (hash_P >> np.uint64(31))


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
