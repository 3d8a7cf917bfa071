"""One push from a run folder to the Hub: stage, card, gate, upload. The page to read.

The run folder is only read, but for `push.json`, which remembers where to go on. Whatever goes wrong here, what was
trained is as it was.
"""

import dataclasses
import json
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hftl.config import Arguments
from hftl.errors import PublishError, UserError
from hftl.hub.card import Licences, describe_licences, describe_vocabulary, render_card
from hftl.hub.files import CARD, STATE_FILE
from hftl.hub.gate import pass_gate
from hftl.hub.licences import find_licence
from hftl.hub.retries import hide
from hftl.hub.stage import Staged, check_repo_id, describe, has_local_data, is_local, read_run, stage
from hftl.hub.upload import Target, check_token, send
from hftl.run_record import RunRecord
from hftl.runtime.files import write_atomically

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Publication:
    """What was asked for: the flags of `hftl push`."""

    repo_id: str
    public: bool = False
    revision: str = "main"
    create_pr: bool = False
    merge: bool = False
    include_base: bool = False
    subfolder: str = ""
    report: str | None = None


def push_run(
    run: Path, publication: Publication, *, dry_run: bool = False, say: Callable[[str], None] = logger.info
) -> str | None:
    """Publish a run.

    Args:
        run: its folder.
        publication: where to and how.
        dry_run: stop after the gate; nothing is asked of a network.
        say: takes the lines that a user wants to see.

    Returns:
        The address of what was pushed; None after a dry run.

    Raises:
        UserError: a wrong flag, or a repository that holds something else.
        PublishError: the gate is shut, or not all was sent.
    """
    record = read_run(run)
    _check(publication)
    if not dry_run:
        check_token()
    with tempfile.TemporaryDirectory(prefix="hftl-push-") as name:
        work = Path(name)
        staged = stage(
            run, record, (publication.repo_id, publication.subfolder), work,
            merge=publication.merge, include_base=publication.include_base,
        )  # fmt: skip
        card = _add_card(staged, publication, is_offline=dry_run)
        (work / "gate").mkdir()
        say(pass_gate(staged, work / "gate", is_offline=dry_run))
        if dry_run:
            _show(staged, card, say)
            return None
        return _send(staged, publication, say)


def resume_push(run: Path, say: Callable[[str], None] = logger.info) -> str | None:
    """Go on with the push of a run that did not end; what has arrived is not sent again.

    Raises:
        UserError: none was begun.
    """
    file = run / STATE_FILE
    if not file.is_file():
        raise UserError(f"No push of {run} was begun (there is no {STATE_FILE}). Start one with --repo_id ORG/NAME.")
    return push_run(run, Publication(**json.loads(file.read_text(encoding="utf-8"))["publication"]), say=say)


def _check(publication: Publication) -> None:
    check_repo_id(publication.repo_id)
    if publication.create_pr and publication.revision != "main":
        raise UserError("--create_pr proposes a change of main, so that --revision does not go with it.")
    if publication.create_pr and publication.include_base:
        raise UserError("--include_base makes a repository of its own, which no pull request can; leave out one.")
    parts = Path(publication.subfolder).parts
    if publication.subfolder and (".." in parts or Path(publication.subfolder).is_absolute() or "\\" in parts):
        raise UserError(f"--subfolder is {publication.subfolder!r}; give a path in the repository, such as seed-1.")


def _add_card(staged: Staged, publication: Publication, *, is_offline: bool) -> str:
    record = staged.record
    base, data = record.model["name"], record.data["source"]
    commit = record.model.get("revision")
    licences = Licences(
        base=find_licence(base, "model", revision=commit, is_offline=is_offline, is_local=not commit),
        data=find_licence(
            data, "dataset", revision=record.config.get("dataset_revision"), is_offline=is_offline,
            is_local=has_local_data(record),
        ),
    )  # fmt: skip
    for line in [*describe_licences(staged, licences), *filter(None, [describe_vocabulary(staged)])]:
        logger.warning("%s", line)
    card = render_card(staged, licences, Path(publication.report) if publication.report else None)
    (staged.folder / CARD).write_text(card, encoding="utf-8")
    return card


