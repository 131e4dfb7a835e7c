"""Whether anything answers at an address. Ray's own clients would try for a minute, or forever."""

import http.client
import re
import socket
import urllib.error
import urllib.request

from workers.errors import UserError

CONNECT_TIMEOUT_S = 5.0
MAX_PORT = 65535


def require_head(address: str) -> None:
    """Check that a Ray head accepts connections at HOST:PORT; `auto` is left to Ray.

    Raises:
        UserError: nothing answers, or the address has another form.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or int(port) > MAX_PORT:
        raise UserError(f"--address is {address!r}; write local, auto or HOST:PORT")
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, UnicodeError) as error:
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
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _no_answer(address, "head runs with its dashboard", error) from error


def _no_answer(address: str, expected: str, error: Exception) -> UserError:
    return UserError(
        f"nothing answers at --address {address} ({error}); check that the {expected} (`ray "
        "status` there) and that its port is open from here"
    )
