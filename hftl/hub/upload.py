"""How do files get into a repository whole, once, and over a bad line? All that talks to the Hub, and nothing else.

The client tries a lost upload of weights again, but no commit: a second one might be made. Here a commit is tried
again after a look whether the first has arrived. What went wrong for good says what was and what was not sent.
"""

import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import httpx

from hftl.errors import PublishError, UserError
from hftl.hub.card import TAG
from hftl.hub.files import CARD, compute_sha256, is_allowed
from hftl.hub.retries import hide, impatient, name_error, read_status, retried
from hftl.hub.seal import is_as_written

logger = logging.getLogger(__name__)

# Whole networks and adapters of every library: transformers and peft would take one of two that lie side by side.
WEIGHTS = re.compile(
    r"(adapter_model|model|pytorch_model|tf_model|flax_model)\b.*\.(safetensors|bin|h5|msgpack|pt|pth|index\.json)$"
)
KEPT = (
    "%s in %s was edited by hand since hftl wrote it, so it is kept as it is, and the new card was not sent "
    "(commit %.12s). Its numbers may be those of an earlier run. --dry_run shows the new one, --create_pr proposes it."
)
ADVICE = {
    401: "The token is not valid. Log in with `hf auth login`, or set HF_TOKEN to a token that may write.",
    403: "This token may not write there. Use one with the role write, or another organization.",
    404: "There is no such repository, or it is private and this token may not see it.",
}


@dataclass(frozen=True)
class Target:
    """Where to.

    Attributes:
        repo_id: ORG/NAME.
        repo_type: model or space.
        revision: branch; made if it is not there.
        subfolder: in the repository, or "".
        create_pr: propose the files instead of committing them.
        is_public: for a repository that is made now; of one that is there it is not changed.
    """

    repo_id: str
    repo_type: str = "model"
    revision: str = "main"
    subfolder: str = ""
    create_pr: bool = False
    is_public: bool = False


@dataclass
class Progress:
    """What was sent so far, for the message if it ends there."""

    sent: list[str] = field(default_factory=list)
    commit: str | None = None
    pull_request: str | None = None


def check_token() -> None:
    """Refuse what cannot work before anything is computed.

    Raises:
        UserError: there is no token, or the client is offline.
    """
    if constants.HF_HUB_OFFLINE:
        raise UserError("HF_HUB_OFFLINE is set, so nothing can be pushed. Unset it, or look first with --dry_run.")
    if get_token() is None:
        raise UserError("There is no token of the Hub. Log in with `hf auth login`, or set HF_TOKEN.")


