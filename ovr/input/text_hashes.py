"""Hashes of words and of runs of their characters, the same on every machine. Knows nothing of tokens.

F = words, U = different words, Q = hashes of these, P = n-grams
"""

import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]

CACHED_WORDS = 1 << 16
CACHED_CHARS = 40  # of a word; longer ones are hashed anew each time
MANY_WORDS = 512  # different ones, from which on all at once is faster than one by one
PIECE_CHARS = 1 << 16  # of a word whose runs are hashed at a time

# Odd 64-bit constants of splitmix64 (Steele et al. 2014) and of Weyl's sequence.
_MIX_A, _MIX_B, PAIR = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB), np.uint64(0x9E3779B97F4A7C15)
_CHARS_SALT = 0x63686172  # of checksums of character n-grams, so that "the" as a word and within one are different tokens
_POLYNOMIAL = np.uint32(0xEDB88320)  # of CRC-32, as zlib has it


def mixed(hash_P: U64) -> U64:
    """Return hashes whose every bit depends on every bit of the given ones (the finaliser of splitmix64); 64 bits wrap."""
    hash_P = hash_P + PAIR
    hash_P = (hash_P ^ (hash_P >> np.uint64(30))) * _MIX_A
    hash_P = (hash_P ^ (hash_P >> np.uint64(27))) * _MIX_B
    return hash_P ^ (hash_P >> np.uint64(31))


def hashes_of_word(word: str, shortest: int, longest: int) -> U64:
    """Return the hash of a word and then those of its runs of `shortest` to `longest` characters; with 0, of the word alone."""
    return (_cached_hashes if len(word) <= CACHED_CHARS else _hashes)(word, shortest, longest)


def hashes_of_words(words: Sequence[str], chars: tuple[int, int] | None) -> tuple[U64, I64, I64]:
    """Return hashes (Q,) of the different words, for each word where its own is (F,), and how many of its runs follow it (F,)."""
    number_of: dict[str, int] = {}
    number_F = np.array([number_of.setdefault(word, len(number_of)) for word in words], np.int64)
    if chars is not None and len(number_of) >= MANY_WORDS:
        hash_Q, size_U = _hashes_of_many(list(number_of), *chars)
    else:
        pieces = [hashes_of_word(word, *(chars or (0, 0))) for word in number_of]
        size_U = np.array([len(piece) for piece in pieces], np.int64)
        hash_Q = np.concatenate([np.zeros(0, np.uint64), *pieces])
    return hash_Q, (np.cumsum(size_U) - size_U)[number_F], size_U[number_F] - 1


def hashes_of_runs(hash_Q: U64, at_F: I64, size_F: I64) -> U64:
    """Return the hashes (P,) of the runs of characters of each word, of what `hashes_of_words` returned."""
    within_P = np.arange(size_F.sum()) - np.repeat(np.cumsum(size_F) - size_F, size_F)
    hash_P: U64 = hash_Q[np.repeat(at_F, size_F) + 1 + within_P]
    return hash_P


def runs_of_long_word(word: str, shortest: int, longest: int) -> Iterator[U64]:
    """Yield, piece by piece, the hashes of a word's runs as `hashes_of_word` has them; it is longer than any of them."""
    padded = f" {word} "
    for length in range(shortest, longest + 1):
        for start in range(0, len(padded) - length + 1, PIECE_CHARS):
            piece = padded[start : start + PIECE_CHARS + length - 1]
            yield mixed(_checksums(np.frombuffer(piece.encode("utf-32-le", "surrogatepass"), "<u4"), length).astype(np.uint64))


def _hashes_of_many(words: Sequence[str], shortest: int, longest: int) -> tuple[U64, I64]:
    """Return the hashes of words, as `hashes_of_word` has them one by one, and how many are of each (U,)."""
    padded = "".join(f" {word} " for word in words)
    character_L = np.frombuffer(padded.encode("utf-32-le", "surrogatepass"), "<u4")
    length_U = np.array([len(word) + 2 for word in words], np.int64)
    start_U = np.cumsum(length_U) - length_U
    num_of_length = [
        np.maximum(0, length_U - n + 1) if n >= shortest else (length_U == n).astype(np.int64) for n in range(1, longest + 1)
    ]
    size_U = 1 + sum(num_of_length, np.zeros(len(words), np.int64))
    at_U = np.cumsum(size_U) - size_U
    checksum_Q = np.zeros(size_U.sum(), np.uint64)
    checksum_Q[at_U] = [zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words]
    at_U += 1
    for n, num_U in enumerate(num_of_length, start=1):
        if num_U.any():
            within_P = np.arange(num_U.sum()) - np.repeat(np.cumsum(num_U) - num_U, num_U)
            checksum_Q[np.repeat(at_U, num_U) + within_P] = _checksums(character_L, n)[np.repeat(start_U, num_U) + within_P]
            at_U += num_U
    return mixed(checksum_Q), size_U


def _checksums(character_L: U32, length: int) -> U32:
    """Return the checksums (L - length + 1,) of the UTF-8 bytes of each run of so many characters."""
    size_L = np.digitize(character_L, (0x80, 0x800, 0x10000)).astype(np.uint32) + np.uint32(1)
    lead_L = np.array([0, 0, 0xC0, 0xE0, 0xF0], np.uint32)[size_L]
    crc_P = np.full(len(character_L) - length + 1, ~np.uint32(_CHARS_SALT), np.uint32)
    bytes_L = []
    for number in range(int(size_L.max())):
        bits_L = character_L >> (np.uint32(6) * (np.maximum(size_L, number + 1) - np.uint32(number + 1)))
        bytes_L.append(lead_L | bits_L if number == 0 else 0x80 | (bits_L & 0x3F))
    for at in range(length):
        of_run = slice(at, at + len(crc_P))
        for number, byte_L in enumerate(bytes_L):
            next_P = _TABLE[(crc_P ^ byte_L[of_run]) & 0xFF] ^ (crc_P >> 8)
            crc_P = next_P if number == 0 else np.where(size_L[of_run] > number, next_P, crc_P)
    return ~crc_P


def _table() -> U32:
    value_B = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        value_B = np.where(value_B & 1, (value_B >> 1) ^ _POLYNOMIAL, value_B >> 1)
    return value_B


def _hashes(word: str, shortest: int, longest: int) -> U64:
    checksums = [zlib.crc32(word.encode("utf-8", "surrogatepass"))]
    if longest:
        padded = f" {word} "
        size = len(padded)
        runs = [padded[at : at + n] for n in range(shortest, min(longest, size) + 1) for at in range(size - n + 1)] or [padded]
        checksums += [zlib.crc32(run.encode("utf-8", "surrogatepass"), _CHARS_SALT) for run in runs]
    return mixed(np.array(checksums, np.uint64))


_cached_hashes = lru_cache(maxsize=CACHED_WORDS)(_hashes)
_TABLE = _table()
