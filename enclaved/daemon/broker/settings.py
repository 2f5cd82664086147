"""What a client may ask of the daemon at once: the table `[broker]`."""

from __future__ import annotations

from dataclasses import dataclass

from enclave.protocol.messages import Limits
from enclave.protocol.packing import BODY_LIMITS, MIB
from enclaved.daemon.config import setting

_LIMITS = Limits()


@dataclass(frozen=True)
class BrokerSettings:
    """Each session is told its own limits in the welcome."""

    body_bytes_max: int = setting(
        _LIMITS.body_bytes, "Bytes of a request's body.", minimum=1024, maximum=BODY_LIMITS.frame_bytes
    )
    attachment_bytes_max: int = setting(
        _LIMITS.attachment_bytes, "Bytes of one attachment.", minimum=1024, maximum=2**40
    )
    attachments_max: int = setting(_LIMITS.attachments, "Attachments of a request.", minimum=0, maximum=1024)
    frame_bytes_max: int = setting(
        128 * MIB,
        "A frame above it ends the connection without a word: ZeroMQ does that, before the daemon sees it.",
        minimum=64 * 1024,
        maximum=2**40,
    )
    open_requests_max: int = setting(
        _LIMITS.open_requests, "Requests of a session that have not ended; more are `busy`.", minimum=1, maximum=65_536
    )
    queued_bytes_max: int = setting(
        _LIMITS.queued_bytes,
        "Bytes of a session's requests that nobody works on yet; more are `busy`.",
        minimum=1024,
        maximum=2**40,
    )
    unread_bytes_max: int = setting(
        _LIMITS.unread_bytes,
        "Bytes of answers kept for a session that does not read them; then its sequences pause.",
        minimum=64 * 1024,
        maximum=2**40,
    )
    sessions_max: int = setting(1024, "Sessions at once; more are `busy`.", minimum=1, maximum=65_536)
    silent_seconds_max: float = setting(
        60.0, "A client whose process does not run (stopped, or hung) for so long has gone.", minimum=5, maximum=86_400
    )

    @property
    def limits(self) -> Limits:
        """What a session is told."""
        return Limits(
            body_bytes=self.body_bytes_max,
            attachment_bytes=self.attachment_bytes_max,
            attachments=self.attachments_max,
            open_requests=self.open_requests_max,
            queued_bytes=self.queued_bytes_max,
            unread_bytes=self.unread_bytes_max,
        )
