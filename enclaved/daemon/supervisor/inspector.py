"""The child that reads headers of model files, started when first needed and again when it has died."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from enclaved.daemon.refusal import RefusalError
from enclaved.daemon.supervisor.child import Child, ChildEndedError, WallsMissingError
from enclaved.link.messages import FromChild, HeaderRead, HeaderRefused, ReadHeader
from enclaved.link.packing import pack
from enclaved.plugin.model import HEADER_BYTES_MAX, ModelHeader
from enclaved.plugin.plain import from_plain

HEADER_SECONDS_MAX = 20.0
"""A header takes a tenth of a second; a file that keeps its reader busy for this long is hostile."""


class Inspector:
    """Reads headers one after the other in a child of its own, so that a hostile file costs the others only time."""

    def __init__(self, start: Callable[[], Child], loop: asyncio.AbstractEventLoop) -> None:
        self._start = start
        self._loop = loop
        self._child: Child | None = None
        self._jobs: dict[int, asyncio.Future[FromChild]] = {}
        self._number = 0
        self._turn = asyncio.Lock()
        self._closed = False

    def warm_up(self) -> Child:
        """The child, started now if there is none."""
        if self._child is None or self._child.has_ended:
            child = self._start()
            child.on_message = self._received
            child.on_exit = lambda ended: self._exited(child, ended)
            self._child = child
        return self._child

    async def read_header(self, name: str, reader: str, descriptor: int) -> ModelHeader:
        """The header of an open file. Raises RefusalError: `bad_model_file`, `internal`, `shutting_down`."""
        async with self._turn:
            return await self._read_header(name, reader, descriptor)

    async def _read_header(self, name: str, reader: str, descriptor: int) -> ModelHeader:
        if self._closed:
            raise RefusalError("shutting_down", "The daemon is about to end.")
        try:
            child = self.warm_up()
        except OSError as error:
            raise RefusalError("internal", f"the reader of headers could not be started: {error}") from error
        self._number += 1
        job = ReadHeader(self._number, reader)
        answer: asyncio.Future[FromChild] = self._loop.create_future()
        self._jobs[job.job] = answer
        sent = False
        try:
            await child.wait_greeted()
            child.send(job, [descriptor])
            sent = True
            message = await asyncio.wait_for(answer, HEADER_SECONDS_MAX)
        except TimeoutError:
            child.kill()
            raise RefusalError(
                "bad_model_file", f"{name}: its header took longer than {HEADER_SECONDS_MAX:.0f} s"
            ) from None
        except OSError as error:
            raise RefusalError("internal", f"the file could not be handed to the reader: {error}") from error
        except ChildEndedError as ended:
            if self._closed:
                raise RefusalError("shutting_down", "The daemon is about to end.") from ended
            if not sent:
                raise RefusalError(
                    "internal", "the reader of headers could not be started", detail=ended.tail
                ) from ended
            raise RefusalError(
                "bad_model_file", f"{name}: reading its header ended the reader", detail=ended.tail
            ) from ended
        except WallsMissingError as error:
            raise RefusalError("internal", f"the reader of headers is not sandboxed: {error}") from error
        finally:
            self._jobs.pop(job.job, None)
            if not answer.cancel() and not answer.cancelled():
                answer.exception()  # marks it as seen, whoever told the caller
        if isinstance(message, HeaderRead):
            if len(pack(message.header)) > HEADER_BYTES_MAX:
                child.kill()
                raise RefusalError("bad_model_file", f"{name}: its header is larger than {HEADER_BYTES_MAX:,} bytes")
            try:
                return from_plain(ModelHeader, message.header)
            except ValueError as error:
                raise RefusalError("bad_model_file", f"{name}: its header makes no sense: {error}") from error
        assert isinstance(message, HeaderRefused)
        raise RefusalError("bad_model_file", f"{name}: {message.message}")

    async def close(self, seconds: float) -> None:
        """Ends the child; there is no other afterwards."""
        self._closed = True
        if self._child is not None:
            await self._child.stop(seconds)

    def _received(self, message: FromChild) -> None:
        if isinstance(message, (HeaderRead, HeaderRefused)):
            answer = self._jobs.get(message.job)
            if answer is not None and not answer.done():
                answer.set_result(message)

    def _exited(self, child: Child, ended: ChildEndedError) -> None:
        if child is not self._child:
            return
        for answer in self._jobs.values():
            if not answer.done():
                answer.set_exception(ended)
