"""A comparison's report as a static Space: one page that needs no server."""

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path, PureWindowsPath

from hftl.errors import PublishError, UserError
from hftl.hub.card import TAG
from hftl.hub.files import CARD, Problem, check_texts, find_path
from hftl.hub.stage import check_repo_id
from hftl.hub.upload import Target, check_token, send

logger = logging.getLogger(__name__)

TEXTS = (".html", ".md", ".json")
FRONT = """---
title: {title}
sdk: static
app_file: index.html
pinned: false
tags: [{tag}]
---
"""


def push_report(
    folder: Path,
    repo_id: str,
    *,
    public: bool = False,
    dry_run: bool = False,
    say: Callable[[str], None] = logger.info,
) -> str | None:
    """Publish the report of `hftl compare`.

    Args:
        folder: what `hftl compare --output_dir` wrote.
        repo_id: of the Space.
        public: let everybody see it.
        dry_run: name the files, send nothing.
        say: takes the lines that a user wants to see.

    Raises:
        UserError: there is no report, or the Space holds something else.
        PublishError: a secret is in it, or not all was sent.
    """
    check_repo_id(repo_id)
    if not (folder / "report.html").is_file():
        raise UserError(f"{folder} has no report.html; write it with `hftl report {folder}`.")
    if not dry_run:
        check_token()
    files = {"index.html": folder / "report.html"}
    files |= {name: folder / name for name in ("report.md", "results.json") if (folder / name).is_file()}
    files |= {f"figures/{path.name}": path for path in sorted((folder / "figures").glob("*.png"))}
    problems: list[Problem] = check_texts(files.values())
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise PublishError(f"The report in {folder} is not published:{listed}\nNothing was sent.")
    with tempfile.TemporaryDirectory(prefix="hftl-push-") as work:
        for line in shorten_paths(files, Path(work)):
            say(line)
        card = Path(work) / CARD
        card.write_text(FRONT.format(title=repo_id.partition("/")[2], tag=TAG), encoding="utf-8")
        files[CARD] = card
        if dry_run:
            for path, file in files.items():
                say(f"{file.stat().st_size:>15,}  {path}")
            return None
        target = Target(repo_id, "space", is_public=public)
        try:
            progress = send(target, files, "Publish the report of hftl compare")
        except PublishError as error:
            raise PublishError(f"{error}\nType the same command again: what has arrived is not sent twice.") from error
    return f"spaces/{repo_id} at {progress.commit}"


def shorten_paths(files: dict[str, Path], work: Path) -> list[str]:
    """Replace texts that name paths of this machine by copies that hold only the last part of each.

    Args:
        files: path in the repository -> local file; changed.
        work: folder for the copies.

    Returns:
        A line for each file that is not sent as it is.

    Raises:
        PublishError: a path cannot be taken out.
    """
    lines = []
    for name, file in list(files.items()):
        if file.suffix not in TEXTS:
            continue
        text, found = file.read_text(encoding="utf-8", errors="replace"), []
        while local := find_path(file, text):
            if local in found or local not in text:  # written with escapes
                raise PublishError(
                    f"absolute path: {file} holds {local}, which is of this machine.\nNothing was sent."
                )
            text = text.replace(local, PureWindowsPath(local).name)
            found.append(local)
        if found:
            files[name] = work / name
            files[name].write_text(text, encoding="utf-8")
            lines.append(f"{name}: paths of this machine are sent as their last part ({', '.join(found[:3])})")
    return lines
