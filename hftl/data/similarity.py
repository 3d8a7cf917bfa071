"""Which inputs are nearly the same? Groups of texts that share almost all their words, and of images that look alike.

Both go the same way: many short keys for each input, such that close ones share a key and others hardly ever do; then
each pair that shares one is compared exactly. The work grows with the number of rows, not with its square.
This module must not know splits, labels or what is done about it.
"""

import re
from array import array
from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

# Texts: a pair counts from this weighted Jaccard similarity on. Measured by benchmarks/audit.py (docs/data-audit.md).
TEXT_SIMILARITY = 0.8
MAX_WORD_WEIGHT = 7.0  # a typo is a word that occurs once; it should not weigh more than any other rare word
TEXT_TABLES, TEXT_MINIMA = 24, 5  # a pair of Jaccard similarity 0.8 is missed once in 17,000 times, one of 0.67 in 30

IMAGE_SIMILARITY = 0.995  # cosine of the two signatures
IMAGE_COLOUR = 8.0  # largest difference of the mean of a colour channel, of 255 levels
IMAGE_TABLES, IMAGE_BITS = 24, 24
THUMBNAIL = 32  # pixels
FREQUENCIES = 8  # in each direction, as in the usual 64-bit pHash

MAX_PARTNERS = 32  # of one row under one key: a crowd is a chain of neighbours and costs no more than its length
CHUNK = 200_000  # pairs compared at a time

# Scripts without spaces between words count letter by letter: Thai, kana, Chinese characters.
_LETTERS = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(f"[{_LETTERS}]|[^\\W{_LETTERS}]+")


def list_words(texts: Sequence[str]) -> list[str]:
    """The words of an input without case and punctuation; those of a second text are not those of a first."""
    return [f"{place or ''}{word}" for place, text in enumerate(texts) for word in _WORD.findall(text.casefold())]


