"""The methods of the wire: what each does, with the parts that this class is given."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enclave.protocol.bodies import (
    DaemonInfo,
    Empty,
    EventsParams,
    HealthResult,
    InstancesResult,
    LoadParams,
    ModelHeaderInfo,
    ModelInfo,
    ModelParams,
    ModelShow,
    ModelsResult,
    PluginInfo,
    PluginsResult,
    UnloadParams,
    UnloadResult,
    WhyParams,
    WhyRecord,
    WhyResult,
)
from enclave.protocol.errors import RemoteProtocolError
from enclave.protocol.messages import PROTOCOL_VERSION, Result
from enclave.protocol.methods import read_params, write_body
from enclaved import __version__
from enclaved.core.events import Priority, RequestArrived, UnloadAsked, Wish
from enclaved.core.ids import InstanceId
from enclaved.core.story import Record
from enclaved.daemon.broker import Call
from enclaved.daemon.catalog import OwnNames
from enclaved.daemon.clock import Clock
from enclaved.daemon.conductor import Conductor
from enclaved.daemon.hands import WorkerHands
from enclaved.daemon.models import Models
from enclaved.daemon.needs import backends_of
from enclaved.daemon.news import News
from enclaved.daemon.refusal import RefusalError
from enclaved.daemon.supervisor import Supervisor
from enclaved.plugin.manager import PluginLine
from enclaved.plugin.model import ModelEntry, ModelHeader

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
        self._plugins = plugins
        self._clock = clock
        self._sessions = sessions
        self._stop = stop
        self._news = News(conductor.state, hands, self._model_infos, clock)
        conductor.on_step = self.looked
        self._answers_at_once: dict[str, Callable[[Call, Any], object]] = {
            "daemon.info": self._info,
            "daemon.health": self._health,
            "daemon.shutdown": self._shutdown,
            "instances.list": self._list_instances,
            "plugins.list": self._list_plugins,
        }
        self._answers: dict[str, Callable[[Call, Any], Awaitable[object | None]]] = {
            "models.list": self._list_models,
            "models.show": self._show_model,
            "events.subscribe": self._subscribe,
            "instances.load": self._load,
            "instances.unload": self._unload,
            "scheduler.why": self._why,
        }

    def looked(self) -> None:
        """Something may have changed that subscribers hear of."""
        self._news.looked()

    def handle(self, call: Call) -> Coroutine[Any, Any, None] | None:
        """Answers a call at once, or gives the work that answers it or leaves its end to the core. Neither raises for
        what a client can cause."""
        answer = self._answers_at_once.get(call.request.method)
        if answer is None:
            return self._work(call)
        try:
            result = answer(call, read_params(call.request))
            call.result(Result(id=call.request.id, body=write_body(result)))
        except (RefusalError, RemoteProtocolError) as error:
            call.error(_refusal_of(error))
        return None

    async def _work(self, call: Call) -> None:
        try:
            answer = self._answers.get(call.request.method)
            if answer is None:
                await self._generate(call)
                return
            result = await answer(call, read_params(call.request))
            if result is not None:
                call.result(Result(id=call.request.id, body=write_body(result)))
        except (RefusalError, RemoteProtocolError) as error:
            call.error(_refusal_of(error))

    # --- running a model ---

    async def _generate(self, call: Call) -> None:
        request = call.request
        for name in ("adapter", "draft", "projector", "prefix"):
            if getattr(request, name) is not None:
                raise RefusalError("unsupported", f"{name} is not built yet")
        await self._ask_core(call, request.model, request.backend, Wish(context=request.context), load_only=False)

    async def _load(self, call: Call, params: LoadParams) -> None:
        if params.pin is not None:
            raise RefusalError("unsupported", "pin is not built yet")
        wish = Wish(
            context=params.context,
            threads=params.threads,
            sequences=params.sequences,
            kv_type=params.kv_type,
            flash_attention=params.flash_attention,
        )
        await self._ask_core(call, params.model, params.backend, wish, load_only=True)

    async def _ask_core(
        self, call: Call, reference: str | None, backend_name: str | None, wish: Wish, *, load_only: bool
    ) -> None:
        entry, backend = await self._models.choose(reference, backend_name)
        if not any(i.need.model in self._models.keys_of(entry) for i in self._conductor.state.instances.values()):
            # The worker can import its libraries while the header is read and the core decides.
            self._supervisor.prepare(backend.name)
        need = await self._models.need(entry, backend, wish)
        if call.wants_cancel:
            call.error(RefusalError("cancelled", "The request was cancelled."))
            return
        priority: Priority = (call.request.priority or call.client.priority).value
        deadline = call.request.deadline
        self._hands.take(call, need.model, priority)
        self._conductor.post(
            RequestArrived(
                cause=call.id,
                request=call.id,
                client=call.client.id,
                need=need,
                wish=wish,
                priority=priority,
                deadline_at=None if deadline is None else self._clock.monotonic() + deadline,
                load_only=load_only,
                asker=str(call.client),
            )
        )

    async def _unload(self, call: Call, params: UnloadParams) -> UnloadResult:
        state = self._conductor.state
        if params.instance is not None:
            found = state.instances.get(InstanceId(params.instance))
            keys = [found.need.model] if found is not None else []
        elif params.model is not None:
            keys = self._models.keys_of(await self._models.catalog.resolve(params.model))
        else:
            raise RefusalError("bad_request", "say which model or which instance")
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

    async def _list_models(self, call: Call, params: Empty) -> ModelsResult:
        return ModelsResult(models=tuple(await self._news.models()))

    async def _model_infos(self) -> list[ModelInfo]:
        entries = await self._models.catalog.models()
        names = await self._models.catalog.own_names()
        return [ModelInfo(**await self._model_fields(entry, names)) for entry in entries]

    async def _show_model(self, call: Call, params: ModelParams) -> ModelShow:
        entry, backend = await self._models.choose(params.model, None)
        header, _ = await self._models.header(entry, backend)
        fields: dict[str, Any] = await self._model_fields(entry, await self._models.catalog.own_names())
        fields["capabilities"] = header.capabilities
        return ModelShow(
            **fields,
            header=_header_info(header),
            files=tuple(file.path for file in entry.files),
            problem=backend.refuse(header),
        )

    async def _model_fields(self, entry: ModelEntry, names: OwnNames) -> dict[str, Any]:
        return {
            "name": entry.name,
            "source": entry.source,
            "size": await asyncio.to_thread(_size_bytes, entry),
            "backends": tuple(backends_of(entry, self._models.backends)),
            "capabilities": entry.header.capabilities if entry.header is not None else (),
            "note": entry.note or "",
            "path": entry.files[0].path if entry.files else None,
            "default": entry.name == names.default,
            "aliases": names.aliases.get(entry.name, ()),
        }

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
        problems = tuple(f"plugin {line.name}: {line.problem}" for line in self._plugins if line.state == "failed")
        return HealthResult(
            status="degraded" if problems else "ok",
            problems=problems,
            uptime_seconds=self._clock.wall() - self._identity.started,
            instances=len(state.instances),
            queued=waiting,
            running=len(state.requests) - waiting,
        )

    def _shutdown(self, call: Call, params: object) -> Empty:
        self._stop()
        return Empty()

    async def _subscribe(self, call: Call, params: EventsParams) -> None:
        await self._news.subscribe(call, params)

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

    async def _why(self, call: Call, params: WhyParams) -> WhyResult:
        story = self._conductor.story
        if params.model is not None:
            entry = await self._models.catalog.resolve(params.model)
            records = story.about_models(*self._models.keys_of(entry), limit=params.limit)
        else:
            records = story.about(*([params.request] if params.request is not None else []), limit=params.limit)
        offset = self._clock.wall() - self._clock.monotonic()
        return WhyResult(records=tuple(_why_record(record, offset) for record in records))


def _refusal_of(error: RefusalError | RemoteProtocolError) -> RefusalError:
    if isinstance(error, RefusalError):
        return error
    return RefusalError(error.code, error.message, hint=error.hint, numbers=error.numbers)


def _why_record(record: Record, offset: float) -> WhyRecord:
    data = record.to_map()
    for shown in ("number", "at"):
        del data[shown]
    kind = f"{data.pop('kind')} {data.pop('name')}"
    return WhyRecord(number=record.number, at=record.at + offset, kind=kind, cause=record.because, data=data)


def _header_info(header: ModelHeader) -> ModelHeaderInfo:
    return ModelHeaderInfo(
        format=header.format,
        architecture=header.architecture,
        parameters=header.parameters,
        quantisation=header.quantisation,
        context_length=header.context_length,
        embedding_length=header.embedding_length or None,
        layers=header.block_count or None,
        vocabulary_size=header.vocabulary_size or None,
        template=header.template_bytes > 0,
        licence=header.licence,
        name=header.name,
    )


def _size_bytes(entry: ModelEntry) -> int:
    size = 0
    for file in entry.files:
        with suppress(OSError):
            size += Path(file.path).stat().st_size
    return size
