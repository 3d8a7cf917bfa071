"""What happens to a text that is copied: edits that leave what it says, and beside them one that does not."""

import random
from collections.abc import Callable

ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def restyle(text: str, draw: random.Random) -> str:
    """Other case, punctuation and white space, the same words."""
    style = draw.choice((str.upper, str.title, str.lower))
    return "  " + style(text).replace(",", "").replace("; ", " - ").replace(" ", "\t ", 2) + draw.choice("!.?") + "\n"


def mistype(text: str, draw: random.Random) -> str:
    """One letter replaced, left out, put in, or in the place of the next character (Damerau 1964)."""
    place = draw.choice([index for index, letter in enumerate(text) if letter.isalpha()])
    before, letter, after = text[:place], text[place], text[place + 1 :]
    return draw.choice(
        (
            before + draw.choice(ALPHABET.replace(letter.lower(), "")) + after,
            before + after,
            before + draw.choice(ALPHABET) + letter + after,
            before + after[:1] + letter + after[1:],
        )
    )


def mistype_twice(text: str, draw: random.Random) -> str:
    return mistype(mistype(text, draw), draw)


def change_article(text: str, draw: random.Random) -> str:
    """One article left out, where there is one, in half of the cases; else one put in anywhere."""
    words = text.split()
    articles = [index for index, word in enumerate(words) if word in ("a", "an", "the")]
    if articles and draw.random() < 0.5:
        del words[draw.choice(articles)]
    else:
        words.insert(draw.randrange(len(words) + 1), draw.choice(("a", "the")))
    return " ".join(words)


def change_order(text: str, draw: random.Random) -> str:
    """Two neighbouring words in the other order."""
    words = text.split()
    place = draw.randrange(len(words) - 1)
    words[place : place + 2] = words[place + 1], words[place]
    return " ".join(words)


def change_number(text: str, draw: random.Random) -> str:
    """A word of three letters or more with an s at its end, or without the one that it has."""
    words = text.split()
    place = draw.choice([index for index, word in enumerate(words) if len(word) > 2] or range(len(words)))
    words[place] = words[place][:-1] if words[place].endswith("s") else words[place] + "s"
    return " ".join(words)


def lose_space(text: str, draw: random.Random) -> str:
    words = text.split()
    place = draw.randrange(len(words) - 1)
    words[place : place + 2] = [words[place] + words[place + 1]]
    return " ".join(words)


LIGHT: dict[str, Callable[[str, random.Random], str]] = {
    "case, punctuation, white space": restyle,
    "one letter mistyped": mistype,
    "two letters mistyped": mistype_twice,
    "an article more or less": change_article,
    "two words in the other order": change_order,
    "a final s more or less": change_number,
    "a space lost": lose_space,
}


def replace_words(text: str, count: int, others: list[str], draw: random.Random) -> str:
    """Words replaced by those of other texts, which is not light: it may say something else."""
    words = text.split()
    for place in draw.sample(range(len(words)), min(count, len(words))):
        words[place] = draw.choice(draw.choice(others).split())
    return " ".join(words)
