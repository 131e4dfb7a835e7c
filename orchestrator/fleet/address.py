"""Whether anything answers at an address. Ray's own clients would try for a minute, or forever."""

import http.client
import socket
import urllib.error
import urllib.request

from workers.errors import UserError

CONNECT_TIMEOUT_S = 5.0


def require_head(address: str) -> None:
    """Check that a Ray head accepts connections at HOST:PORT; other forms are left to Ray.

    Raises:
        UserError: nothing answers.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise _no_answer(address, "head runs", error) from error


def require_dashboard(address: str) -> None:
    """Check that a web server answers at http://HOST:PORT, whatever its answer is.

    Raises:
        UserError: nothing answers.
    """
    try:
        urllib.request.urlopen(f"{address.rstrip('/')}/api/version", timeout=CONNECT_TIMEOUT_S)
    except urllib.error.HTTPError:
        return  # an answer; Ray's client judges its content
    except (OSError, http.client.HTTPException) as error:
        raise _no_answer(address, "head runs with its dashboard", error) from error


def _no_answer(address: str, expected: str, error: Exception) -> UserError:
    return UserError(
        f"nothing answers at --address {address} ({error}); check that the {expected} (`ray "
        "status` there) and that its port is open from here"
    )