def _show(staged: Staged, card: str, say: Callable[[str], None]) -> None:
    files = describe(staged)
    for path, size in files:
        say(f"{size:>15,}  {path}")
    say(f"{sum(size for _, size in files):>15,}  bytes in {len(files)} files would go to {staged.repo_id}\n\n{card}")


def _send(staged: Staged, publication: Publication, say: Callable[[str], None]) -> str:
    run, base = staged.run, staged.base
    target = Target(
        repo_id=publication.repo_id, revision=publication.revision, subfolder=publication.subfolder,
        create_pr=publication.create_pr, is_public=publication.public,
    )  # fmt: skip
    again = f"`hftl push {run} --resume` goes on with it; the run in {run} is complete and untouched."
    _remember(run, publication, None)
    try:
        if base is not None and base.folder is not None:
            files = {path.name: path for path in sorted(base.folder.iterdir())}
            send(Target(base.name, is_public=publication.public), files, "Add the base model", tag=base.revision)
            say(f"sent the base to {base.name}, tag {base.revision}")
        tag = name_tag(staged.record, is_merged=staged.is_merged)
        progress = send(target, staged.files, f"Push a {staged.record.mode} run of hftl ({tag})", tag=tag)
    except PublishError as error:
        raise PublishError(f"{error}\n{again}") from error
    _remember(run, publication, progress.commit)
    return progress.pull_request or f"{progress.commit and publication.repo_id} at {progress.commit}, tag {tag}"


def name_tag(record: RunRecord, *, is_merged: bool = False) -> str:
    """A tag, the same for the same weights; another one where the adapter is folded into them."""
    weights = "".join(file["sha256"] for name, file in sorted(record.files.items()) if name.endswith(".safetensors"))
    return f"run-{record.config_hash[:8]}-{weights[:8]}" + ("-merged" if is_merged else "")


def _remember(run: Path, publication: Publication, commit: str | None) -> None:
    content: dict[str, Any] = {"publication": dataclasses.asdict(publication), "commit": commit}
    try:
        write_atomically(run / STATE_FILE, json.dumps(content, indent=1).encode())
    except OSError as error:
        logger.warning("%s cannot be written, so that --resume is not possible: %s", STATE_FILE, error)


# --- at the end of a run


def take_publication(args: Arguments) -> Publication | None:
    """What `--push_to_hub` asks for, checked before anything is trained; Trainer is told nothing of it.

    Trainer's own push sends everything in the folder, at every save, and says nothing when it fails.

    Raises:
        UserError: it cannot work.
    """
    training = args.training
    if not training.push_to_hub:
        for flag in ("hub_model_id", "hub_private_repo", "hub_revision"):
            if flag in args.given:
                raise UserError(f"--{flag} is for --push_to_hub, which is not given.")
        return None
    if "hub_strategy" in args.given and getattr(training.hub_strategy, "value", training.hub_strategy) != "end":
        raise UserError("--hub_strategy can only be end: what is pushed has passed the gate, which needs a whole run.")
    if training.hub_always_push:
        raise UserError("--hub_always_push is for pushes while training; the one here is made once, at the end.")
    repo_id = check_repo_id(training.hub_model_id, "--hub_model_id")
    if training.process_index == 0:
        check_token()
    training.push_to_hub = False
    return Publication(
        repo_id,
        public=training.hub_private_repo is False and "hub_private_repo" in args.given,
        revision=training.hub_revision or "main",
        include_base=args.model.mode == "peft" and is_local(args.model.model_name_or_path),
    )


def publish_run(args: Arguments, publication: Publication | None) -> None:
    """Push a run that has just been written, from the main process.

    Raises:
        PublishError: it was not published; the run folder is complete.
    """
    if publication is None or args.training.process_index != 0:
        return
    folder = Path(args.training.output_dir)
    try:
        address = push_run(folder, publication)
    except PublishError:
        raise
    except Exception as error:  # the result is safe, and whoever trained for hours wants to hear of it first
        again = f"hftl push {folder} --repo_id {publication.repo_id}"
        text = hide(f"The run is complete in {folder}, but it was not published: {error}\nAgain: `{again}`")
        raise PublishError(text) from error
    logger.info("pushed to %s", address)
