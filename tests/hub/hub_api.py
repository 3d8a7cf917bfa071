"""The Hub's HTTP API as calls and answers, over `hub_storage`: routes, accounts and errors. Knows no sockets.

What the client asks for and this file lacks is answered with 501, so that nothing passes for "not there" by mistake.
"""

import base64
import hashlib
import json
import re
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub import hub_storage
from tests.hub.hub_storage import Change, Refused, Repo

READ, DOWNLOAD, PROPOSE, WRITE = "read", "download", "propose", "write"  # what a call wants to do to a repository
TOKEN, READ_TOKEN, STRANGER_TOKEN = "hf_writer", "hf_reader", "hf_stranger"


@dataclass(frozen=True)
class Account:
    name: str
    organizations: tuple[str, ...] = ()
    can_write: bool = True  # the role of the token

    def is_member(self, namespace: str) -> bool:
        return namespace in (self.name, *self.organizations)


@dataclass(frozen=True)
class Call:
    """A request on its way to the method that answers it."""

    parts: Mapping[str, str]  # named parts of the path, with their escapes undone
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    account: Account | None

    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def is_set(self, name: str) -> bool:
        return self.query.get(name, ["0"])[0].lower() in ("1", "true")

    def sender(self) -> Account:
        if self.account is None:
            raise Refused(401, "Invalid username or password.")
        return self.account


@dataclass(frozen=True)
class Answer:
    content: Any = b""  # bytes, or what becomes JSON
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else json.dumps(self.content).encode()


