"""The methods of the wire: what each does, with the parts that this class is given.

Whatever a method waits for, it waits no longer than its client does: until the cancel, or the request's deadline.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from enclave.protocol.bodies import (
    DaemonInfo,
    Empty,
    HealthResult,
    InstancesResult,
    LoadParams,
    ModelParams,
    ModelShow,
    ModelsParams,
    PluginInfo,
    PluginsResult,
    UnloadParams,
    UnloadResult,
    WhyParams,
    WhyRecord,
    WhyResult,
)
from enclave.protocol.errors import RemoteProtocolError
from enclave.protocol.folder_bodies import FolderInfo, FolderParams, FoldersResult
from enclave.protocol.messages import PROTOCOL_VERSION, Result
from enclave.protocol.methods import read_params, write_body
from enclaved import __version__
from enclaved.core.events import Priority, RequestArrived, UnloadAsked, Wish
from enclaved.core.ids import InstanceId, ModelKey
from enclaved.core.reasons import Reason, Why
from enclaved.core.story import Record, Story
from enclaved.daemon.broker import Call, refusal_of
from enclaved.daemon.catalog import Folder, Folders, Looker
from enclaved.daemon.clock import Clock
from enclaved.daemon.conductor import Conductor
from enclaved.daemon.hands import WorkerHands
from enclaved.daemon.model_book import ModelBook
from enclaved.daemon.models import Models, while_open
from enclaved.daemon.news import News
from enclaved.daemon.readahead import read_ahead
from enclaved.daemon.refusal import RefusalError
from enclaved.daemon.supervisor import Supervisor
from enclaved.plugin.manager import PluginLine
from enclaved.plugin.model import ModelEntry

OWN_BODY_BYTES_MAX = 64 * 1024
"""Of a request that the daemon answers itself. Its body is read in the loop that serves everybody; the largest that
makes sense holds two names, of up to four bytes a character."""
VOCABULARY_REQUESTS_MAX = 4
"""Whose bodies are taken and whose files are open at once. Their inspector does one after the other; while one of them
is being opened on a slow disk, others go on."""

T = TypeVar("T")

logger = logging.getLogger("enclaved.methods")


@dataclass(frozen=True)
class Identity:
    """Which daemon this is."""

    endpoint: str
    home: str
    executable: str
    started: float
    """Seconds since 1970."""


class Methods:
    """Answers calls: by itself, or by handing them to the core."""

    def __init__(
        self,
        *,
        identity: Identity,
        models: Models,
        conductor: Conductor,
        hands: WorkerHands,
        supervisor: Supervisor,
        looker: Looker,
        folders: Folders,
        plugins: tuple[PluginLine, ...],
        clock: Clock,
        sessions: Callable[[], int],
        stop: Callable[[], None],
    ) -> None:
        self._identity = identity
        self._models = models
        self._conductor = conductor
        self._hands = hands
        self._supervisor = supervisor
        self._folders = folders
        self._plugins = plugins
        self._clock = clock
        self._sessions = sessions
        self._stop = stop
        self._book = ModelBook(models.catalog, models.backends)
        self._news = News(conductor.state, hands, self._book, clock)
        looker.on_change = self._news.models_changed
        conductor.on_step = self.looked
        self._answers_at_once: dict[str, Callable[[Call, Any], object]] = {
            "daemon.info": self._info,
            "daemon.health": self._health,
            "daemon.shutdown": self._shutdown,
            "instances.list": self._list_instances,
            "plugins.list": self._list_plugins,
        }
        self._answers: dict[str, Callable[[Call, Any], Awaitable[object]]] = {
            "models.list": self._list_models,
            "models.show": self._show_model,
            "folders.list": self._list_folders,
            "folders.add": self._add_folder,
            "folders.remove": self._remove_folder,
            "events.subscribe": self._news.subscribe,
            "instances.unload": self._unload,
            "scheduler.why": self._why,
        }
        """Those that wait for something. Bytes are a body that is written already."""
        self._relays: dict[str, Callable[[Call], Awaitable[bytes]]] = {
            "tokenize": self._use_vocabulary,
            "detokenize": self._use_vocabulary,
        }
        """Those whose bodies are for a child to read, and to write."""
        self._asks: dict[str, Callable[[Call, Any, float | None], Awaitable[None]]] = {"instances.load": self._load}
        """Those that the core ends, as it does all that run a model."""
        self._may_use_vocabulary = asyncio.Semaphore(VOCABULARY_REQUESTS_MAX)
        self._reading_ahead: set[asyncio.Future[None]] = set()
        self._telling = asyncio.Lock()
        """A story is long: one is told at a time."""

    def looked(self) -> None:
        """Something may have changed that subscribers hear of."""
        self._news.looked()

    def handle(self, call: Call) -> Coroutine[Any, Any, None] | None:
        """Answers a call at once, or gives the work that answers it or leaves its end to the core. Neither raises for
        what a client can cause."""
        arrived_at = self._clock.monotonic()
        answer = self._answers_at_once.get(call.request.method)
        if answer is None:
            return self._work(call, arrived_at)
        try:
            result = answer(call, _params_of(call))
            call.result(Result(id=call.request.id, body=write_body(result)))
        except RefusalError as refusal:
            call.error(refusal)
        return None

    async def _work(self, call: Call, arrived_at: float) -> None:
        deadline = call.request.deadline
        deadline_at = None if deadline is None else arrived_at + deadline
        try:
            async with while_wanted(call, deadline_at, self._clock):
                if (answer := self._answers.get(call.request.method)) is not None:
                    result = await answer(call, _params_of(call))
                    body = result if isinstance(result, bytes) else write_body(result)
                    call.result(Result(id=call.request.id, body=body))
                elif (relay := self._relays.get(call.request.method)) is not None:
                    call.result(Result(id=call.request.id, body=await relay(call)))
                elif (ask := self._asks.get(call.request.method)) is not None:
                    await ask(call, _params_of(call), deadline_at)
                else:
                    await self._generate(call, deadline_at)
        except RefusalError as refusal:
            call.error(refusal)

    # --- running a model ---

    async def _generate(self, call: Call, deadline_at: float | None) -> None:
        request = call.request
        for name in ("adapter", "draft", "projector", "prefix"):
            if getattr(request, name) is not None:
                raise RefusalError("unsupported", f"{name} is not built yet", field=name)
        wish = Wish(context=request.context)
        await self._ask_core(call, request.model, request.backend, wish, deadline_at, load_only=False)

    async def _load(self, call: Call, params: LoadParams, deadline_at: float | None) -> None:
        if params.pin is not None:
            raise RefusalError("unsupported", "pin is not built yet", field="pin")
        wish = Wish(
            context=params.context,
            threads=params.threads,
            sequences=params.sequences,
            kv_type=params.kv_type,
            flash_attention=params.flash_attention,
        )
        await self._ask_core(call, params.model, params.backend, wish, deadline_at, load_only=True)

    async def _ask_core(
        self,
        call: Call,
        reference: str | None,
        backend_name: str | None,
        wish: Wish,
        deadline_at: float | None,
        *,
        load_only: bool,
    ) -> None:
        entry, backend = await self._models.choose(reference, backend_name)
        if not any(i.need.model in self._models.keys_of(entry) for i in self._conductor.state.instances.values()):
            # The worker can import its libraries while the header is read and the core decides.
            self._supervisor.prepare(backend.name)
        need = await self._models.need(entry, backend, wish)
        if not any(i.need.model == need.model for i in self._conductor.state.instances.values()):
            self._read_ahead(entry)
        if call.wants_cancel:  # in the very turn in which this came back: from here on the core ends it
            raise refusal_of(Reason(Why.CANCELLED))
        priority: Priority = (call.request.priority or call.client.priority).value
        self._hands.take(call, need.model, priority)
        self._conductor.post(
            RequestArrived(
                cause=call.id,
                request=call.id,
                client=call.client.id,
                need=need,
                wish=wish,
                priority=priority,
                deadline_at=deadline_at,
                load_only=load_only,
                asker=str(call.client),
            )
        )

    def _read_ahead(self, entry: ModelEntry) -> None:
        """Nobody waits for it, and what becomes of it makes no difference to what a load says."""
        task = asyncio.ensure_future(asyncio.to_thread(read_ahead, [file.path for file in entry.files]))
        self._reading_ahead.add(task)
        task.add_done_callback(self._reading_ahead.discard)

    async def _unload(self, call: Call, params: UnloadParams) -> UnloadResult:
        state = self._conductor.state
        if params.instance is not None:
            found = state.instances.get(InstanceId(params.instance))
            keys = [found.need.model] if found is not None else []
        elif params.model is not None:
            keys = self._models.keys_of(await self._models.catalog.resolve(params.model))
        else:
            message = "say which model or which instance"
            if call.request.model is not None:
                message = f"model: missing{_IN_THE_BODY}"
            raise RefusalError("bad_request", message, field="model")
        instances = [i.id for i in state.instances.values() if i.need.model in keys]
        if not instances:
            raise RefusalError("instance_not_found", f"{params.model or params.instance} is not loaded")
        for key in keys:
            self._conductor.post(UnloadAsked(call.id, key))
        await self._hands.wait_gone(instances)
        return UnloadResult(unloaded=tuple(instances))

    def _list_instances(self, call: Call, params: Empty) -> InstancesResult:
        return InstancesResult(instances=tuple(self._hands.instances(self._conductor.state)))

    # --- models ---

    async def _list_models(self, call: Call, params: ModelsParams) -> bytes:
        if not params.after:
            await self._book.look()
        page = await self._book.page(params.after, params.limit)
        return await asyncio.to_thread(write_body, page)

    async def _use_vocabulary(self, call: Call) -> bytes:
        request = call.request
        entry, backend = await self._models.choose(request.model, request.backend)
        if backend.vocabulary is None:
            message = f"the backend {backend.name} opens no vocabulary on its own"
            raise RefusalError("unsupported", message, hint="Choose a model of another backend.", field="model")
        use = self._supervisor.use_vocabulary
        # Until then the body counts as one of the client's that wait.
        async with self._may_use_vocabulary, while_open(entry) as files:
            return await use(entry.name, backend.vocabulary, files, request.method, call.take_body())

    async def _show_model(self, call: Call, params: ModelParams) -> ModelShow:
        entry, backend = await self._models.choose(params.model, None)
        header, _ = await self._models.header(entry, backend)
        return await self._book.show(entry, header, backend.refuse(header))

    async def _list_folders(self, call: Call, params: Empty) -> FoldersResult:
        return FoldersResult(folders=tuple(_folder_info(folder) for folder in await self._folders.list()))

    async def _add_folder(self, call: Call, params: FolderParams) -> FolderInfo:
        return _folder_info(await self._folders.add(params.path))

    async def _remove_folder(self, call: Call, params: FolderParams) -> Empty:
        await self._folders.remove(params.path)
        return Empty()

    # --- the daemon ---

    def _info(self, call: Call, params: Empty) -> DaemonInfo:
        identity = self._identity
        return DaemonInfo(
            version=__version__,
            protocol=PROTOCOL_VERSION,
            pid=os.getpid(),
            endpoint=identity.endpoint,
            home=identity.home,
            started=identity.started,
            executable=identity.executable,
            python=platform.python_version(),
            platform=sys.platform,
            sessions=self._sessions(),
        )

    def _health(self, call: Call, params: Empty) -> HealthResult:
        state = self._conductor.state
        waiting = len(state.waiting())
        problems = [f"plugin {line.name}: {line.problem}" for line in self._plugins if line.state == "failed"]
        kept = (self._models.catalog.problem, self._folders.problem)
        problems += [problem for problem in kept if problem is not None]
        return HealthResult(
            status="degraded" if problems else "ok",
            problems=tuple(problems),
            uptime_seconds=self._clock.wall() - self._identity.started,
            instances=len(state.instances),
            queued=waiting,
            running=len(state.requests) - waiting,
        )

    def _shutdown(self, call: Call, params: object) -> Empty:
        self._stop()
        return Empty()

    def _list_plugins(self, call: Call, params: Empty) -> PluginsResult:
        return PluginsResult(
            plugins=tuple(
                PluginInfo(
                    name=line.name,
                    version=line.version or "",
                    kinds=line.kinds,
                    state=line.state,
                    problem=line.problem,
                )
                for line in self._plugins
            )
        )

    async def _why(self, call: Call, params: WhyParams) -> bytes:
        models: list[ModelKey] | None = None
        if params.model is not None:
            models = self._models.keys_of(await self._models.catalog.resolve(params.model))
        offset = self._clock.wall() - self._clock.monotonic()
        while True:
            # Not under the lock: a client that does not read would hold up the others.
            await call.room()
            async with self._telling:
                if call.has_room:
                    return await _to_its_end(partial(_why_body, self._conductor.story.copy(), params, models, offset))


@asynccontextmanager
async def while_wanted(call: Call, deadline_at: float | None, clock: Clock) -> AsyncGenerator[None]:
    """Ends what is awaited inside when the call's client cancels it, or when its deadline passes. Raises RefusalError
    then."""
    if call.wants_cancel:
        raise refusal_of(Reason(Why.CANCELLED))
    loop = asyncio.get_running_loop()
    now = clock.monotonic()
    limit = asyncio.timeout(None if deadline_at is None else max(0.0, deadline_at - now))

    def end() -> None:
        if not limit.expired():
            limit.reschedule(loop.time())

    try:
        async with limit:
            call.on_cancel = end
            try:
                yield
            finally:
                if call.on_cancel is end:
                    call.on_cancel = lambda: None
    except TimeoutError:
        if not limit.expired():
            raise
        if call.wants_cancel:
            raise refusal_of(Reason(Why.CANCELLED)) from None
        raise refusal_of(Reason(Why.DEADLINE, {"waited_seconds": call.request.deadline or 0.0})) from None


def _params_of(call: Call) -> Any:
    """What a request to the daemon itself asks for. Its body is not kept. Raises RefusalError."""
    request = replace(call.request, body=call.take_body())
    size_bytes = len(request.body)
    if size_bytes > OWN_BODY_BYTES_MAX:
        raise RefusalError(
            "too_large",
            f"the body has {size_bytes:,} bytes; for {request.method}, at most {OWN_BODY_BYTES_MAX:,} are allowed",
            field="body",
            numbers={"size": size_bytes, "size_max": OWN_BODY_BYTES_MAX},
        )
    try:
        return read_params(request)
    except RemoteProtocolError as error:
        elsewhere = error.field == "model" and request.model is not None
        raise RefusalError(
            error.code,
            f"{error.message}{_IN_THE_BODY}" if elsewhere else error.message,
            hint=error.hint,
            numbers=error.numbers,
            retry_after=error.retry_after,
            field=error.field or "body",
        ) from error


_IN_THE_BODY = "; this method takes it in the body"


def _folder_info(folder: Folder) -> FolderInfo:
    return FolderInfo(
        path=folder.path, source=folder.source, added=folder.is_added, models=folder.models, problem=folder.problem
    )


async def _to_its_end(work: Callable[[], T]) -> T:
    """Does it in a thread. Who is cancelled meanwhile still waits for the thread, so that it is never left running."""
    doing = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(doing)
    finally:
        await asyncio.wait([doing])


def _why_body(story: Story, params: WhyParams, models: list[ModelKey] | None, offset: float) -> bytes:
    if models is not None:
        records = story.about_models(*models, limit=params.limit)
    else:
        records = story.about(*([params.request] if params.request is not None else []), limit=params.limit)
    return write_body(WhyResult(records=tuple(_why_record(record, offset) for record in records)))


def _why_record(record: Record, offset: float) -> WhyRecord:
    data = record.to_map()
    for shown in ("number", "at"):
        del data[shown]
    kind = f"{data.pop('kind')} {data.pop('name')}"
    return WhyRecord(number=record.number, at=record.at + offset, kind=kind, cause=record.because, data=data)
