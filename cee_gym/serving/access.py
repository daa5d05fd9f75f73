"""Who may talk to the server: by the name it is called by, and perhaps by a token."""

import hmac
import os
from collections.abc import Collection
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from cee_gym.errors import CeeGymError

TOKEN = "CEE_GYM_TOKEN"
LOCAL = ("localhost", "127.0.0.1", "::1")
ANY = "*"


def token_of_environment() -> str | None:
    """The bearer token that requests have to show; None where none is set.

    Raises:
        CeeGymError: if it is set and empty, or cannot stand in a header.
    """
    token = os.environ.get(TOKEN)
    if token is not None and (not token.isascii() or not token.isprintable() or " " in token):
        raise CeeGymError(f"{TOKEN} has to be printable ASCII without spaces")
    if token == "":
        raise CeeGymError(f"{TOKEN} is empty: unset it, or give it a value")
    return token


class Access:
    """Refuses requests under a name that is not the server's, and those without the token.

    A page on the web can have its own name lead to this machine (DNS rebinding), and then read the
    answers of a server that listens on the local host alone. Its requests carry its own name.

    Args:
        app: to go on to.
        hosts: names and addresses it is called by, beside those of the local host; `"*"` allows
            any.
        token: that every request but `GET /health` has to show; None for none.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], token: str | None) -> None:
        self._app = app
        self._hosts = {host.lower().strip("[]") for host in (*LOCAL, *hosts)}
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 400 or 401, or goes on."""
        if scope["type"] == "http":
            refusal = self._refusal(scope["path"], Headers(scope=scope))
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, path: str, headers: Headers) -> JSONResponse | None:
        name = host_of(headers.get("host", ""))
        if ANY not in self._hosts and name not in self._hosts:
            return failure(
                HTTPStatus.BAD_REQUEST,
                f"this server does not answer to the name {name!r}: use one of "
                f"{', '.join(sorted(self._hosts))}, or start it with --allowed-host NAME",
            )
        if self._token is None or path == "/health":
            return None
        given = headers.get("authorization", "")
        if hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            return None
        return failure(
            HTTPStatus.UNAUTHORIZED,
            "this server wants the header authorization: Bearer TOKEN, with its token",
            {"www-authenticate": "Bearer"},
        )


def host_of(header: str) -> str:
    """The name in a Host header, without the port.

    >>> [host_of(given) for given in ("Localhost:8000", "[::1]:8000", "::1", "a.example")]
    ['localhost', '::1', '::1', 'a.example']
    """
    header = header.strip().lower()
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header if header.count(":") > 1 else header.partition(":")[0]


def failure(status: HTTPStatus, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An answer that says in one line what is wrong."""
    return JSONResponse({"detail": detail}, status, headers)
