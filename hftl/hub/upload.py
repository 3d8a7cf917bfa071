"""How do files get into a repository whole, once, and over a bad line? All that talks to the Hub, and nothing else.

The client tries a lost upload of weights again, but no commit: a second one might be made. Here a commit is tried
again after a look whether the first has arrived. What went wrong for good says what was and what was not sent.
"""

import hashlib
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
    stale = _check_content(api, target, files)
    where = {"repo_id": target.repo_id, "repo_type": target.repo_type}
    known_prs = set(_list_pull_requests(api, target)) if target.create_pr else set()
    additions = [CommitOperationAdd(path, str(file)) for path, file in files.items()]
    for addition in additions:  # one by one, so that it is known what has arrived
        retried(lambda a=addition: api.preupload_lfs_files(
            additions=[a], revision=target.revision, create_pr=target.create_pr, free_memory=False, **where
        ))  # fmt: skip
        if addition._upload_mode == "lfs":
            progress.sent.append(addition.path_in_repo)
    removals = [CommitOperationDelete(path) for path in stale]

    def commit() -> None:
        for ref in [*_new_pull_requests(api, target, known_prs)] if target.create_pr else [target.revision]:
            if found := _find_arrived(api, target, ref, files, stale):
                progress.commit, progress.pull_request = found, ref if target.create_pr else None
                return
        made = api.create_commit(
            operations=[*additions, *removals], commit_message=title, revision=target.revision,
            create_pr=target.create_pr, parent_commit=_head(api, target, target.revision), **where,
        )  # fmt: skip
        progress.commit, progress.pull_request = made.oid, made.pr_url

    retried(commit)
    progress.sent = list(files)


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


def _find_arrived(
    api: HfApi, target: Target, revision: str, files: Mapping[str, Path], stale: list[str]
) -> str | None:
    """The commit at `revision`, if it holds exactly these files."""
    tree = _list_tree(api, target, revision)
    if any(path in tree for path in stale) or any(path not in tree for path in files):
        return None
    if not all(_is_same(tree[path], file) for path, file in files.items()):
        return None
    return _head(api, target, revision)


def _is_same(entry: RepoFile, file: Path) -> bool:
    if entry.size != file.stat().st_size:
        return False
    if entry.lfs is not None:
        return entry.lfs.sha256 == compute_sha256(file)
    content = file.read_bytes()
    return entry.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _check_content(api: HfApi, target: Target, files: Mapping[str, Path]) -> list[str]:
    """Files of an earlier push that this one does not replace, and so has to take away.

    Raises:
        UserError: somebody else's files are there.
    """
    prefix = f"{target.subfolder}/" if target.subfolder else ""
    tree = retried(lambda: _list_tree(api, target, target.revision))
    there = [path for path in tree if path.startswith(prefix) and path != ".gitattributes"]
    direct = [path for path in there if "/" not in path.removeprefix(prefix)]
    if not direct or target.create_pr:
        return []
    if not _is_ours(api, target, f"{prefix}{CARD}" if f"{prefix}{CARD}" in tree else None):
        raise UserError(
            f"{target.repo_id} holds files that hftl did not push: {', '.join(sorted(direct)[:5])}. Name another "
            "--repo_id, a --subfolder or --revision that is not there yet, or propose the change with --create_pr."
        )
    return [path for path in direct if path not in files and is_allowed(path.removeprefix(prefix))]


def _is_ours(api: HfApi, target: Target, card: str | None) -> bool:
    if card is None:
        return False
    where = {"repo_type": target.repo_type, "revision": target.revision}
    content = Path(retried(lambda: api.hf_hub_download(target.repo_id, card, **where))).read_text(encoding="utf-8")
    try:
        return TAG in (RepoCard(content, ignore_metadata_errors=True).data.get("tags") or [])
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
