"""The ways a command can fail, and the exit code of each.

Every error that a user can cause is one of these, with a message that says what was found, what was expected and
what to do. Anything else that escapes is a bug of ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable

MAX_LENGTH = 2000  # characters of a message; what libraries say of a wide table has no end of its own
MAX_NAMES = 20  # that are listed


class Said(Exception):
    """What a user reads: of a message that is too long, the beginning and the end, where the advice is."""

    def __init__(self, message: object = "") -> None:
        super().__init__(shorten(str(message)))


class UserError(Said, ValueError):
    """A configuration or data error found before training: exit code 2."""

    exit_code = 2


class TrainingDiverged(Said, RuntimeError):
    """The loss or a gradient stopped being finite: exit code 3."""

    exit_code = 3


class OutOfResources(Said, RuntimeError):
    """Memory or disk ran out: exit code 4."""

    exit_code = 4


class Interrupted(KeyboardInterrupt):
    """A signal ended the run, which can be resumed: exit code 75 (EX_TEMPFAIL), which schedulers take for "again".

    No `Exception`: what catches those to go on with other work must not catch this.
    """

    exit_code = 75


class ResumeDiffers(Said, RuntimeError):
    """A resumed run is not the uninterrupted one: exit code 1."""

    exit_code = 1


class PublishError(Said, RuntimeError):
    """The run is complete in its folder, but it was not published, or not all of it: exit code 5."""

    exit_code = 5


def printable(text: str) -> str:
    """The text with what no terminal and no file takes, halves of surrogate pairs, as `\\udce9`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def shorten(text: str, limit: int = MAX_LENGTH) -> str:
    """The text, or its beginning and its end with what is left out between them counted."""
    text = printable(text)
    if len(text) <= limit:
        return text
    kept = limit - 60
    head, tail = text[: kept * 2 // 3], text[-(kept // 3) :]
    return f"{head} [... {len(text) - len(head) - len(tail):,} characters left out ...] {tail}"


def quote_names(names: Iterable[str], most: int = MAX_NAMES) -> str:
    """`'text', ' label'`: in quotes, so that blanks are seen; of many the first ones and how many more there are."""
    names = [str(name) for name in names]
    quoted = ", ".join(repr(shorten(name, 100)) for name in names[:most])
    return quoted + (f" and {len(names) - most:,} more" if len(names) > most else "")


def unknown_name(kind: str, found: str, valid: Iterable[str], hint: str = "") -> UserError:
    """An error for a name that is not in `valid`: names the nearest one and lists them, or of many the nearest few."""
    valid = sorted(valid)
    near = difflib.get_close_matches(found, valid, n=6, cutoff=0.5)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    say = quote_names if kind == "column" else ", ".join  # users choose the names of columns, blanks and all
    listed = f" Valid: {say(valid)}." if len(valid) <= 30 else f" Similar: {say(near)}." if near else ""
    return UserError(f"Unknown {kind} {found!r}.{guess}{listed}{' ' + hint if hint else ''}")
