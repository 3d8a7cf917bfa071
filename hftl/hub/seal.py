"""Has somebody edited a card since hftl wrote it? The last line of a card is the digest of the lines above.

Everything above counts, the metadata too: a licence that was added by hand is work that a push must not undo.
"""

import hashlib
import re

SEAL = re.compile(r"\n*<!-- written by hftl ([0-9a-f]{16}); a card that was edited by hand is kept -->\s*\Z")


def seal(card: str) -> str:
    """A card with its digest at the end."""
    card = SEAL.sub("", card).rstrip()
    return f"{card}\n\n<!-- written by hftl {_compute_digest(card)}; a card that was edited by hand is kept -->\n"


def is_as_written(card: str) -> bool:
    """Whether hftl wrote every letter of it."""
    card = card.replace("\r\n", "\n")
    match = SEAL.search(card)
    return match is not None and match[1] == _compute_digest(card[: match.start()].rstrip())


def _compute_digest(card: str) -> str:
    return hashlib.sha256(card.encode()).hexdigest()[:16]
