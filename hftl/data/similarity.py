"""Which inputs are nearly the same? Groups of texts that share almost all their words, and of images that look alike.

Both go the same way: many short keys for each input, such that close ones share a key and others hardly ever do; then
each pair that shares one is compared exactly. The work grows with the number of rows, not with its square.
This module must not know splits, labels or what is done about it.
"""

import re
import unicodedata
from array import array
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
from scipy import sparse

from hftl.data.buckets import connect, find_pairs, keep_close, make_gap_keys, mix
from hftl.data.spelling import is_slip, make_letter_keys, match_spellings

# Texts: a pair counts from this weighted Jaccard similarity on. Measured by benchmarks/audit.py (docs/data-audit.md).
TEXT_SIMILARITY = 0.8
MAX_WORD_WEIGHT = 7.0  # a typo is a word that occurs once; it should not weigh more than any other rare word
TEXT_TABLES, TEXT_MINIMA = 24, 5  # a pair of Jaccard similarity 0.8 is missed once in 17,000 times, one of 0.67 in 30
SHORT_TEXT = 9  # words, up to which MinHash may miss a pair that differs in two of them
MIN_LETTERS, FEW_LETTERS, MAX_LETTERS = 12, 80, 200  # of texts compared letter by letter; few: one letter may differ

IMAGE_SIMILARITY = 0.995  # cosine of the two signatures
IMAGE_COLOUR = 8.0  # largest difference of the mean of a colour channel, of 255 levels
IMAGE_TABLES, IMAGE_BITS = 24, 24
THUMBNAIL = 32  # pixels
FREQUENCIES = 8  # in each direction, as in the usual 64-bit pHash

# Scripts without spaces between words count letter by letter: Thai, kana, Chinese characters.
_LETTERS = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_DIGIT = re.compile(r"\d")
_WORD = re.compile(f"[{_LETTERS}]|[^\\W{_LETTERS}]+")


def list_words(texts: Sequence[str]) -> list[str]:
    """The words of an input without case and punctuation; those of a second text are not those of a first."""
    return _tell_apart(map(_split, texts))