def group_texts(inputs: Sequence[Sequence[str]]) -> np.ndarray:
    """Groups near duplicates: MinHash (Broder 1997) finds pairs, a Jaccard similarity with weights decides.

    A word weighs the more the rarer it is (1 + log of the inverse document frequency, at most `MAX_WORD_WEIGHT`), so
    that "the capital of France" and "the capital of Spain" differ in what they say.

    Args:
        inputs: one or more texts each.

    Returns:
        Group number of each input, int [N].
    """
    bags = _count_words(inputs)
    weights = np.minimum(
        1 + np.log(len(inputs) / np.bincount(bags.indices, minlength=bags.shape[1]).clip(1)), MAX_WORD_WEIGHT
    ).astype(np.float32)
    filled = np.flatnonzero(np.diff(bags.indptr))  # an input without words is like no other
    pairs = filled[_pairs_in_buckets(_minhash_keys(bags[filled]))]
    weighted = sparse.csr_matrix((weights[bags.indices], bags.indices, bags.indptr), bags.shape)
    totals = np.asarray(weighted.sum(axis=1)).ravel()

    def is_close(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        shared = np.asarray(weighted[a].multiply(bags[b]).sum(axis=1)).ravel()
        return shared >= TEXT_SIMILARITY * (totals[a] + totals[b] - shared)

    return _connect(len(inputs), pairs, is_close)


def _count_words(inputs: Sequence[Sequence[str]]) -> sparse.csr_matrix:
    """1 where an input has a word, float32 [N, V]."""
    vocabulary: dict[str, int] = {}
    words, ends = array("i"), array("q", [0])
    for texts in inputs:  # no sets: their order, and with it the last digit of the recall, differs between processes
        words.extend([vocabulary.setdefault(word, len(vocabulary)) for word in dict.fromkeys(list_words(texts))])
        ends.append(len(words))
    shape = (len(inputs), max(1, len(vocabulary)))
    return sparse.csr_matrix((np.ones(len(words), np.float32), np.array(words), np.array(ends)), shape)


def _minhash_keys(bags: sparse.csr_matrix) -> np.ndarray:
    """Keys of each row, uint64 [N, TEXT_TABLES]: each is made of the smallest word under several random orders.

    Orders are permutations of the vocabulary, a gather and a minimum each: 117,000 glosses take 1 s. datasketch 2.0,
    which hashes word by word, takes 22 s for the same (benchmarks/audit.py).
    """
    draw = np.random.default_rng(0)
    keys = np.zeros((bags.shape[0], TEXT_TABLES), np.uint64)
    for table in range(TEXT_TABLES):
        for _ in range(TEXT_MINIMA):
            order = draw.permutation(bags.shape[1]).astype(np.uint32)
            smallest = np.minimum.reduceat(order[bags.indices], bags.indptr[:-1])
            keys[:, table] = _mix(keys[:, table], smallest)
    return keys


def _mix(key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """One more number in a 64-bit key (the multiplication and shift of splitmix64)."""
    key = (key ^ value.astype(np.uint64)) * np.uint64(0xBF58476D1CE4E5B9)
    return key ^ (key >> np.uint64(31))


def describe_images(pixels: np.ndarray) -> np.ndarray:
    """What of each image survives another encoding and a small change of size.

    The lowest frequencies of the grey thumbnail, as in pHash (Zauner 2010), but as numbers instead of bits, which is
    what lets look-alikes be told apart. Each is multiplied by its frequency, because in natural images its size
    falls with it (Field 1987). The mean of each colour comes last.

    Args:
        pixels: RGB thumbnails, [N, THUMBNAIL, THUMBNAIL, 3], 0 to 255.

    Returns:
        float32 [N, FREQUENCIES ** 2 - 1 + 3]; all frequencies are 0 where the image is of one shade.
    """
    pixels = pixels.astype(np.float32)
    spectra = _COSINES @ (pixels @ _GREY) @ _COSINES.T * _RADIUS  # [N, FREQUENCIES, FREQUENCIES]
    return np.concatenate([spectra.reshape(len(pixels), -1)[:, 1:], pixels.mean(axis=(1, 2))], axis=1)


_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_COSINES = np.cos(  # rows of the orthonormal DCT-II, without the scale of the first, which is not used
    np.pi / THUMBNAIL * (np.arange(THUMBNAIL)[None] + 0.5) * np.arange(FREQUENCIES)[:, None]
).astype(np.float32) * np.float32(np.sqrt(2 / THUMBNAIL))
_RADIUS = np.hypot(*np.meshgrid(np.arange(FREQUENCIES), np.arange(FREQUENCIES))).astype(np.float32)
MIN_CONTRAST = 50.0  # length of the spectrum below which an image has one shade only; a weak gradient has about 100


def group_images(signatures: np.ndarray) -> np.ndarray:
    """Groups images that look alike: random hyperplanes (Charikar 2002) find pairs, cosine and colour decide.

    Args:
        signatures: of `describe_images`, [N, D].

    Returns:
        Group number of each image, int [N].
    """
    spectra, colours = signatures[:, :-3], signatures[:, -3:]
    contrast = np.linalg.norm(spectra, axis=1)
    textured = np.flatnonzero(contrast > MIN_CONTRAST)
    if len(textured) < 2:
        return np.arange(len(signatures))
    units = np.zeros_like(spectra)
    units[textured] = spectra[textured] / contrast[textured, None]
    # The mean is taken off because pictures of one kind lie in a narrow cone, which few planes through 0 would cut.
    centred = units[textured] - units[textured].mean(axis=0)
    planes = np.random.default_rng(0).normal(size=(centred.shape[1], IMAGE_TABLES * IMAGE_BITS)).astype(np.float32)
    keys = np.empty((len(textured), IMAGE_TABLES), np.uint64)
    for table in range(IMAGE_TABLES):
        sides = centred @ planes[:, table * IMAGE_BITS : (table + 1) * IMAGE_BITS] > 0  # [N, IMAGE_BITS]
        keys[:, table] = sides @ (np.uint64(1) << np.arange(IMAGE_BITS, dtype=np.uint64))

    def is_close(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        cosine = np.einsum("nd,nd->n", units[a], units[b])
        return (cosine >= IMAGE_SIMILARITY) & (np.abs(colours[a] - colours[b]).max(axis=1) <= IMAGE_COLOUR)

    return _connect(len(signatures), textured[_pairs_in_buckets(keys)], is_close)


def _pairs_in_buckets(keys: np.ndarray) -> np.ndarray:
    """Pairs of rows that have a key in common, each once, int64 [M, 2]."""
    num_rows = len(keys)
    found = [np.empty(0, np.int64)]
    for column in keys.T:
        order = np.argsort(column, kind="stable")
        column = column[order]
        for step in range(1, min(MAX_PARTNERS, num_rows - 1) + 1):
            same = np.flatnonzero(column[step:] == column[:-step])
            if not len(same):
                break
            found.append(order[same] * num_rows + order[same + step])  # a stable sort keeps the smaller row first
    codes = np.sort(np.concatenate(found))
    codes = codes[np.diff(codes, prepend=-1) > 0]  # np.unique of numpy 2.4 hashes: thirty times slower here
    return np.stack([codes // num_rows, codes % num_rows], axis=1)


def _connect(num_rows: int, pairs: np.ndarray, is_close) -> np.ndarray:
    """Group numbers from the pairs that are close, and chains of them."""
    kept = [np.empty((0, 2), np.int64)]
    for start in range(0, len(pairs), CHUNK):
        part = pairs[start : start + CHUNK]
        kept.append(part[is_close(part[:, 0], part[:, 1])])
    links = np.concatenate(kept)
    graph = sparse.coo_matrix((np.ones(len(links), bool), (links[:, 0], links[:, 1])), (num_rows, num_rows))
    return connected_components(graph, directed=False)[1]
