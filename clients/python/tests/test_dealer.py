"""A client's sockets and their end."""

from __future__ import annotations

import gc
import sys
from typing import Any, cast
from unittest.mock import Mock

import pytest

from enclave.dealer import Dealer


class Owner:
    """Whom the sockets are for."""


@pytest.mark.parametrize("closed_before", [False, True])
def test_nothing_is_told_any_more_when_nobody_is_left_to_be_told(closed_before: bool) -> None:
    """libzmq waits for ever with an event in its hands whose taker has been closed."""
    owner, everything = Owner(), Mock()
    dealer = Dealer(owner)
    dealer.socket, dealer.monitor, dealer.context = everything.socket, everything.monitor, everything.context
    cast("Any", everything).socket.closed = closed_before
    dealer.close()
    done = [call[0] for call in everything.mock_calls]
    first = [] if closed_before else ["socket.disable_monitor"]
    assert done == [*first, "monitor.close", "socket.close", "context.term"]


def test_the_end_by_the_garbage_collector_is_not_left_half_done(monkeypatch: pytest.MonkeyPatch) -> None:
    owner, everything, told = Owner(), Mock(), Mock()
    monkeypatch.setattr(sys, "unraisablehook", told)
    dealer = Dealer(owner)
    dealer.socket, dealer.monitor, dealer.context = everything.socket, everything.monitor, everything.context
    cast("Any", everything).socket.close.side_effect = [KeyboardInterrupt, None]
    del owner
    gc.collect()
    assert [call[0] for call in everything.mock_calls][-2:] == ["socket.close", "context.term"]
    assert told.call_args.args[0].exc_type is KeyboardInterrupt
