"""The tokens of one long text, counted piece by piece: memory grows with how many are different, not with the text.

F = words of a piece, P = n-grams, E = different tokens
"""

from collections.abc import Iterable, Iterator

import numpy as np

from ovr.input.text_hashes import I64, PAIR, U64, hashes_of_runs, hashes_of_words, mixed, runs_of_long_word

PIECE_WORDS = PIECE_CHARS = 1 << 14
LONG_WORD = 1 << 10  # characters from which on a word is a piece of its own
MERGED_TOKENS = 1 << 18  # different ones of pieces that are waited for
_GROUP_BITS = 40  # of an n-gram's place: its group (runs of one word, of two ..., of characters), then its number in that

Lengths = tuple[int, int] | None


def ngrams_of(words: Iterable[str], word_lengths: Lengths, char_lengths: Lengths) -> Iterator[tuple[int, U64]]:
    """Yield (group, hashes) of the n-grams of a text; those of one group come in the order of the text."""
    shortest, longest = word_lengths or (1, 1)
    word_F = np.zeros(0, np.uint64)
    for piece in _pieces(words):
        is_long = len(piece[0]) >= LONG_WORD
        hash_Q, at_F, size_F = hashes_of_words(piece, None if is_long else char_lengths)
        if word_lengths is not None:
            num_before = len(word_F)
            word_F = run_F = np.concatenate([word_F, hash_Q[at_F]])
            for length in range(1, longest + 1):
                if length > 1:
                    run_F = mixed(run_F[:-1] * PAIR + word_F[length - 1 :])
                if length >= shortest:
                    yield length - 1, run_F[max(0, num_before - length + 1) :]  # those before ended in the piece before
            word_F = word_F[max(0, len(word_F) - longest + 1) :]
        if char_lengths is not None:
            pieces = runs_of_long_word(piece[0], *char_lengths) if is_long else [hashes_of_runs(hash_Q, at_F, size_F)]
            for hash_P in pieces:
                yield longest, hash_P


def counted(ngrams: Iterable[tuple[int, I64]]) -> tuple[I64, I64]:
    """Return the different numbers (E,) among those of (group, numbers), and how often each is there, both ordered.

    Those that are there most often come first, of equal ones those of the lower group, and then those that came first.
    """
    kept = tuple(np.zeros(0, np.int64) for _ in range(3))  # number, place, count
    waiting, num_waiting = [kept], 0
    num_of_group: dict[int, int] = {}
    for group, number_P in ngrams:
        start = num_of_group.get(group, 0)
        num_of_group[group] = start + len(number_P)
        bits = len(number_P).bit_length()
        key_P = np.sort((number_P << bits) | np.arange(len(number_P)))  # a number has 24 bits at most
        first_E = np.flatnonzero(np.diff(key_P >> bits, prepend=-1))
        place_E = (group << _GROUP_BITS) + start + (key_P[first_E] & ((1 << bits) - 1))
        waiting.append((key_P[first_E] >> bits, place_E, np.diff(first_E, append=len(key_P))))
        num_waiting += len(first_E)
        if num_waiting >= max(MERGED_TOKENS, len(kept[0])):
            kept = _merged(waiting)
            waiting, num_waiting = [kept], 0
    number_E, place_E, count_E = _merged(waiting)
    order_E = np.lexsort((place_E, -count_E))
    return number_E[order_E], count_E[order_E]


def _merged(parts: list[tuple[I64, ...]]) -> tuple[I64, I64, I64]:
    number_P, place_P, count_P = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order_P = np.lexsort((place_P, number_P))
    number_P = number_P[order_P]
    first_E = np.flatnonzero(np.diff(number_P, prepend=-1))
    if not len(first_E):
        return number_P, place_P, count_P
    return number_P[first_E], place_P[order_P][first_E], np.add.reduceat(count_P[order_P], first_E)


def _pieces(words: Iterable[str]) -> Iterator[list[str]]:
    piece: list[str] = []
    size = 0
    for word in words:
        is_long = len(word) >= LONG_WORD
        if piece and (is_long or len(piece) == PIECE_WORDS or size >= PIECE_CHARS):
            yield piece
            piece, size = [], 0
        piece.append(word)
        size += len(word)
        if is_long:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece
