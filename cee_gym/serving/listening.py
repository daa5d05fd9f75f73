"""The address that a server listens on."""

import socket

from cee_gym.errors import CeeGymError, check_number


def bound(host: str, port: int) -> socket.socket:
    """A socket at this address that does not accept connections yet.

    Args:
        host: a name or an address.
        port: 0 for one that is free.

    Raises:
        CeeGymError: if nobody can listen there.
    """
    check_number("port", port, 0, 65535)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except (OSError, OverflowError) as error:
        raise CeeGymError(
            f"cannot listen on {host} port {port}: {getattr(error, 'strerror', None) or error}"
        ) from None
    return found


def say_serving(listening: socket.socket) -> None:
    """Prints the one line that says where the server is, once it answers there."""
    address, port = listening.getsockname()[:2]
    name = f"[{address}]" if ":" in address else address
    print(f"serving on http://{name}:{port}, described at /docs; stop it with Ctrl-C", flush=True)
