"""What do the tags of words mean? Where an entity begins, goes on and ends, in any of the usual schemes.

A tag is a role and a kind, such as `B-PER`, `b_per`, `PER-B` or `B` alone. The schemes are IOB1, IOB2, IOE, IOBES,
BILOU, BMES and BMEW; which one it is shows in the names of the tags. Must not know rows, words or networks.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

# Scheme -> the roles that it has besides being outside: the first whose roles hold all that are seen is meant.
SCHEMES = {"IOB": "BI", "IOE": "IE", "IOBES": "BIES", "BILOU": "BILU", "BMES": "BMES", "BMEW": "BMEW"}
# The role in IOBES, which is how they are read: begins, inside, ends, single.
ROLES = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S", "W": "S"}
DELIMITERS = "-_:/.|"
OUTSIDE = ("o", "out", "outside")
OUTSIDE_BESIDE_ROLES = (*OUTSIDE, "other", "none", "null", "nil", "0", "_", "-")
UNNAMED = "entity"  # the kind of entities whose tags name none, as in B and I alone

Span = tuple[str, int, int]
"""Kind, first and last word of an entity."""


@dataclass(frozen=True)
class TagScheme:
    """How tags are read.

    Attributes:
        name: key of `SCHEMES`.
        parts: tag -> its role as it is written and its kind; tags that are outside are left out.
        write: role and kind -> tag.
    """

    name: str
    parts: dict[str, tuple[str, str]]
    write: Callable[[str, str], str]

    def find_spans(self, tags: Sequence[str]) -> list[Span]:
        """The entities of a sequence of tags.

        As the CoNLL script counts: what begins without its begin tag begins all the same, so IOB1 is read as well.
        """
        from seqeval.metrics.sequence_labeling import get_entities  # and with it scikit-learn

        return [(kind, first, last) for kind, first, last in get_entities([self._as_iobes(tag) for tag in tags])]

    def begins_late(self, tags: Sequence[str]) -> int:
        """How many entities begin with the tag of an inside or an end."""
        if "B" not in SCHEMES[self.name]:
            return 0
        read = [self._as_iobes(tag) for tag in tags]
        return sum(
            tag[0] in "IE" and (before[0] in "OES" or before[2:] != tag[2:])
            for before, tag in zip(["O", *read], read, strict=False)
        )

    def complete(self) -> set[str]:
        """Every tag of the scheme for the kinds that are there: who has seen B-LOC knows I-LOC."""
        kinds = {kind for _, kind in self.parts.values()}
        is_small = all(role.islower() for role, _ in self.parts.values())
        roles = SCHEMES[self.name].lower() if is_small else SCHEMES[self.name]
        known = {(role.upper(), kind): tag for tag, (role, kind) in self.parts.items()}
        return {known.get((role.upper(), kind)) or self.write(role, kind) for role in roles for kind in kinds}

    def _as_iobes(self, tag: str) -> str:
        if tag not in self.parts:
            return "O"
        role, kind = self.parts[tag]
        return f"{ROLES[role.upper()]}-{kind or UNNAMED}"


def read_scheme(names: Iterable[str]) -> TagScheme | None:
    """The scheme of these tags; None where they are classes of single words, such as parts of speech."""
    names = set(names)
    inside = {name for name in names if name.lower() not in OUTSIDE_BESIDE_ROLES}
    for split, write in _LAYOUTS:
        parts = {name: split(name) for name in inside}
        if not parts or None in parts.values():
            continue
        roles = {role.upper() for role, _ in parts.values()}
        scheme = next((name for name, known in SCHEMES.items() if roles <= set(known)), None)
        if scheme is not None and (write is not _write_role or roles & {"B", "I"}):  # else just letters
            return TagScheme(scheme, parts, write)
    return None


def is_outside(name: str) -> bool:
    """Whether a tag says that a word is nothing, where tags are classes of single words."""
    return name.lower() in OUTSIDE


def odd_tags(names: Iterable[str]) -> list[str]:
    """The tags because of which there is no scheme: most others have a role and a kind."""
    inside = [name for name in names if name.lower() not in OUTSIDE_BESIDE_ROLES]
    for split, _ in _LAYOUTS[:-1]:
        odd = [name for name in inside if split(name) is None]
        if 0 < len(odd) < len(inside) / 2:
            return sorted(odd)
    return []


def _split_prefix(delimiter: str) -> Callable[[str], tuple[str, str] | None]:
    def split(name: str) -> tuple[str, str] | None:
        is_tag = name[:1].upper() in ROLES and name[1:2] == delimiter and len(name) > 2
        return (name[0], name[2:]) if is_tag else None

    return split


def _split_suffix(delimiter: str) -> Callable[[str], tuple[str, str] | None]:
    def split(name: str) -> tuple[str, str] | None:
        is_tag = name[-1:].upper() in ROLES and name[-2:-1] == delimiter and len(name) > 2
        return (name[-1], name[:-2]) if is_tag else None

    return split


def _split_role(name: str) -> tuple[str, str] | None:
    return (name, "") if name.upper() in ROLES else None


def _write_role(role: str, kind: str) -> str:
    return role


_LAYOUTS: list[tuple[Callable, Callable[[str, str], str]]] = [
    *((_split_prefix(mark), lambda role, kind, mark=mark: f"{role}{mark}{kind}") for mark in DELIMITERS),
    *((_split_suffix(mark), lambda role, kind, mark=mark: f"{kind}{mark}{role}") for mark in DELIMITERS),
    (_split_role, _write_role),
]
