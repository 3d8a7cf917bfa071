"""Which rows have a key in common? Keys made of numbers, pairs of rows that share one, and groups from pairs.

This module must not know what the rows are, or which pairs are close.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import combinations

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

MAX_PARTNERS = 32  # of one row under one key: a crowd is a chain of neighbours and costs no more than its length
CHUNK = 200_000  # pairs compared at a time


def mix(key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """One more number in a 64-bit key (the multiplication and shift of splitmix64)."""
    key = (key ^ value.astype(np.uint64)) * np.uint64(0xBF58476D1CE4E5B9)
    return key ^ (key >> np.uint64(31))


def make_gap_keys(
    values: np.ndarray, ends: np.ndarray, count_gaps: Callable[[int], int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A key of each sequence as it is, and without each one of its members, each two of them, and so on.

    Two sequences share a key if they are equal but for that many members that were left out, put in or replaced: the
    deletion neighbourhood of Mor and Fraenkel (1982). A key is the polynomial of Karp and Rabin (1987) modulo 2 ** 64,
    of which the part before a gap is divided by the base.

    Args:
        values: the members of all sequences, one after the other.
        ends: where each sequence ends, after a 0, int [N + 1].
        count_gaps: how many members may be missing from a sequence of this length; negative: it has no key.

    Yields:
        For each number of members that are left, because only such keys can be equal and all at once are many: keys,
        uint64 [K], and the sequence that each belongs to, int64 [K].
    """
    lengths = np.diff(ends)
    sizes = [(length, gaps) for length in np.unique(lengths).tolist() for gaps in range(count_gaps(length) + 1)]
    for num_left in sorted({length - gaps for length, gaps in sizes}):
        keys, owners = [], []
        for length, num_gaps in sizes:
            if length - num_gaps == num_left:
                rows = np.flatnonzero(lengths == length)
                found = [*_hash_with_gaps(values[ends[rows][:, None] + np.arange(length)], num_gaps)]
                keys += found
                owners += [rows] * len(found)
        yield np.concatenate(keys), np.concatenate(owners)


# Any odd base has an inverse modulo 2 ** 64; members are mixed with the salt because small ones would collide.
_SALT, _BASE = np.uint64(0x9E3779B97F4A7C15), 0xD1342543DE82EF95
_INVERSE = pow(_BASE, -1, 2**64)


def _hash_with_gaps(members: np.ndarray, num_gaps: int) -> Iterator[np.ndarray]:
    """The polynomials of the rows [R, L] without each choice of so many columns, each uint64 [R]."""
    length = members.shape[1]
    powers = np.multiply.accumulate(np.full(length + 1, np.uint64(_BASE)))[::-1]
    sums = np.zeros((len(members), length + 1), np.uint64)
    np.cumsum(mix(np.full((1, 1), _SALT), members) * powers[:length], axis=1, out=sums[:, 1:])
    shifts = [np.uint64(pow(_INVERSE, num_gaps - passed, 2**64)) for passed in range(num_gaps + 1)]
    for gaps in combinations(range(length), num_gaps):
        starts, stops = (0, *(gap + 1 for gap in gaps)), (*gaps, length)
        parts = zip(starts, stops, shifts, strict=True)
        yield sum((sums[:, stop] - sums[:, start]) * shift for start, stop, shift in parts)


def find_pairs(tables: Iterable[tuple[np.ndarray, np.ndarray]], num_rows: int) -> np.ndarray:
    """Pairs of rows that share a key of one table, each once, the smaller row first, int64 [M, 2].

    Args:
        tables: keys, uint64 [K], and the row that each belongs to, int [K].
        num_rows: rows there are.
    """
    found = [np.empty(0, np.int64)]
    for keys, owners in tables:
        order = np.argsort(keys, kind="stable")
        keys, owners = keys[order], owners[order]
        for step in range(1, min(MAX_PARTNERS, len(keys) - 1) + 1):
            same = np.flatnonzero(keys[step:] == keys[:-step])
            if not len(same):
                break
            a, b = owners[same], owners[same + step]
            found.append((np.minimum(a, b) * num_rows + np.maximum(a, b))[a != b])  # "aab" is "ab" without either "a"
    codes = np.sort(np.concatenate(found))
    codes = codes[np.diff(codes, prepend=-1) > 0]  # np.unique of numpy 2.4 hashes: thirty times slower here
    return np.stack([codes // num_rows, codes % num_rows], axis=1)


def keep_close(pairs: np.ndarray, is_close: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Those pairs [M, 2] whose rows are close, of which it is asked for many at a time."""
    parts = [pairs[start : start + CHUNK] for start in range(0, len(pairs), CHUNK)]
    return np.concatenate([pairs[:0], *(part[is_close(part[:, 0], part[:, 1])] for part in parts)])


def connect(links: np.ndarray, num_rows: int) -> np.ndarray:
    """Group numbers, int [N], of rows that are linked [M, 2], and chains of them."""
    graph = sparse.coo_matrix((np.ones(len(links), bool), (links[:, 0], links[:, 1])), (num_rows, num_rows))
    return connected_components(graph, directed=False)[1]