def send(target: Target, files: Mapping[str, Path], title: str, tag: str | None = None) -> Progress:
    """Put files into a repository in one commit, and tag it.

    Args:
        target: where to.
        files: path in the repository -> local file.
        title: of the commit.
        tag: for the commit; one that is there stays where it is.

    Raises:
        UserError: the repository holds something else.
        PublishError: something was not sent; the message says what.
    """
    progress, api = Progress(), HfApi()
    try:
        with impatient():
            _open(api, target)
            _send_files(api, target, files, title, progress)
            if tag and not target.create_pr:
                retried(lambda: api.create_tag(
                    target.repo_id, tag=tag, revision=progress.commit, repo_type=target.repo_type, exist_ok=True
                ))  # fmt: skip
    except (HfHubHTTPError, httpx.TransportError, RuntimeError, ValueError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise _explain(target, files, progress, error) from error
    return progress


def _open(api: HfApi, target: Target) -> None:
    """The repository and the branch, made where they are not there."""
    where = {"repo_id": target.repo_id, "repo_type": target.repo_type}
    try:
        info = retried(lambda: api.repo_info(**where))
        if not info.private and not target.is_public:
            raise UserError(
                f"{target.repo_id} exists and is public. Add --public, or name another --repo_id for a private one."
            )
    except RepositoryNotFoundError as error:
        if target.create_pr or read_status(error) == 401:
            raise
        retried(lambda: _create(api, target))
    if target.revision != "main" and not retried(lambda: api.revision_exists(revision=target.revision, **where)):
        first = retried(lambda: api.list_repo_commits(**where))[-1].commit_id  # without the files of main
        retried(lambda: api.create_branch(branch=target.revision, revision=first, exist_ok=True, **where))


def _create(api: HfApi, target: Target) -> None:
    """Make the repository; that it is there already, from a try whose answer was lost, is as good."""
    where = {"repo_id": target.repo_id, "repo_type": target.repo_type}
    sdk = {"space_sdk": "static"} if target.repo_type == "space" else {}
    try:
        api.create_repo(**where, private=not target.is_public, **sdk)
    except HfHubHTTPError as error:
        if read_status(error) != 409 or not api.repo_exists(**where):
            raise


def _send_files(api: HfApi, target: Target, files: Mapping[str, Path], title: str, progress: Progress) -> None:
    first = latest = retried(lambda: _look(api, target, files))
    where = {"repo_id": target.repo_id, "repo_type": target.repo_type}
    known_prs = set(_list_pull_requests(api, target)) if target.create_pr else set()
    additions = [CommitOperationAdd(path, str(file)) for path, file in files.items()]
    for addition in additions:  # one by one, so that it is known what has arrived
        retried(lambda a=addition: api.preupload_lfs_files(
            additions=[a], revision=target.revision, create_pr=target.create_pr, free_memory=False, **where
        ))  # fmt: skip
        if addition._upload_mode == "lfs":
            progress.sent.append(addition.path_in_repo)

    def commit() -> None:
        nonlocal latest
        if target.create_pr:
            for ref in _new_pull_requests(api, target, known_prs):
                if found := _find_arrived(api, target, ref, latest):
                    progress.commit, progress.pull_request = found, ref
                    return
        if _head(api, target, target.revision) != latest.head:
            latest = _look(api, target, files)
        if not target.create_pr and latest.is_there:
            progress.commit = latest.head
            return
        _refuse_lost_work(target, first, latest)
        made = api.create_commit(
            operations=[
                *(addition for addition in additions if addition.path_in_repo in latest.files),
                *map(CommitOperationDelete, latest.stale),
            ],
            commit_message=title, revision=target.revision, create_pr=target.create_pr, parent_commit=latest.head,
            **where,
        )  # fmt: skip
        progress.commit, progress.pull_request = made.oid, made.pr_url

    retried(commit)
    progress.sent = list(files)
    if card := next((path for path in files if path not in latest.files), None):
        logger.warning(KEPT, card, target.repo_id, progress.commit)


@dataclass(frozen=True)
class Look:
    """What a repository holds at one commit, and what a push would change there. What is committed has this parent.

    Attributes:
        head: the commit.
        tree: path -> file.
        files: path -> local file of what is sent; a card that was edited by hand is not.
        stale: paths of an earlier push that this one does not replace, and so has to take away.
    """

    head: str
    tree: Mapping[str, RepoFile]
    files: Mapping[str, Path]
    stale: list[str]

    @property
    def is_there(self) -> bool:
        """Whether it holds what would be sent already."""
        return _holds(self.tree, self)


def _holds(tree: Mapping[str, RepoFile], wanted: Look) -> bool:
    if any(path in tree for path in wanted.stale) or any(path not in tree for path in wanted.files):
        return False
    return all(_is_same(tree[path], file) for path, file in wanted.files.items())


def _look(api: HfApi, target: Target, files: Mapping[str, Path]) -> Look:
    """Read the head of the branch, and check that its files may be replaced.

    Raises:
        UserError: somebody else's files are there.
    """
    head = _head(api, target, target.revision)
    tree = _list_tree(api, target, head)
    prefix = f"{target.subfolder}/" if target.subfolder else ""
    there = [path for path in tree if path.startswith(prefix) and path != ".gitattributes"]
    direct = sorted(path for path in there if "/" not in path.removeprefix(prefix))
    card = f"{prefix}{CARD}"
    text = _read_card(api, target, card, head) if card in tree else None
    is_ours = text is not None and _has_our_tag(text)
    if direct and not is_ours and not target.create_pr:
        raise UserError(
            f"{target.repo_id} holds files that hftl did not push: {', '.join(direct[:5])}. Name another "
            "--repo_id, a --subfolder or --revision that is not there yet, or propose the change with --create_pr."
        )
    others = [path for path in direct if path not in files]
    stale = [path for path in others if is_ours and is_allowed(path.removeprefix(prefix))]
    weights = [path for path in others if path not in stale and WEIGHTS.match(path.removeprefix(prefix))]
    if weights:
        raise UserError(
            f"{target.repo_id} holds {', '.join(weights[:5])}, which hftl did not push and which would lie beside the "
            "weights of this run. Take it away, or name another --repo_id, --subfolder or --revision."
        )
    # A pull request shows what it would change of a card.
    is_kept = is_ours and not target.create_pr and card in files and not is_as_written(text)
    sent = {path: file for path, file in files.items() if not (is_kept and path == card)}
    return Look(head, tree, sent, stale)


def _refuse_lost_work(target: Target, first: Look, latest: Look) -> None:
    """Stop where files that the push would replace or take away were changed while it was under way.

    Raises:
        UserError: somebody else has pushed.
    """
    touched = {*latest.files, *latest.stale}
    changed = sorted(path for path in touched if _name_blob(first.tree, path) != _name_blob(latest.tree, path))
    if changed:
        raise UserError(
            f"While this push was under way somebody changed {', '.join(changed[:5])} in {target.repo_id} (commit "
            f"{latest.head[:12]}), which it would replace. Nothing was committed. Look at it, then push again."
        )


def _name_blob(tree: Mapping[str, RepoFile], path: str) -> str | None:
    return tree[path].blob_id if path in tree else None


def _head(api: HfApi, target: Target, revision: str) -> str:
    return api.repo_info(target.repo_id, repo_type=target.repo_type, revision=revision).sha


def _list_pull_requests(api: HfApi, target: Target) -> list[str]:
    refs = retried(lambda: api.list_repo_refs(target.repo_id, repo_type=target.repo_type, include_pull_requests=True))
    return [ref.ref for ref in refs.pull_requests or []]


def _new_pull_requests(api: HfApi, target: Target, known: set[str]) -> list[str]:
    return [ref for ref in _list_pull_requests(api, target) if ref not in known]


def _list_tree(api: HfApi, target: Target, revision: str) -> dict[str, RepoFile]:
    tree = api.list_repo_tree(target.repo_id, recursive=True, revision=revision, repo_type=target.repo_type)
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def _find_arrived(api: HfApi, target: Target, revision: str, wanted: Look) -> str | None:
    """The commit at `revision`, if it holds exactly these files."""
    head = _head(api, target, revision)
    return head if _holds(_list_tree(api, target, head), wanted) else None


def _is_same(entry: RepoFile, file: Path) -> bool:
    if entry.size != file.stat().st_size:
        return False
    if entry.lfs is not None:
        return entry.lfs.sha256 == compute_sha256(file)
    content = file.read_bytes()
    return entry.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _read_card(api: HfApi, target: Target, card: str, commit: str) -> str:
    where = {"repo_type": target.repo_type, "revision": commit}
    path = Path(api.hf_hub_download(target.repo_id, card, **where))
    return path.read_bytes().decode("utf-8", errors="replace")


def _has_our_tag(card: str) -> bool:
    try:
        return TAG in (RepoCard(card, ignore_metadata_errors=True).data.get("tags") or [])
    except ValueError:  # metadata that are none
        return False


def _explain(target: Target, files: Mapping[str, Path], progress: Progress, error: Exception) -> PublishError:
    status = read_status(error)
    advice = ADVICE.get(status, "")
    if isinstance(error, RevisionNotFoundError):
        advice = "There is no such --revision."
    if progress.commit:
        state = f"All {len(files)} files are there (commit {progress.commit[:12]}), but the commit has no tag yet."
    else:
        missing = ", ".join(path for path in files if path not in progress.sent)
        sent = ", ".join(progress.sent) or "nothing"
        state = f"Sent: {sent}. Not sent: {missing}. No commit was made, so that {target.repo_id} shows none of it."
    return PublishError(hide(f"{target.repo_id}: {name_error(error)}. {advice} {state}".replace("  ", " ")))
