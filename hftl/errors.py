"""The ways a command can fail, and the exit code of each.

Every error that a user can cause is one of these, with a message that says what was found, what was expected and
what to do. Anything else that escapes is a bug of ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A configuration or data error found before training: exit code 2."""

    exit_code = 2


class TrainingDiverged(RuntimeError):
    """The loss or a gradient stopped being finite: exit code 3."""

    exit_code = 3


class OutOfResources(RuntimeError):
    """Memory or disk ran out: exit code 4."""

    exit_code = 4


class Interrupted(KeyboardInterrupt):
    """A signal ended the run, which can be resumed: exit code 75 (EX_TEMPFAIL), which schedulers take for "again".

    No `Exception`: what catches those to go on with other work must not catch this.
    """

    exit_code = 75


class ResumeDiffers(RuntimeError):
    """A resumed run is not the uninterrupted one: exit code 1."""

    exit_code = 1


class PublishError(RuntimeError):
    """The run is complete in its folder, but it was not published, or not all of it: exit code 5."""

    exit_code = 5


def unknown_name(kind: str, found: str, valid: Iterable[str], hint: str = "") -> UserError:
    """An error for a name that is not in `valid`: names the nearest one and lists them, or of many the nearest few."""
    valid = sorted(valid)
    near = difflib.get_close_matches(found, valid, n=6, cutoff=0.5)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    listed = f" Valid: {', '.join(valid)}." if len(valid) <= 30 else f" Similar: {', '.join(near)}." if near else ""
    return UserError(f"Unknown {kind} {found!r}.{guess}{listed}{' ' + hint if hint else ''}")
