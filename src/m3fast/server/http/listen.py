"""Listening sockets and TLS certificates, checked before a model is loaded."""

from __future__ import annotations

import errno
import resource
import socket
import ssl
from typing import TYPE_CHECKING

from m3fast.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

BACKLOG = 2048
# File descriptors beside those of connections.
SPARE_FILES = 256


def listen(host: str, port: int) -> list[socket.socket]:
    """A listening socket for each address of `host`, all on one port (any free one for 0).

    Raises:
        InputError: host is no address of this machine, or the port is not free.
    """
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_ADDRCONFIG
        )
    except (OSError, UnicodeError):
        raise InputError(f"host: expected a name or an address, found {host!r}") from None
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            where = (address[0], port, *address[2:])
            try:
                sockets.append(_bound(family, where))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise InputError(_why(error, host, port)) from None
                missing = error
            else:
                port = sockets[-1].getsockname()[1]
        if missing is not None and not sockets:
            raise InputError(_why(missing, host, port)) from None
    except InputError:
        close(sockets)
        raise
    return sockets


def close(sockets: list[socket.socket]) -> None:
    """Close them all."""
    for each in sockets:
        each.close()


def _bound(family: int, where: tuple[str | int, ...]) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(where)
        made.listen(BACKLOG)  # what comes before the event loop runs waits for it
    except OSError:
        made.close()
        raise
    return made


def _why(error: OSError, host: str, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port: {port} is in use on {host}"
        case errno.EACCES | errno.EPERM:
            return f"port: no right to listen on {port}"
        case errno.EADDRNOTAVAIL:
            return f"host: expected an address of this machine, found {host!r}"
        case _:
            return f"host, port: cannot listen on {host} {port}: {error.strerror}"


def url_of(sockets: list[socket.socket], tls: bool) -> str:
    """Where the first of them can be reached."""
    host, port = sockets[0].getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    return f"http{'s' if tls else ''}://{host}:{port}"


def tls_context(cert: Path, key: Path) -> ssl.SSLContext:
    """A server's context for TLS 1.2 and later.

    Raises:
        InputError: a file is missing or is not what it should be.
    """
    for name, path in (("tls_cert", cert), ("tls_key", key)):
        try:
            with path.open("rb") as file:
                file.read(1)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise InputError(f"{name}: cannot read {str(path)!r}: {reason}") from None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # Without a password of ours OpenSSL would ask for one on the terminal.
        context.load_cert_chain(cert, key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        kind = getattr(error, "reason", None) or "unreadable"
        raise InputError(
            f"tls_cert, tls_key: expected a PEM certificate and its key without a password, "
            f"found {str(cert)!r} and {str(key)!r}: {kind}"
        ) from None
    return context


def room_for(connections: int) -> int:
    """How many of `connections` the limit on open files allows; the soft limit is raised first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return connections
    return max(1, min(connections, soft - SPARE_FILES))
