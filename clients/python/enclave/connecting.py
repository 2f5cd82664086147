"""How both clients find the daemon and what they say when they don't. No ZeroMQ here: dealer.py has the socket.

The address may mean starting a daemon (discovery.py).
"""

from __future__ import annotations

import os
import sys

from enclave import __version__
from enclave.calls import priority_of
from enclave.exceptions import (
    BadRequestError,
    ConnectionLostError,
    DaemonUnavailableError,
    EnclaveError,
    LostRequest,
)
from enclave.protocol.messages import NAME_LENGTH_MAX, REFERENCE_LENGTH_MAX, SECONDS_MAX, Priority
from enclave.protocol.records import record

CONNECT_SECONDS = 10.0
"""For finding or starting the daemon, and its welcome."""

NOT_STARTED_HINT = "Start `enclaved`, or let the client start it (start=True)."
"""Of the error about a daemon that does not run and was not to be started."""

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
        """The options with their defaults; raises BadRequestError for what they cannot be."""
        if name is not None:
            _check("name", name, _is_text(name, NAME_LENGTH_MAX), f"text of at most {NAME_LENGTH_MAX} characters")
        if endpoint is not None:
            _check("endpoint", endpoint, _is_text(endpoint, REFERENCE_LENGTH_MAX), "an address such as ipc:///path")
        _check("timeout", timeout, _is_seconds(timeout), "a number of seconds")
        return cls(
            name=name or _program_name(),
            priority=priority_of(priority),
            start=start,
            endpoint=endpoint,
            timeout=timeout,
        )


def _check(field: str, value: object, is_right: bool, expected: str) -> None:
    if not is_right:
        shown = repr(value)
        raise BadRequestError(f"{field}: expected {expected}, not {shown[:40]}{'…' * (len(shown) > 40)}", field=field)


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value <= SECONDS_MAX


def _is_text(value: object, length_max: int) -> bool:
    if not isinstance(value, str) or len(value) > length_max:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _program_name() -> str:
    name = os.path.basename(sys.argv[0] if sys.argv else "")  # noqa: PTH119 - pathlib is slow to import
    return name.encode(errors="replace").decode()[:NAME_LENGTH_MAX] or "python"


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
        raise DaemonUnavailableError(f"no daemon is running for {where.home}", hint=NOT_STARTED_HINT)
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


def no_connection(address: str, error: Exception) -> DaemonUnavailableError:
    """What connecting ends with when the socket cannot be made, or not for this address."""
    return DaemonUnavailableError(
        f"no connection to {address} can be made: {error}", hint="Is it an address such as ipc:///path?"
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