def _split(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _tell_apart(texts: Iterable[Sequence[str]]) -> list[str]:
    return [f"{place or ''}{word}" for place, words in enumerate(texts) for word in words]


def group_texts(inputs: Sequence[Sequence[str]]) -> np.ndarray:
    """Groups near duplicates: shared keys find pairs, a Jaccard similarity with weights decides.

    A word weighs the more the rarer it is (1 + log of the inverse document frequency, at most `MAX_WORD_WEIGHT`), so
    that "the capital of France" and "the capital of Spain" differ in what they say. Two spellings of a word
    (`spelling`) are one. Keys are those of MinHash (Broder 1997) and, as it misses some short texts, those of their
    words without each one or two. Short texts with the same letters are compared by themselves: where a space is lost,
    or an "a" mistyped, most of what few words weigh is another.

    Args:
        inputs: one or more texts each.

    Returns:
        Group number of each input, int [N].
    """
    bags, vocabulary, letters = _read_words(inputs)
    compare = _Comparison(bags, vocabulary)
    links = [
        keep_close(_find_shared_words(bags), compare.share_words),
        keep_close(_find_shared_letters(letters), compare.differ_in_slips),
    ]
    return connect(np.concatenate(links), len(inputs))


def _find_shared_words(bags: sparse.csr_matrix) -> np.ndarray:
    """Pairs of texts that may have most of their words in common, int64 [M, 2]."""
    filled = np.flatnonzero(np.diff(bags.indptr))  # an input without words is like no other
    used, rows = bags[filled], np.arange(len(filled))
    minhash = ((keys, rows) for keys in _minhash_keys(used).T)
    used.sort_indices()
    return filled[find_pairs(chain(minhash, make_gap_keys(used.indices, used.indptr, _count_gaps)), len(filled))]


def _find_shared_letters(letters: Sequence[str]) -> np.ndarray:
    """Pairs of texts of which all letters are equal, or all but one where they are few, int64 [M, 2]."""
    usable = np.flatnonzero([len(text) >= MIN_LETTERS for text in letters])
    keys = make_letter_keys([letters[index] for index in usable], lambda length: int(length <= FEW_LETTERS))
    return usable[find_pairs(keys, len(usable))]


class _Comparison:
    """Two ways to tell whether the texts of a pair are close."""

    def __init__(self, bags: sparse.csr_matrix, vocabulary: Sequence[str]):
        self.bags = bags
        self.counts = np.bincount(bags.indices, minlength=bags.shape[1]).clip(1)
        weights = np.minimum(1 + np.log(bags.shape[0] / self.counts), MAX_WORD_WEIGHT).astype(np.float32)
        self.weighted = bags.multiply(weights).tocsr()
        self.totals = _sum_rows(self.weighted)
        spellings = match_spellings(vocabulary, self.counts)
        both = np.concatenate([spellings, spellings[:, ::-1]])
        self.respelt = sparse.csr_matrix((weights[both].mean(axis=1), both.T), (len(weights), len(weights)))

    def share_words(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Weighted Jaccard similarity; two spellings of a word are one word of their mean weight."""
        shared, rest_a, rest_b = self._divide(a, b)
        weight = _sum_rows(self.weighted[a].multiply(shared)) + _sum_rows((rest_a @ self.respelt).multiply(rest_b))
        return weight >= TEXT_SIMILARITY * (self.totals[a] + self.totals[b] - weight)

    def differ_in_slips(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Of texts with the same letters, all or all but one: whether nobody else would write one of them."""
        _, rest_a, rest_b = self._divide(a, b)
        rest = rest_a + rest_b
        commonest = rest.multiply(self.counts).max(axis=1).toarray().ravel()
        share = rest.multiply(1 / self.counts).max(axis=1).toarray().ravel()
        return (share == 0) | is_slip(np.rint(1 / share.clip(1e-9)), commonest, 1)

    def _divide(self, a: np.ndarray, b: np.ndarray) -> tuple[sparse.csr_matrix, ...]:
        """The words that both have, those that only the first has, and only the second, each [M, V]."""
        shared = self.bags[a].multiply(self.bags[b])
        return shared, self.bags[a] - shared, self.bags[b] - shared


def _sum_rows(matrix: sparse.csr_matrix) -> np.ndarray:
    return np.asarray(matrix.sum(axis=1)).ravel()


def _count_gaps(num_words: int) -> int:
    """How many words of a text may be others, where MinHash may miss it."""
    return -1 if num_words > SHORT_TEXT else min(2, num_words - 1)


def _read_words(inputs: Sequence[Sequence[str]]) -> tuple[sparse.csr_matrix, list[str], list[str]]:
    """1 where an input has a word, float32 [N, V], the words, and the letters of each input, of a long one none."""
    vocabulary: dict[str, int] = {}
    numbers, ends, letters = array("i"), array("q", [0]), []
    for texts in inputs:  # no sets: their order, and with it the last digit of the recall, differs between processes
        words = [_split(text) for text in texts]
        numbers.extend([vocabulary.setdefault(word, len(vocabulary)) for word in dict.fromkeys(_tell_apart(words))])
        ends.append(len(numbers))
        joined = "\n\n".join(map("".join, words))
        # One letter may differ, so two stand for what may not: a digit, and where a second text begins.
        letters.append(_DIGIT.sub(r"\g<0>\g<0>", joined) if len(joined) <= MAX_LETTERS else "")
    shape = (len(inputs), max(1, len(vocabulary)))
    bags = sparse.csr_matrix((np.ones(len(numbers), np.float32), np.array(numbers), np.array(ends)), shape)
    return bags, list(vocabulary), letters


def _minhash_keys(bags: sparse.csr_matrix) -> np.ndarray:
    """Keys of each row, uint64 [N, TEXT_TABLES]: each is made of the smallest word under several random orders.

    Orders are permutations of the vocabulary, a gather and a minimum each: 117,000 glosses take 1 s. datasketch 2.0,
    which hashes word by word, takes 22 s for the same (`python -m benchmarks.audit`).
    """
    draw = np.random.default_rng(0)
    keys = np.zeros((bags.shape[0], TEXT_TABLES), np.uint64)
    for table in range(TEXT_TABLES):
        for _ in range(TEXT_MINIMA):
            order = draw.permutation(bags.shape[1]).astype(np.uint32)
            smallest = np.minimum.reduceat(order[bags.indices], bags.indptr[:-1])
            keys[:, table] = mix(keys[:, table], smallest)
    return keys


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
    rows, tables = np.arange(len(textured)), []
    for table in range(IMAGE_TABLES):
        sides = centred @ planes[:, table * IMAGE_BITS : (table + 1) * IMAGE_BITS] > 0  # [N, IMAGE_BITS]
        tables.append((sides @ (np.uint64(1) << np.arange(IMAGE_BITS, dtype=np.uint64)), rows))

    def is_close(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        cosine = np.einsum("nd,nd->n", units[a], units[b])
        return (cosine >= IMAGE_SIMILARITY) & (np.abs(colours[a] - colours[b]).max(axis=1) <= IMAGE_COLOUR)

    return connect(keep_close(textured[find_pairs(tables, len(textured))], is_close), len(signatures))
