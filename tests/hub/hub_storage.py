"""Repositories as the Hub keeps them: blobs, commits, branches, tags and pull requests, in memory. Knows no HTTP."""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import cached_property
from typing import Any

import yaml

LFS_ENDINGS = (".arrow", ".bin", ".ckpt", ".gz", ".npy", ".npz", ".onnx", ".parquet", ".pt", ".safetensors", ".zip")
LFS_BYTES = 10 * 1024**2  # a larger file never goes into git itself
GIT_ATTRIBUTES = "".join(f"*{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in LFS_ENDINGS)
START = datetime(2026, 1, 1, tzinfo=timezone.utc)  # commits are one second apart, so that every run is alike
REPO_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


class Refused(Exception):
    """What the Hub does not do: status, message and, for the client's own exception classes, an error code."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        **details: Any,  # more of the answer's body
    ):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers, self.details = headers or {}, details


@dataclass(frozen=True)
class Blob:
    """The bytes of a file, and whether git holds them or a pointer to them."""

    content: bytes
    is_lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{self.sha256}", f"size {self.size}", "")
        return "\n".join(lines).encode()

    @cached_property
    def oid(self) -> str:
        """The name that git gives to what it holds."""
        held = self.pointer if self.is_lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(held) + held).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.oid

    @property
    def size(self) -> int:
        return len(self.content)


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    description: str
    author: str
    date: str
    files: Mapping[str, Blob]

    @property
    def card(self) -> dict[str, Any]:
        """The metadata of README.md, which every commit that changes it has checked."""
        return (read_metadata(self.files["README.md"].content.decode()) or {}) if "README.md" in self.files else {}


@dataclass(frozen=True)
class Change:
    """What a client wants committed. `operations` are the lines of its payload: pairs of a kind and a value."""

    title: str
    operations: Iterable[tuple[str, dict[str, Any]]]
    author: str
    description: str = ""
    parent: str | None = None


@dataclass
class PullRequest:
    number: int
    title: str
    description: str
    author: str
    date: str
    status: str = "draft"


@dataclass
class Repo:
    """One repository. `refs` maps full names (refs/heads/main, refs/tags/v1, refs/pr/1) to commits."""

    kind: str  # model, dataset or space
    repo_id: str
    author: str
    is_private: bool = False
    gated: str | bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[int, PullRequest] = field(default_factory=dict)

    def __post_init__(self) -> None:
        first = Change("initial commit", (), self.author)
        self._add("refs/heads/main", None, {".gitattributes": Blob(GIT_ATTRIBUTES.encode())}, first)

    @property
    def now(self) -> str:
        return (START + timedelta(seconds=len(self.commits))).strftime("%Y-%m-%dT%H:%M:%S.000Z")

    def find(self, revision: str) -> Commit:
        """The commit that a branch, a tag, a full ref or (the start of) a commit's hash names."""
        for name in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if name in self.refs:
                return self.commits[self.refs[name]]
        found = [oid for oid in self.commits if oid.startswith(revision)] if len(revision) >= 7 else []
        if len(found) != 1:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[found[0]]

    def history(self, revision: str) -> list[Commit]:
        """Newest first."""
        commits = [self.find(revision)]
        while commits[-1].parent is not None:
            commits.append(self.commits[commits[-1].parent])
        return commits

    def commit(
        self, revision: str, change: Change, objects: Mapping[str, bytes], *, opens_pull_request: bool = False
    ) -> tuple[Commit, PullRequest | None]:
        """All operations or, where one cannot be done, none. `objects` are the LFS uploads so far, by SHA-256."""
        head = self.find(revision)
        ref = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
        if ref not in self.refs or ref.startswith("refs/tags/"):
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if change.parent is not None and not head.oid.startswith(change.parent):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = apply_operations(head.files, change.operations, objects)
        pull_request = None
        if opens_pull_request:
            pull_request = self.open_pull_request(change.title, change.description, change.author, revision)
            ref = f"refs/pr/{pull_request.number}"
        return self._add(ref, head.oid, files, change), pull_request

    def open_pull_request(self, title: str, description: str, author: str, base: str = "main") -> PullRequest:
        number = len(self.pull_requests) + 1
        self.refs[f"refs/pr/{number}"] = self.find(base).oid
        self.pull_requests[number] = PullRequest(number, title, description, author, self.now)
        return self.pull_requests[number]

    def describe_pull_request(self, number: int) -> dict[str, Any]:
        if number not in self.pull_requests:
            raise Refused(404, f"There is no discussion {number}")
        one = self.pull_requests[number]
        described = {"num": number, "title": one.title, "status": one.status, "createdAt": one.date}
        described |= {"isPullRequest": True, "author": {"name": one.author}, "filesWithConflicts": [], "events": []}
        where = {"name": self.repo_id, "type": self.kind}
        return described | {"repo": where, "changes": {"base": "refs/heads/main"}}

    def set_ref(self, name: str, revision: str) -> None:
        if name in self.refs:
            raise Refused(409, f"Reference already exists: {name}")
        self.refs[name] = self.find(revision).oid

    def delete_ref(self, name: str) -> None:
        if name not in self.refs:
            raise Refused(404, f"Invalid rev id: {name}", "RevisionNotFound")
        if name == "refs/heads/main":
            raise Refused(403, "The main branch cannot be deleted")
        del self.refs[name]

    def _add(self, ref: str, parent: str | None, files: Mapping[str, Blob], change: Change) -> Commit:
        content = [self.kind, self.repo_id, str(len(self.commits)), str(parent), change.title]
        content += [f"{blob.oid} {path}" for path, blob in sorted(files.items())]
        oid = hashlib.sha1("\n".join(content).encode()).hexdigest()
        commit = Commit(oid, parent, change.title, change.description, change.author, self.now, dict(files))
        self.commits[oid] = commit
        self.refs[ref] = oid
        return commit


def apply_operations(
    files: Mapping[str, Blob], operations: Iterable[tuple[str, dict[str, Any]]], objects: Mapping[str, bytes]
) -> dict[str, Blob]:
    """The files after the operations."""
    changed = dict(files)
    for kind, value in operations:
        path = value["path"]
        if kind == "file":
            changed[path] = Blob(base64.b64decode(value["content"]))
        elif kind == "lfsFile":
            if value["oid"] not in objects:
                raise Refused(400, f"An LFS pointer pointed to a file that does not exist. Offending file: {path}")
            changed[path] = Blob(objects[value["oid"]], is_lfs=True)
        elif kind == "deletedFile" and path in changed:
            del changed[path]
        elif kind == "deletedFolder" and any(name.startswith(f"{path.rstrip('/')}/") for name in changed):
            changed = {name: blob for name, blob in changed.items() if not name.startswith(f"{path.rstrip('/')}/")}
        elif kind in ("deletedFile", "deletedFolder"):
            raise Refused(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        else:
            raise Refused(400, f"Unknown operation {kind!r}")
    if "README.md" in changed and changed["README.md"] != files.get("README.md"):
        errors = check_card(changed["README.md"].content.decode())
        if errors:
            raise Refused(400, "\n".join(errors))
    return changed


def is_kept_in_lfs(path: str, size: int, sample: bytes) -> bool:
    """By name, by size, or for bytes that are no text."""
    return path.endswith(LFS_ENDINGS) or size > LFS_BYTES or b"\0" in sample


def list_tree(commit: Commit, folder: str, *, is_recursive: bool) -> list[dict[str, Any]]:
    """Folders and files under `folder`, as the Hub describes them."""
    prefix = f"{folder}/" if folder else ""
    inside = [path for path in commit.files if path.startswith(prefix)]
    if not inside and folder:
        raise Refused(404, f"{folder} does not exist on {commit.oid}", "EntryNotFound")
    folders = {path[:end] for path in inside for end in range(len(prefix), len(path)) if path[end] == "/"}
    entries = [describe_folder(path) for path in folders] + [
        describe_file(path, commit.files[path]) for path in inside
    ]
    entries.sort(key=lambda entry: entry["path"])
    return [entry for entry in entries if is_recursive or "/" not in entry["path"][len(prefix) :]]


def describe_folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


def describe_commit(commit: Commit) -> dict[str, Any]:
    described = {"id": commit.oid, "title": commit.title, "message": commit.description, "date": commit.date}
    return described | {"authors": [{"user": commit.author}]}


def describe_file(path: str, blob: Blob) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": blob.size, "oid": blob.oid}
    if blob.is_lfs:
        entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": len(blob.pointer)}
    return entry


def describe_sibling(path: str, blob: Blob, *, is_full: bool) -> dict[str, Any]:
    """The same facts as `describe_file`, under the names that a repository's description has for them."""
    sibling = {"rfilename": path} | ({"size": blob.size, "blobId": blob.oid} if is_full else {})
    if blob.is_lfs and is_full:
        sibling["lfs"] = {"sha256": blob.sha256, "size": blob.size, "pointerSize": len(blob.pointer)}
    return sibling


def read_metadata(card: str) -> Any:
    """What stands between the `---` lines at the start of a card; None where nothing does.

    Raises:
        yaml.YAMLError: it is no YAML.
    """
    match = re.match(r"\s*---[ \t]*\r?\n(.*?)^---[ \t]*$", card, re.DOTALL | re.MULTILINE)
    return yaml.safe_load(match[1]) if match else None


def list_tags(card: Mapping[str, Any]) -> list[str]:
    base_models = card.get("base_model") or []
    base_models = base_models if isinstance(base_models, list) else [base_models]
    return [*(card.get("tags") or []), *(f"base_model:{name}" for name in base_models)]


def check_card(card: str) -> list[str]:
    """Why the Hub would refuse this README.md. It knows many more rules; these are the ones that tuned models break.

    Names of models and data sets must be ids: a path on the author's disk is refused
    (https://github.com/huggingface/transformers/issues/33922).
    """
    try:
        metadata = read_metadata(card)
    except yaml.YAMLError as error:
        return [f"YAML: {str(error).splitlines()[0]}"]
    if metadata is None:
        return []
    if not isinstance(metadata, dict):
        return ["The metadata must be a mapping of keys to values"]
    errors = []
    for key in ("base_model", "datasets"):
        values = metadata.get(key, [])
        for value in values if isinstance(values, list) else [values]:
            if not isinstance(value, str) or not REPO_ID.fullmatch(value):
                errors.append(f'"{key}" with value "{value}" is not valid. Use an id of the Hub.')
    return errors
