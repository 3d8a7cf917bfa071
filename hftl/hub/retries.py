"""Which trouble with the Hub may pass, how long is it waited for, and how is it named without a token in it?"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub import get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session, httpx

from hftl.runtime.files import redact

logger = logging.getLogger(__name__)

WAITS = (1, 2, 4, 8, 16)  # seconds before each further try
SILENCE_SECONDS = 300  # after which a connection counts as dead; the client itself waits for ever
LONGEST_WAIT = 300  # that a server may ask for
AGAIN = {408, 409, 412, 425, 429}  # and 5xx; 409 and 412: somebody else has committed, so look again
T = TypeVar("T")


def hide(text: str) -> str:
    """Without the token, whatever it looks like."""
    token = get_token()
    text = redact(text)
    return text.replace(token, "[redacted]") if token else text


@contextmanager
def impatient() -> Iterator[None]:
    """A client that gives up a silent connection."""
    session = get_session()
    before, session.timeout = session.timeout, SILENCE_SECONDS
    try:
        yield
    finally:
        session.timeout = before


def retried(function: Callable[[], T]) -> T:
    """What `function` returns, which is called again after trouble that may pass."""
    for wait in (*WAITS, None):
        try:
            return function()
        except (HfHubHTTPError, httpx.TransportError, RuntimeError) as error:
            if wait is None or not _may_pass(error):
                raise
            seconds = _asked_wait(error) or wait
            logger.warning("The Hub: %s. Next try in %d s.", hide(name_error(error)), seconds)
            time.sleep(seconds)
    raise AssertionError("the last try returns or raises")


def _may_pass(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        status = read_status(error)
        return status in AGAIN or (status is not None and status >= 500)
    return isinstance(error, httpx.TransportError) or str(error).startswith("Error while uploading")


def read_status(error: Exception) -> int | None:
    """Of an answer of HTTP; None for all other trouble."""
    response = getattr(error, "response", None)
    return None if response is None else response.status_code


def _asked_wait(error: Exception) -> int | None:
    response = getattr(error, "response", None)
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    return min(int(asked) + 1, LONGEST_WAIT) if asked.isdecimal() else None


def name_error(error: Exception) -> str:
    """Its class and the first line of what it says."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
