"""Did memory or disk run out? One error that says what to change, whoever raised the first one."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from safetensors import SafetensorError

from hftl.errors import OutOfResources

# What torch says of a worker that did not end by itself; an exception in one comes as that exception.
KILLED_WORKER = re.compile(r"DataLoader worker \(pid(\(s\))? [\d, ]+\) (is killed by signal|exited unexpectedly)")

# safetensors and arrow give the text of the system without its number, torch.save neither of them.
FULL_DISK = re.compile(
    "|".join(
        [re.escape(os.strerror(number)) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]
        + [r"inline_container\.cc.*(unexpected pos|PytorchStreamWriter)", "basic_ios::clear: iostream error"]
    )
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says so: by its type, by the name of torch's allocator on a CPU, or in the system's words."""
    words = ("DefaultCPUAllocator", os.strerror(errno.ENOMEM))  # the latter where a file of weights cannot be mapped
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(word in str(error) for word in words)


@contextmanager
def explained_resources() -> Iterator[None]:
    """Turn running out of memory or disk into one error that says what to change."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise OutOfResources(
                f"Out of memory: {error}. Checkpoints saved before are intact. Give --auto_batch true (smaller "
                "micro-batches, the same result), then --gradient_checkpointing true, shorter --max_length or smaller "
                "--image_size, and at last fewer trained weights: --mode peft, with --quantization nf4 on a GPU."
            ) from error
        if KILLED_WORKER.search(str(error)):
            raise OutOfResources(
                f"A data loader process was ended from outside: {error} Most often that is the system, short of "
                "memory. Checkpoints saved before are intact: go on with --resume_from_checkpoint true, and fewer "
                "--dataloader_num_workers (0: none)."
            ) from error
        if FULL_DISK.search(str(error)):
            raise OutOfResources(
                f"The disk is full: {error}. What was saved before is intact. If there is room, it is a quota "
                "(`quota -s`) or a limit of file sizes (`ulimit -f`)."
            ) from error
        raise
