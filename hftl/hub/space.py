"""A comparison's report as a static Space: one page that needs no server."""

import json
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

from hftl.errors import PublishError
from hftl.hub.card import TAG
from hftl.hub.files import CARD, check_texts
from hftl.hub.names import name_all
from hftl.hub.seal import seal
from hftl.hub.stage import check_repo_id
from hftl.hub.upload import Target, check_token, send
from hftl.records import redact
from hftl.report.html import MARKDOWN_FILE, PAGE_FILE, write_report
from hftl.report.reading import RESULTS_FILE, read_results

logger = logging.getLogger(__name__)

TEXTS = (PAGE_FILE, MARKDOWN_FILE, RESULTS_FILE)
ERRORS = {
    False: "of errors, which may quote rows, their kind (--share_rows shows them)",
    True: "errors as they are, with the rows that they quote",
}
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
    share_rows: bool = False,
    dry_run: bool = False,
    say: Callable[[str], None] = logger.info,
) -> str | None:
    """Publish the report of `hftl compare`.

    Args:
        folder: what `hftl compare --output_dir` wrote.
        repo_id: of the Space.
        public: let everybody see it.
        share_rows: show what errors say, which may quote rows of the data.
        dry_run: name the files, send nothing.
        say: takes the lines that a user wants to see.

    Raises:
        UserError: there is no report, or the Space holds something else.
        PublishError: a secret is in it, or not all was sent.
    """
    check_repo_id(repo_id)
    if not dry_run:
        check_token()
    if problems := check_texts(folder / name for name in TEXTS if (folder / name).is_file()):
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise PublishError(f"The report in {folder} is not published:{listed}\nNothing was sent.")
    with tempfile.TemporaryDirectory(prefix="hftl-push-") as work:
        files = render_public(folder, Path(work), share_rows=share_rows)
        say(f"the report is written anew for others: of paths the last part, {ERRORS[share_rows]}")
        card = Path(work) / CARD
        card.write_text(seal(FRONT.format(title=repo_id.partition("/")[2], tag=TAG)), encoding="utf-8")
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


def render_public(folder: Path, work: Path, *, share_rows: bool) -> dict[str, Path]:
    """Write the report anew from what everybody may see of its results.

    Args:
        folder: of the comparison.
        work: an empty folder.
        share_rows: whether errors, which may quote rows of the data, are shown.

    Returns:
        Path in the repository -> local file.

    Raises:
        UserError: there are no results.
    """
    results = name_all(read_results(folder), with_rows=share_rows)
    text = json.dumps(results, indent=1, ensure_ascii=False)
    (work / RESULTS_FILE).write_text(redact(text), encoding="utf-8")
    files = {"index.html": write_report(work)}
    files |= {name: work / name for name in (MARKDOWN_FILE, RESULTS_FILE)}
    return files | {f"figures/{path.name}": path for path in sorted((work / "figures").glob("*.png"))}
