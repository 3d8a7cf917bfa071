"""A Hub on loopback for the unmodified client: the HTTP side of `hub_api`, faults, a log, and how to reach it.

    with serve() as hub:
        subprocess.run(..., env=hub.client_environment(tmp_path))  # transformers, peft and datasets

    def test_that(hub):  # the fixture: huggingface_hub of this process reaches it too
        HfApi(endpoint=hub.endpoint, token=hub.token)

The client (huggingface_hub 2.4) sends to Xet whatever is not kept in git as soon as `hf_xet` is installed, and asks no
server whether it can. There is no Xet here, so both ways switch it off (HF_HUB_DISABLE_XET): files go by plain LFS.
"""

import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from tests.hub.hub_api import READ_TOKEN, STRANGER_TOKEN, TOKEN, Answer, Hub, refuse
from tests.hub.hub_storage import Refused


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a request; the fields may be combined.

    Args:
        status: answered in place of the real answer; nothing is done.
        code: of the error, such as RepoNotFound: it decides about the client's exception class.
        retry_after: seconds, the header of 429 and 503.
        delay_seconds: waited before anything is done.
        cut: "request": the connection ends when half of the body was read, and nothing is done.
            "answer": what was asked for is done, and the connection ends after half of the answer's body.
    """

    status: int | None = None
    code: str | None = None
    retry_after: int | None = None
    delay_seconds: float = 0.0
    cut: str | None = None

    def answer(self) -> Answer:
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return refuse(Refused(self.status, "This fault was asked for by a test", self.code, headers=headers))


@dataclass
class _Rule:
    method: str
    path: str
    fault: Fault
    times: int


@dataclass
class LoggedRequest:
    """What a test may ask about a request. The token itself is never kept."""

    method: str
    path: str  # with its escapes undone
    query: str
    has_token: bool
    num_bytes: int  # of the body
    status: int | None = None  # None: no answer was sent


class HubServer:
    """A running server. `repos` is what was pushed, by `org/name`, `datasets/org/name` or `spaces/org/name`.

    Three accounts' tokens: `token` may write to `tester/*` and `org/*`; `read_token` is of the same user and may only
    read; `stranger_token` is of another user.
    """

    def __init__(self, port: int):
        self.endpoint = f"http://127.0.0.1:{port}"
        self.hub = Hub(self.endpoint, storage=f"http://localhost:{port}")  # to the client another host, as a CDN is
        self.repos = self.hub.repos
        self.token, self.read_token, self.stranger_token = TOKEN, READ_TOKEN, STRANGER_TOKEN
        self.requests: list[LoggedRequest] = []
        self.is_closing = threading.Event()
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()

    def fail(self, method: str, path: str, fault: Fault, times: int = 1) -> None:
        """The next `times` requests of the method whose path holds the regular expression go wrong."""
        self._rules.append(_Rule(method, path, fault, times))

    def seen(self, method: str, path: str) -> list[LoggedRequest]:
        """The requests so far of the method whose path holds the regular expression."""
        return [one for one in self.requests if one.method == method and re.search(path, one.path)]

    def take_fault(self, method: str, path: str) -> Fault:
        with self._lock:
            for rule in self._rules:
                if rule.times > 0 and rule.method == method and re.search(rule.path, path):
                    rule.times -= 1
                    return rule.fault
        return Fault()

    def connect_client(self, patch: pytest.MonkeyPatch, home: str | Path) -> None:
        """Let huggingface_hub of this process reach this server and no other, with no token and no cache of the user.

        It reads the environment when it is imported and looks these names up again at each call. transformers and
        datasets keep copies of their own: for them start a process with `client_environment`.
        """
        values = {
            "ENDPOINT": self.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(Path(home) / "hub"),
            "HF_TOKEN_PATH": str(Path(home) / "token"),
        }
        for name, value in values.items():
            patch.setattr(constants, name, value)
        patch.delenv("HF_TOKEN", raising=False)
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")

    def client_environment(self, home: str | Path, token: str | None = None) -> dict[str, str]:
        """The environment of a process whose libraries reach this server, with all of their files in `home`."""
        theirs = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_OFFLINE")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
        environment |= {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # of datasets: a request to another host
            "NO_PROXY": "127.0.0.1,localhost",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        return environment | ({"HF_TOKEN": token} if token else {})


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # the client downloads many files at once
    owner: HubServer

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no error of the server; all else is, and no thread may swallow it."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            self.owner.hub.crashes.append(traceback.format_exc())


class _Handler(BaseHTTPRequestHandler):
    """One request a connection: a cut one leaves nothing behind that the next would meet."""

    protocol_version = "HTTP/1.1"

    def answer_any(self) -> None:
        server = self.server.owner
        self.close_connection = True
        url, num_bytes = urlsplit(self.path), int(self.headers.get("Content-Length", 0))
        entry = LoggedRequest(self.command, unquote(url.path), url.query, "Authorization" in self.headers, num_bytes)
        server.requests.append(entry)
        fault = server.take_fault(self.command, entry.path)
        if fault.cut == "request":
            self.rfile.read(num_bytes // 2)
            return
        body = self.rfile.read(num_bytes)
        server.is_closing.wait(fault.delay_seconds)
        answer = fault.answer() if fault.status else server.hub.answer(self.command, self.path, self.headers, body)
        entry.status = answer.status
        self._send(answer, is_cut=fault.cut == "answer")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer_any

    def _send(self, answer: Answer, *, is_cut: bool) -> None:
        content = answer.encode()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header(
            "Content-Type", "application/octet-stream" if answer.content is content else "application/json"
        )
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if is_cut else content)

    def log_message(self, *args: object) -> None:
        """Nothing on stderr."""


@contextmanager
def serve() -> Iterator[HubServer]:
    """A server with no repositories, until the end of the block.

    Raises:
        AssertionError: at the end, if the server itself met an error. A 500 could pass for an answer of the Hub.
    """
    with _Listener(("127.0.0.1", 0), _Handler) as listener:
        listener.owner = HubServer(listener.server_port)
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield listener.owner
        finally:
            listener.owner.is_closing.set()  # slow answers end
            listener.shutdown()
            thread.join()
    assert not listener.owner.hub.crashes, "\n".join(listener.owner.hub.crashes)


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A server of the test's own, which huggingface_hub of this process reaches."""
    with serve() as server:
        server.connect_client(monkeypatch, tmp_path_factory.mktemp("hub-client"))
        yield server
