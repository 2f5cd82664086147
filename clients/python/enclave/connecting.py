"""How both clients find the daemon and what they say when they don't. No ZeroMQ here: dealer.py has the socket.

The address may mean starting a daemon (discovery.py).
"""

from __future__ import annotations

import os
import sys

from enclave import __version__
from enclave.calls import priority_of
from enclave.exceptions import ConnectionLostError, DaemonUnavailableError, EnclaveError, LostRequest
from enclave.protocol.messages import Priority
from enclave.protocol.records import record

CONNECT_SECONDS = 10.0
"""For finding or starting the daemon, and its welcome."""

CONNECT_ATTEMPTS = 2
"""A daemon may end between being found and being greeted; one that drops everyone is no daemon."""


@record
class ClientOptions:
    """What a client was made with."""

    name: str
    priority: Priority
    start: bool
    endpoint: str | None
    timeout: float

    @classmethod
    def make(
        cls, name: str | None, priority: str | Priority, start: bool, endpoint: str | None, timeout: float
    ) -> ClientOptions:
        """The options with their defaults; raises BadRequestError for an unknown priority."""
        return cls(
            name=name or os.path.basename(sys.argv[0]) or "python",  # noqa: PTH119 - pathlib is slow to import
            priority=priority_of(priority),
            start=start,
            endpoint=endpoint,
            timeout=timeout,
        )


def program() -> str:
    """This library and its version, for the daemon's log."""
    # importlib.metadata would take longer than connecting does.
    return f"enclaved-client/{__version__}"


def find_address(options: ClientOptions, timeout: float) -> str:
    """The address to connect to, after starting a daemon if there is none and it is wished. Blocks.

    Raises DaemonUnavailableError, or the error that a starting daemon reports.
    """
    if options.endpoint is not None:
        return options.endpoint
    from enclave.discovery import running, start_daemon
    from enclave.paths import places

    where = places(os.environ)
    found = running(where)
    if found is None and options.start:
        found = start_daemon(where, os.environ, timeout)
    if found is None:
        raise DaemonUnavailableError(
            f"no daemon is running for {where.home}", hint="Start `enclaved`, or let the client start it (start=True)."
        )
    return found.address


def lost_error() -> ConnectionLostError:
    """What open calls end with."""
    return ConnectionLostError("the connection to the daemon was lost")


def no_welcome(address: str, timeout: float) -> DaemonUnavailableError:
    """What connecting ends with when somebody listens at the address, and says nothing."""
    from enclave.paths import places, read_state

    where = places(os.environ)
    state = read_state(where)
    if state is None or state.endpoint != address:
        return DaemonUnavailableError(
            f"the daemon at {address} does not answer, not within {timeout:g} s",
            hint="Is it a daemon of Enclave, and not stopped?",
        )
    return DaemonUnavailableError(
        f"the daemon (pid {state.pid}) does not answer, not within {timeout:g} s",
        hint=f"End it with `kill {state.pid}`, or `kill -KILL {state.pid}` if that does not help; "
        f"its log is {where.log_file}.",
    )


def no_answer(address: str) -> DaemonUnavailableError:
    """What connecting ends with when the connection does not hold."""
    return DaemonUnavailableError(f"nothing answers at {address}")


def not_again(request: LostRequest, error: EnclaveError) -> EnclaveError:
    """What a request ends with that was lost before its answer had begun, and cannot be asked again."""
    if error.code not in ("daemon_unavailable", "connection_lost"):
        return error
    lost = ConnectionLostError.about(request, lost_error().message, (request,))
    lost.hint = error.hint or lost.hint
    return lost
