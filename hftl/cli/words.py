"""What the verbs share: parsing of words, logs, and where shipped configurations are."""

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from hftl.errors import UserError, unknown_name
from hftl.runtime.cpu import limit_spinning

PACKAGE = Path(__file__).parents[1]


class Parser(argparse.ArgumentParser):
    """Mistakes are errors like all others; an unknown flag gets the nearest one named."""

    def error(self, message: str) -> NoReturn:
        unknown = message.partition("unrecognized arguments: ")[2]
        if unknown.startswith("--"):
            raise unknown_name("flag", unknown.split()[0].split("=")[0], self._option_string_actions)
        raise UserError(message)


def take_flag(argv: list[str], flag: str) -> tuple[list[str], str | None]:
    for index, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name in (flag, flag.replace("_", "-")):
            if equals:
                return argv[:index] + argv[index + 1 :], value
            if index + 1 == len(argv):
                raise UserError(f"{flag} needs a file.")
            return argv[:index] + argv[index + 2 :], argv[index + 1]
    return argv, None


def print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


def default_config(name: str) -> Path:
    """A shipped configuration, in the wheel or in a checkout."""
    inside = PACKAGE / "recipes" / "configs" / name
    return inside if inside.is_file() else PACKAGE.parent / "recipes" / "configs" / name


def find_process_start() -> float:
    import psutil

    return min(time.time(), psutil.Process().create_time())


def prepare_libraries() -> None:
    """For verbs that compute: threads that hardly spin, logs of ours alone."""
    limit_spinning()
    configure_logging()
    quiet_libraries()


def configure_logging() -> None:
    """Our own messages in full; of the libraries, errors only, and progress bars where somebody watches."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("hftl").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")


def quiet_libraries() -> None:
    import datasets
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
