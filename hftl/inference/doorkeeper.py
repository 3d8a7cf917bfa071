"""Who may ask the server of a page? The browser of the user who started it, under the name of this machine.

A port of this machine is open to all of its users, and to every page in a browser on it: that of a stranger may let
its own name point here (DNS rebinding). So the address that is printed holds a key, which the browser keeps as a
cookie, and requests under another name are refused. Knows nothing of what is served.
"""

import secrets
from collections.abc import Awaitable, Callable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

HOSTS = ("127.0.0.1", "localhost")
OPEN = ("/gradio_api/startup-events",)  # gradio asks itself, once it listens; the answer is a truth value
PARAMETER = "key"
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Doorkeeper:
    """Middleware of ASGI in front of an application."""

    def __init__(self, app: Any, key: str) -> None:
        self.app, self.key = app, key

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        name = f"hftl-{scope['server'][1]}"  # cookies do not know ports
        if not is_here(headers.get(b"host", "")):
            await _refuse(scope, send, 400, "This page is served under the name of this machine alone.")
        elif has_key(self.key, parse_qs(scope["query_string"].decode("latin-1")).get(PARAMETER, [])):
            await self.app(scope, receive, _with_cookie(send, f"{name}={self.key}; HttpOnly; SameSite=Strict; Path=/"))
        elif has_key(self.key, _read_cookies(headers.get(b"cookie", ""), name)) or scope["path"] in OPEN:
            await self.app(scope, receive, send)
        else:
            await _refuse(scope, send, 401, "Open the whole address that hftl demo printed: it ends in a key.")


def is_here(host: str) -> bool:
    """Whether the Host header names this machine."""
    name, _, port = host.lower().partition(":")
    return name in HOSTS and (not port or port.isdecimal())


def has_key(key: str, offered: list[str]) -> bool:
    """Whether one of them is the key; how long that takes says nothing about it."""
    return any(secrets.compare_digest(key.encode(), one.encode()) for one in offered)


def _read_cookies(text: str, name: str) -> list[str]:
    try:
        found = SimpleCookie(text).get(name)
    except CookieError:
        return []
    return [found.value] if found else []


def _with_cookie(send: Send, cookie: str) -> Send:
    async def send_more(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = [
                *message.get("headers", []),
                (b"set-cookie", cookie.encode()),
                (b"referrer-policy", b"no-referrer"),
            ]
            message = {**message, "headers": headers}
        await send(message)

    return send_more


async def _refuse(scope: dict[str, Any], send: Send, status: int, text: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