class Hub:
    """All state: repositories by the path of their page (`org/name`, `datasets/org/name`, `spaces/org/name`).

    Args:
        endpoint: of the Hub.
        storage: of what is kept in LFS: another host, to which the client must not send its token.
    """

    def __init__(self, endpoint: str, storage: str):
        self.endpoint, self.storage = endpoint, storage
        self.accounts = {
            TOKEN: Account("tester", ("org",)),
            READ_TOKEN: Account("tester", ("org",), can_write=False),
            STRANGER_TOKEN: Account("stranger"),
        }
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}  # LFS uploads by SHA-256
        self.crashes: list[str] = []  # tracebacks of this code
        self._lock = threading.Lock()  # calls are answered one after the other

    def answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Never raises: what this code gets wrong is a 500 and is kept in `crashes`."""
        try:
            with self._lock:
                return self._route(method, target, headers, body)
        except Refused as refusal:
            return refuse(refusal)
        except Exception:
            self.crashes.append(f"{method} {target}\n{traceback.format_exc()}")
            return refuse(Refused(500, "This test server crashed"))

    def _route(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        url = urlsplit(target)
        account = self._authenticate(headers.get("Authorization"))
        for expected, pattern, access, answer in _ROUTES:
            match = pattern.fullmatch(url.path)
            if match and expected == ("GET" if method == "HEAD" else method):
                parts = {name: unquote(value or "") for name, value in match.groupdict().items()}
                call = Call(parts, parse_qs(url.query), headers, body, account)
                if access is None:
                    return answer(self, call)
                access = PROPOSE if access == WRITE and call.is_set("create_pr") else access
                return answer(self, call, self._admit(call, parts["kind"], parts["repo"], access))
        raise Refused(501, f"{method} {url.path} is unknown to this test server")

    def _authenticate(self, header: str | None) -> Account | None:
        if header is None:
            return None
        account = self.accounts.get(header.removeprefix("Bearer "))
        if account is None:
            raise Refused(401, "Invalid credentials in Authorization header")
        return account

    def _admit(self, call: Call, kind: str, repo_id: str, access: str) -> Repo:
        """The repository, if the account may do that with it. A private one does not exist for others."""
        repo = self.repos.get(_page(kind, repo_id))
        is_member = call.account is not None and call.account.is_member(repo_id.split("/")[0])
        if repo is None or (repo.is_private and not is_member):
            raise Refused(404, "Repository not found", "RepoNotFound")
        if access == DOWNLOAD and repo.gated and not is_member:
            raise Refused(403 if call.account else 401, f"Access to {repo_id} is restricted", "GatedRepo")
        if access in (PROPOSE, WRITE):
            may_write = call.sender().can_write and (is_member or access == PROPOSE)
            if not may_write:
                raise Refused(403, f"This token may not write to {repo_id}")
        return repo

    def _url(self, repo: Repo) -> str:
        return f"{self.endpoint}/{_page(repo.kind, repo.repo_id)}"

    # Accounts, cards and repositories

    def whoami(self, call: Call) -> Answer:
        account = call.sender()
        organizations = [{"type": "org", "name": name} for name in account.organizations]
        token = {"displayName": "test", "role": "write" if account.can_write else "read"}
        auth = {"type": "access_token", "accessToken": token}
        return Answer({"type": "user", "name": account.name, "orgs": organizations, "auth": auth})

    def validate_card(self, call: Call) -> Answer:
        card = call.json()["content"]
        errors = [{"message": message} for message in hub_storage.check_card(card)]
        is_empty = not errors and hub_storage.read_metadata(card) is None
        warnings = [{"message": "empty or missing yaml metadata in repo card"}] if is_empty else []
        return Answer({"errors": errors, "warnings": warnings}, 400 if errors else 200)

    def create_repo(self, call: Call) -> Answer:
        asked, account = call.json(), call.sender()
        namespace, kind = asked.get("organization") or account.name, asked.get("type", "model")
        if not (account.can_write and account.is_member(namespace)):
            raise Refused(403, f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"')
        repo_id, is_private = f"{namespace}/{asked['name']}", asked.get("visibility") == "private"
        repo = Repo(kind, repo_id, account.name, is_private=is_private)
        if _page(kind, repo_id) in self.repos:
            raise Refused(409, f"You already created this {kind} repo", url=self._url(repo))
        self.repos[_page(kind, repo_id)] = repo
        return Answer({"url": self._url(repo), "name": repo_id})

    def delete_repo(self, call: Call) -> Answer:
        asked, account = call.json(), call.sender()
        repo_id = f"{asked.get('organization') or account.name}/{asked['name']}"
        repo = self._admit(call, asked.get("type", "model"), repo_id, WRITE)
        del self.repos[_page(repo.kind, repo.repo_id)]
        return Answer()

    def allow(self, call: Call, repo: Repo) -> Answer:
        return Answer({})

    def describe_repo(self, call: Call, repo: Repo) -> Answer:
        commit = repo.find(call.parts.get("revision", "main"))
        card, files = commit.card, sorted(commit.files.items())
        siblings = [hub_storage.describe_sibling(path, blob, is_full=call.is_set("blobs")) for path, blob in files]
        return Answer(
            {
                "id": repo.repo_id,
                "author": repo.repo_id.split("/")[0],
                "sha": commit.oid,
                "createdAt": repo.history("main")[-1].date,
                "lastModified": commit.date,
                "private": repo.is_private,
                "gated": repo.gated,
                "disabled": False,
                "tags": hub_storage.list_tags(card),
                "cardData": card,
                "siblings": siblings,
                **{name: card[name] for name in ("library_name", "pipeline_tag") if name in card},
            }
        )

    # Trees, history and refs

    def list_tree(self, call: Call, repo: Repo) -> Answer:
        commit = repo.find(call.parts["revision"])
        return Answer(hub_storage.list_tree(commit, call.parts["path"], is_recursive=call.is_set("recursive")))

    def describe_paths(self, call: Call, repo: Repo) -> Answer:
        wanted = parse_qs(call.body.decode()).get("paths", [])
        entries = hub_storage.list_tree(repo.find(call.parts["revision"]), "", is_recursive=True)
        return Answer([entry for entry in entries if entry["path"] in wanted])

    def list_commits(self, call: Call, repo: Repo) -> Answer:
        return Answer([hub_storage.describe_commit(commit) for commit in repo.history(call.parts["revision"])])

    def list_refs(self, call: Call, repo: Repo) -> Answer:
        def under(start: str) -> list[dict[str, str]]:
            found = {ref: oid for ref, oid in repo.refs.items() if ref.startswith(start)}
            return [{"name": ref.removeprefix(start), "ref": ref, "targetCommit": oid} for ref, oid in found.items()]

        refs = {"branches": under("refs/heads/"), "tags": under("refs/tags/"), "converts": []}
        return Answer(refs | ({"pullRequests": under("refs/pr/")} if call.is_set("include_prs") else {}))

    def create_branch(self, call: Call, repo: Repo) -> Answer:
        if call.parts["branch"].startswith("refs/"):
            raise Refused(400, f"Invalid reference for a branch: {call.parts['branch']}")
        repo.set_ref(f"refs/heads/{call.parts['branch']}", call.json().get("startingPoint", "main"))
        return Answer()

    def delete_branch(self, call: Call, repo: Repo) -> Answer:
        repo.delete_ref(f"refs/heads/{call.parts['branch']}")
        return Answer()

    def create_tag(self, call: Call, repo: Repo) -> Answer:
        repo.set_ref(f"refs/tags/{call.json()['tag']}", call.parts["revision"])
        return Answer()

    def delete_tag(self, call: Call, repo: Repo) -> Answer:
        repo.delete_ref(f"refs/tags/{call.parts['tag']}")
        return Answer()

    # Commits, pull requests and LFS

    def plan_upload(self, call: Call, repo: Repo) -> Answer:
        files, plan = repo.find(call.parts["revision"]).files, []
        for asked in call.json()["files"]:
            path, sample = asked["path"], base64.b64decode(asked["sample"])
            mode = "lfs" if hub_storage.is_kept_in_lfs(path, asked["size"], sample) else "regular"
            there = {"oid": files[path].etag} if path in files else {}
            plan.append({"path": path, "uploadMode": mode, "shouldIgnore": False} | there)
        return Answer({"files": plan})

    def commit(self, call: Call, repo: Repo) -> Answer:
        lines = [json.loads(line) for line in call.body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        operations = [(line["key"], line["value"]) for line in lines if line["key"] != "header"]
        description, parent = header.get("description", ""), header.get("parentCommit")
        change = Change(header["summary"], operations, call.sender().name, description, parent)
        opens = call.is_set("create_pr")
        commit, opened = repo.commit(call.parts["revision"], change, self.objects, opens_pull_request=opens)
        done = {"success": True, "commitOid": commit.oid, "commitUrl": f"{self._url(repo)}/commit/{commit.oid}"}
        return Answer(done | ({"pullRequestUrl": f"{self._url(repo)}/discussions/{opened.number}"} if opened else {}))

    def open_pull_request(self, call: Call, repo: Repo) -> Answer:
        asked = call.json()
        if not asked["pullRequest"]:
            raise Refused(501, "This test server has pull requests and no other discussions")
        return Answer({"num": repo.open_pull_request(asked["title"], asked["description"], call.sender().name).number})

    def describe_pull_request(self, call: Call, repo: Repo) -> Answer:
        return Answer(repo.describe_pull_request(int(call.parts["number"])))

    def plan_lfs(self, call: Call, repo: Repo) -> Answer:
        """Where to send which object. One that is here already has no action: the client skips it."""
        objects = []
        for asked in call.json()["objects"]:
            upload = {"href": f"{self.storage}/lfs/{asked['oid']}"}
            verify = {"href": f"{self._url(repo)}.git/info/lfs/verify"}
            is_here = asked["oid"] in self.objects
            objects.append(asked | ({} if is_here else {"actions": {"upload": upload, "verify": verify}}))
        return Answer({"transfer": "basic", "objects": objects})

    def verify_lfs(self, call: Call, repo: Repo) -> Answer:
        asked = call.json()
        if len(self.objects.get(asked["oid"], b"")) != asked["size"]:
            raise Refused(404, "The object was not uploaded, or not all of it")
        return Answer({})

    def store(self, call: Call) -> Answer:
        if hashlib.sha256(call.body).hexdigest() != call.parts["oid"]:
            raise Refused(400, "The body is not what its SHA-256 says")
        self.objects[call.parts["oid"]] = call.body
        return Answer()

    # Downloads

    def resolve(self, call: Call, repo: Repo) -> Answer:
        commit = repo.find(call.parts["revision"])
        headers = {"X-Repo-Commit": commit.oid}
        blob = commit.files.get(call.parts["file"])
        if blob is None:
            raise Refused(404, "Entry not found", "EntryNotFound", headers=headers)
        headers["ETag"] = f'"{blob.etag}"'
        if not blob.is_lfs:
            return send_bytes(blob.content, call.headers.get("Range"), headers)
        linked = {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(blob.size)}
        return Answer(status=302, headers=headers | linked | {"Location": f"{self.storage}/lfs/{blob.sha256}"})

    def load(self, call: Call) -> Answer:
        if call.parts["oid"] not in self.objects:
            raise Refused(404, "No such object")
        return send_bytes(self.objects[call.parts["oid"]], call.headers.get("Range"), {})


def _page(kind: str, repo_id: str) -> str:
    return repo_id if kind in ("", "model") else f"{kind}s/{repo_id}"


def send_bytes(content: bytes, asked: str | None, headers: Mapping[str, str]) -> Answer:
    """All of it, or the one range that was asked for."""
    headers = {"Accept-Ranges": "bytes", **headers}
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", asked or "")
    if not match or not any(match.groups()):
        return Answer(content, headers=headers)
    first, last = match.groups()
    start = int(first) if first else max(0, len(content) - int(last))
    end = min(len(content), int(last) + 1) if first and last else len(content)
    if start >= end:
        raise Refused(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{len(content)}"})
    return Answer(content[start:end], 206, {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(content)}"})


def refuse(refusal: Refused) -> Answer:
    message = refusal.message.splitlines()[0].encode("ascii", "replace").decode()  # headers hold no more
    headers = {"X-Error-Message": message, **refusal.headers}
    if refusal.code:
        headers["X-Error-Code"] = refusal.code
    return Answer({"error": refusal.message, **refusal.details}, refusal.status, headers)


def _compile(template: str) -> re.Pattern[str]:
    known = {"kind": "model|dataset|space", "repo": "[^/]+(?:/[^/]+)?", "number": r"\d+", "file": ".+"}
    return re.compile(re.sub(r"\{(\w+)\}", lambda part: f"(?P<{part[1]}>{known.get(part[1], '[^/]+')})", template))


_API, _WEB = "/api/{kind}s/{repo}", "/(?:{kind}s/)?{repo}"
_ROUTES = [
    (method, _compile(template), access, answer)
    for method, template, access, answer in (
        ("GET", "/api/whoami-v2", None, Hub.whoami),
        ("POST", "/api/validate-yaml", None, Hub.validate_card),
        ("POST", "/api/repos/create", None, Hub.create_repo),
        ("DELETE", "/api/repos/delete", None, Hub.delete_repo),
        ("GET", _API, READ, Hub.describe_repo),
        ("GET", _API + "/revision/{revision}", READ, Hub.describe_repo),
        ("GET", _API + "/auth-check", DOWNLOAD, Hub.allow),
        ("GET", _API + "/auth-check/write", WRITE, Hub.allow),
        ("GET", _API + "/tree/{revision}(?:/{path})?", READ, Hub.list_tree),
        ("POST", _API + "/paths-info/{revision}", READ, Hub.describe_paths),
        ("GET", _API + "/commits/{revision}", READ, Hub.list_commits),
        ("GET", _API + "/refs", READ, Hub.list_refs),
        ("POST", _API + "/branch/{branch}", WRITE, Hub.create_branch),
        ("DELETE", _API + "/branch/{branch}", WRITE, Hub.delete_branch),
        ("POST", _API + "/tag/{revision}", WRITE, Hub.create_tag),
        ("DELETE", _API + "/tag/{tag}", WRITE, Hub.delete_tag),
        ("POST", _API + "/preupload/{revision}", WRITE, Hub.plan_upload),
        ("POST", _API + "/commit/{revision}", WRITE, Hub.commit),
        ("POST", _API + "/discussions", PROPOSE, Hub.open_pull_request),
        ("GET", _API + "/discussions/{number}", READ, Hub.describe_pull_request),
        ("POST", _WEB + r"\.git/info/lfs/objects/batch", PROPOSE, Hub.plan_lfs),
        ("POST", _WEB + r"\.git/info/lfs/verify", PROPOSE, Hub.verify_lfs),
        ("GET", _WEB + "/resolve/{revision}/{file}", DOWNLOAD, Hub.resolve),
        ("PUT", "/lfs/{oid}", None, Hub.store),
        ("GET", "/lfs/{oid}", None, Hub.load),
    )
]
