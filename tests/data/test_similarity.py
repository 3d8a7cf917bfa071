"""Near duplicates: what is found, what is not, and that finding is neither slow nor a matter of chance."""

import io
import itertools
import random
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from hftl.data import similarity
from hftl.data.inputs import _make_thumbnail
from hftl.data.similarity import describe_images, group_images, group_texts, list_words

WORDS = [a + b + c for a, b, c in itertools.product("bdfgklm", "aeiou", ["nt", "rs", "lk", "sp", "m", "x"])]


def make_texts(count, length, seed=0):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=length)) for _ in range(count)]


def share_group(groups, a, b):
    return groups[a] == groups[b]


def photo(seed, size=(64, 48)):
    """Blobs of colour, as different from one seed to the next as photographs."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def recode(image, scale=0.95, quality=60):
    buffer = io.BytesIO()
    image.resize([round(side * scale) for side in image.size]).save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def sign(images):
    return describe_images(np.stack([_make_thumbnail(image) for image in images]))


def test_lightly_edited_texts_are_found_and_others_are_not():
    texts = make_texts(300, 20)
    edited = []
    for index, text in enumerate(texts[:100]):
        words = text.split()
        words[index % 20] = "replaced"
        edited.append(f"  {' '.join(words).upper()} !")
    groups = group_texts([[text] for text in texts + edited])
    assert all(share_group(groups, index, 300 + index) for index in range(100))
    assert len(set(groups)) == 300


def test_case_punctuation_and_white_space_do_not_count():
    groups = group_texts([["The cat, the dog."], ["the  CAT the\tdog"], ["the cat, a horse and its foal"]])
    assert share_group(groups, 0, 1) and not share_group(groups, 0, 2)


def test_a_rare_word_weighs_more_than_a_common_one():
    """Else all glosses of one form would be duplicates of each other."""
    frame = "the basic unit of money in {} equal to one hundred cents"
    countries = [frame.format(name) for name in ("kenya", "somalia", "liberia", "belize", "jamaica", "namibia")]
    others = make_texts(200, 12)
    groups = group_texts([[text] for text in countries + others])
    assert len(set(groups[:6].tolist())) == 6
    unweighted = len({*list_words([countries[0]])} & {*list_words([countries[1]])}) / 12
    assert unweighted > similarity.TEXT_SIMILARITY


def test_a_word_of_the_second_text_is_not_one_of_the_first():
    groups = group_texts([["a b c d", "e f g h"], ["e f g h", "a b c d"], ["a b c d", "e f g h"]])
    assert share_group(groups, 0, 2) and not share_group(groups, 0, 1)


@pytest.mark.parametrize("texts", [["", "!?", "..."], ["..."], ["", "word"]])
def test_texts_without_words_are_like_no_other(texts):
    assert len(set(group_texts([[text] for text in texts]))) == len(texts)


def test_scripts_without_spaces_are_compared_letter_by_letter():
    assert list_words(["我爱 NLP"]) == ["我", "爱", "nlp"]
    base = "自然言語処理の研究は近年急速に進歩している分野である"
    groups = group_texts([[base], [base.replace("急", "高")], ["今日は天気がとても良いので散歩に行きました"]])
    assert share_group(groups, 0, 1) and not share_group(groups, 0, 2)


@pytest.mark.parametrize(
    "edited",
    [
        "a smal bird of northern forests",  # letters
        "a samll bird of nothern forests",  # in two words
        "as mall bird of northern forests",  # spaces
        "a smallbird of northern forests",
        "x small bird of northern forests",
        "small bird of northern forests",  # an article
        "a small bird of forests northern",
        "a small bird of northern forest",
        "A ｓｍａｌｌ bird of northern forests",  # wide letters
    ],
)
@pytest.mark.parametrize("is_alone", [True, False])
def test_a_short_text_with_a_light_edit_is_found(edited, is_alone):
    others = [] if is_alone else [f"{text} a small northern bird of the forest" for text in make_texts(100, 5)]
    groups = group_texts([["a small bird of northern forests"], [edited], *([text] for text in others)])
    assert share_group(groups, 0, 1)
    assert len(set(groups)) == len(groups) - 1


def test_a_light_edit_of_the_second_text_is_found():
    pairs = [["is it raining", "the weather is fine"], ["is it raining", "the weatheris fine"]]
    assert share_group(group_texts([*pairs, *([text, text] for text in make_texts(20, 5))]), 0, 1)


@pytest.mark.parametrize(
    "other",
    [
        "a small fish of northern forests",
        "a small bird of southern forests",
        "a small bird of northern deserts",
        "a small bird",
    ],
)
def test_a_short_text_with_another_word_is_another_text(other):
    assert len(set(group_texts([["a small bird of northern forests"], [other]]))) == 2


def test_words_one_letter_apart_that_many_use_are_two_words():
    frames = ["the house in the {}", "a wind from the {}", "facing {}", "going {} slowly", "{} of here", "the far {}"]
    texts = [frame.format(side) for frame in frames for side in ("east", "west")]
    assert len(set(group_texts([[text] for text in texts]))) == len(texts)


def test_another_number_is_another_text():
    groups = group_texts([["the parliament of the year 1856"], ["the parliament of the year 1857"]])
    assert len(set(groups)) == 2


def test_every_pair_above_the_threshold_is_found():
    """Against a comparison of all with all."""
    draw = random.Random(3)
    texts = make_texts(120, 15)
    for index in range(120):
        words = texts[index].split()
        for place in draw.sample(range(15), draw.randint(1, 4)):
            words[place] = draw.choice(WORDS)
        texts.append(" ".join(words))
    bags = [set(text.split()) for text in texts]
    occurs = {word: sum(word in bag for bag in bags) for word in set().union(*bags)}
    weight = {word: min(1 + np.log(len(texts) / count), similarity.MAX_WORD_WEIGHT) for word, count in occurs.items()}

    def measure(a, b):
        return sum(weight[word] for word in a & b) / sum(weight[word] for word in a | b)

    close = [(i, j) for i, j in itertools.combinations(range(240), 2) if measure(bags[i], bags[j]) >= 0.8001]
    groups = group_texts([[text] for text in texts])
    assert len(close) > 20
    assert all(share_group(groups, i, j) for i, j in close)
    assert 240 - len(set(groups)) <= len(close) + 2


def test_groups_are_the_same_in_every_process():
    code = (
        "from tests.data.test_similarity import *; t = make_texts(80, 12); t += [' '.join(x.split()[:-2]) for x in t];"
        "print(group_texts([[x] for x in t]).tolist())"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(runs) == 1


def test_a_crowd_of_equal_rows_costs_no_more_than_its_length():
    started = time.process_time()
    groups = group_texts([["the same words in every row"]] * 20_000)
    assert len(set(groups)) == 1
    assert time.process_time() - started < 10  # all pairs of them would be 200 million


@pytest.mark.parametrize("scale", [0.95, 1.0, 1.05])
def test_an_image_of_another_size_and_quality_is_found(scale):
    photos = [photo(seed) for seed in range(60)]
    groups = group_images(sign([*photos, *(recode(image, scale) for image in photos)]))
    assert all(share_group(groups, index, 60 + index) for index in range(60))
    assert len(set(groups)) == 60


def test_the_same_picture_in_other_colours_is_another():
    image = photo(1)
    red, green, blue = image.split()
    swapped = Image.merge("RGB", (blue, green.point(lambda level: level // 2), red))
    grey = image.convert("L").convert("RGB")
    darker = grey.point(lambda level: level * 0.8)
    assert len(set(group_images(sign([image, swapped, grey, darker])))) >= 3


def test_images_of_one_shade_are_like_no_other():
    assert len(set(group_images(sign([Image.new("RGB", (9, 9), "red"), Image.new("RGB", (9, 9), "red")])))) == 2


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_every_mode_of_pillow_has_a_signature(mode):
    image = photo(2).convert("L").convert("I").convert(mode) if mode == "I;16" else photo(2).convert(mode)
    assert np.isfinite(sign([image])).all()
