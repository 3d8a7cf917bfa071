"""When does Python look for reference cycles? Not while libraries are imported, nor ever among what they made.

torch, transformers and peft make a great many objects that stay. Looking through them again and again is a sixth of
the time of those imports, and 0.3 s of every full collection that comes later: Trainer makes one before the first
step, a campaign one before each cell. No result depends on it.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Pause the collector and leave what was made out of later collections.

    Nothing once `hftl.training.run` has been imported: there may have been a run in this
    process, whose memory has to come back.
    """
    if "hftl.training.run" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
