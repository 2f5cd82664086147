"""A daemon that exists in this process only: it answers as told and writes down what it was asked.

Tests use it in place of `enclave.Client`; run as a script, it is the command line with such a daemon behind it, so
that signals, pipes and terminals can be tried on a process of its own.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, Unpack, cast

from enclave.calls import Message, RequestOptions, SamplingOptions
from enclave.exceptions import EnclaveError, error_for
from enclave.protocol.bodies import (
    AskerInfo,
    DaemonInfo,
    EventChunk,
    HealthResult,
    InstanceInfo,
    JsonMap,
    LoadResult,
    MemoryInfo,
    ModelHeaderInfo,
    ModelInfo,
    ModelShow,
    PluginInfo,
    PullResult,
    Ranked,
    RenderResult,
    TextChunk,
    Timings,
    UnloadResult,
    Usage,
    WallsInfo,
    WhyRecord,
)
from enclave.protocol.codec import encode
from enclave.protocol.folder_bodies import FolderInfo
from enclave.protocol.messages import Progress, Stage
from enclave.results import Embeddings, Ranking, Receipt
from enclave_cli.daemon import Notice
from enclave_cli.invocation import Priority

TINY = ModelInfo(
    name="tiny", source="builtin", size=1_185_376, backends=("fake",), default=True, note="Too small to be right."
)
OTHER = ModelInfo(name="folder:other", source="folder", size=4 * 1024**3, backends=("fake", "llama_cpp"))
READY = InstanceInfo(
    id="i1",
    model="tiny",
    state="ready",
    wanted="ready",
    backend="fake",
    device="cpu",
    pid=4711,
    memory=MemoryInfo(estimated_bytes=2 * 1024**2, measured_bytes=3 * 1024**2),
    leases=1,
    queued=2,
    threads=1,
    context=2048,
    loaded_seconds=75.0,
    walls=WallsInfo(state="partial", missing=("landlock",)),
    askers=(
        AskerInfo(session="c1", name="my-editor", pid=4712, program="/usr/bin/editor", running=1, queued=1),
        AskerInfo(session="c2", name="enclave-cli", queued=1),
    ),
)
LOADING = Progress(id=1, stage=Stage.LOADING, fraction=0.4)
WAITING = Progress(id=1, stage=Stage.QUEUED, ahead=2, reason="the model is busy")
USAGE = Usage(prompt_tokens=5, cached_tokens=3, completion_tokens=42)
TIMINGS = Timings(prompt_seconds=0.01, first_token_seconds=0.02, decoding_seconds=1.0)


RECEIPT = Receipt(
    model="tiny",
    model_hash="sha256:c0ffee",
    backend="fake",
    device="cpu",
    instance="i1",
    template="the model's own",
    prompt_tokens=5,
    cached_tokens=3,
    completion_tokens=42,
    uncached_reason="the beginning differs",
    queued_seconds=0.002,
    loading_seconds=0.5,
    prompt_seconds=0.01,
    decoding_seconds=1.0,
    preempted=1,
    charged_seconds=1.25,
    context=2048,
)


@dataclass
class FakeAnswer:
    finish_reason: str = "stop"
    usage: Usage = USAGE
    timings: Timings = TIMINGS
    receipt: object = RECEIPT


@dataclass
class FakeChatAnswer(FakeAnswer):
    message: JsonMap = field(default_factory=dict[str, object])


class FakeLoading:
    def result(self) -> LoadResult:
        return LoadResult(instance=READY)


class FakePulling:
    def __init__(self, daemon: FakeDaemon, notice: Notice) -> None:
        self._daemon = daemon
        self._notice = notice

    def result(self) -> PullResult:
        for progress in self._daemon.progress:
            self._notice(progress)
        try:
            self._daemon.rest()
        finally:
            self._daemon.told("ended")
        return PullResult(name="tiny", size=1_185_376, path="/models/tiny.gguf")


class FakeStream:
    def __init__(self, daemon: FakeDaemon, notice: Notice, answer: FakeAnswer) -> None:
        self._daemon = daemon
        self._notice = notice
        self._answer = answer

    def __iter__(self) -> Iterator[TextChunk]:
        for progress in self._daemon.progress:
            self._notice(progress)
        yield from self._daemon.chunks or [TextChunk(text=text, tokens=(1, 2)) for text in self._daemon.texts]
        self._daemon.rest()
        failure = self._daemon.answer_fails_with or self._daemon.fails_with
        if failure is not None:
            raise failure

    def result(self) -> FakeAnswer:
        return self._answer

    def cancel(self) -> None:
        self._daemon.asked.append(("cancel", {}))
        self._daemon.told("cancelled")


NO_PID = 2**22 + 1
"""Of no process: above the most that Linux has."""
EVENTS = (
    EventChunk(topic="instances", name="snapshot", number=1, at=0.25, data={"i1": encode(READY)}),
    EventChunk(topic="downloads", name="snapshot", number=0, at=0.25, data={}),
)


_STREAMS = frozenset({"generate", "chat", "infill"})
"""Calls that fail when their answer is read."""


@dataclass
class FakeDaemon:
    """What it is to say, and what it was asked."""

    texts: Sequence[str] = ("Once", " upon", " a time.")
    chunks: Sequence[TextChunk] = ()
    """Instead of the texts."""
    message: JsonMap = field(default_factory=lambda: {"role": "assistant", "content": "Once upon a time."})
    """What a chat's answer is in the end."""
    vectors: Sequence[Sequence[float]] = ((0.5, -0.25, 0.125, 0.0, 1.0), (1.0, 0.0, 0.0, 0.0, 0.0))
    ranking: Sequence[Ranked] = (Ranked(index=1, score=0.75), Ranked(index=0, score=-0.5))
    tokens: Sequence[int] = (1, 403, 407)
    text: str = "<s>Once\x1b upon"
    """What ids and conversations become."""
    downloads_known: Sequence[JsonMap] = ()
    news: Sequence[EventChunk] = EVENTS
    progress: Sequence[Progress] = ()
    models_known: Sequence[ModelInfo] = (TINY, OTHER)
    instances_known: Sequence[InstanceInfo] = (READY,)
    plugins_known: Sequence[PluginInfo] = (
        PluginInfo(name="fake", version="0.1.0", kinds=("backend", "source")),
        PluginInfo(name="torn", version="2", state="failed", problem="ImportError: no module named 'gone'"),
    )
    folders_known: Sequence[FolderInfo] = (
        FolderInfo(path="/models", source="folder", added=True, models=2),
        FolderInfo(path="/mnt/nas", source="folder", models=1, problem="it is on a network (nfs)"),
    )
    records: Sequence[WhyRecord] = (
        WhyRecord(number=7, at=0.25, kind="RequestArrived", text="a request for tiny", data={"prompt_bytes": 9}),
        WhyRecord(number=8, at=1.5, kind="Load", cause=7, text="loading tiny"),
    )
    fails_with: BaseException | None = None
    """Raised by every call, by that of an answer after its texts."""
    answer_fails_with: BaseException | None = None
    """Raised by an answer after its texts only."""
    template: bool = False
    """Whether the header of every model has a chat template."""
    hangs: bool = False
    """An answer never ends after its texts."""
    connects: bool = True
    """Whether connecting to it comes to an end."""
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list[tuple[str, dict[str, Any]]])
    tell: Callable[[str], object] | None = None

    def told(self, word: str) -> None:
        if self.tell is not None:
            self.tell(word)

    def connect(self, *, start: bool, priority: Priority) -> FakeDaemon:
        self.asked.append(("connect", {"start": start, "priority": priority}))
        if isinstance(self.fails_with, EnclaveError) and self.fails_with.code == "daemon_unavailable":
            raise self.fails_with
        return self

    def __enter__(self) -> Self:
        if not self.connects:
            threading.Event().wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.asked.append(("close", {}))

    def request(self, name: str) -> dict[str, Any]:
        """The parameters of the only call of this name."""
        (parameters,) = [parameters for called, parameters in self.asked if called == name]
        return parameters

    def _call(self, name: str, **parameters: Any) -> None:
        self.asked.append((name, parameters))
        if self.fails_with is not None and name not in _STREAMS:
            raise self.fails_with

    def rest(self) -> None:
        """Never comes back, where it is to hang."""
        if self.hangs:
            self.told("hanging")
            threading.Event().wait()

    def _stream(self, name: str, answer: FakeAnswer, options: SamplingOptions, **parameters: Any) -> FakeStream:
        notice = options.pop("progress", None)
        self._call(name, **parameters, **options)
        return FakeStream(self, notice or print, answer)

    def generate(self, model: str, prompt: str | Sequence[int], **options: Unpack[SamplingOptions]) -> FakeStream:
        return self._stream("generate", FakeAnswer(), options, model=model, prompt=prompt)

    def chat(
        self,
        model: str,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message],
        schema: Message | None,
        template: str | None = None,
        template_arguments: Message | None = None,
        **options: Unpack[SamplingOptions],
    ) -> FakeStream:
        answer = FakeChatAnswer(message=self.message)
        return self._stream("chat", answer, options, model=model, messages=messages, tools=tools, schema=schema)

    def infill(
        self, model: str, prefix: str, suffix: str, *, order: str, **options: Unpack[SamplingOptions]
    ) -> FakeStream:
        return self._stream("infill", FakeAnswer(), options, model=model, prefix=prefix, suffix=suffix, order=order)

    def embed(
        self, model: str, texts: Sequence[str], *, normalize: bool, **options: Unpack[RequestOptions]
    ) -> Embeddings:
        self._wait(options)
        self._call("embed", model=model, texts=texts, normalize=normalize, **options)
        flat = array("f", [number for vector in self.vectors for number in vector])
        shape = (len(self.vectors), len(self.vectors[0]))
        return Embeddings(vectors=memoryview(flat.tobytes()).cast("f", shape), usage=USAGE, receipt=RECEIPT)

    def rerank(
        self,
        model: str,
        query: str,
        documents: Sequence[str],
        *,
        top: int | None,
        **options: Unpack[RequestOptions],
    ) -> Ranking:
        self._wait(options)
        self._call("rerank", model=model, query=query, documents=documents, top=top, **options)
        return Ranking(ranking=tuple(self.ranking), usage=USAGE, receipt=RECEIPT)

    def _wait(self, options: RequestOptions) -> None:
        notice = options.pop("progress", None)
        for progress in self.progress:
            (notice or print)(progress)

    def tokenize(self, model: str, text: str, *, special: bool, parse_special: bool) -> Sequence[int]:
        self._call("tokenize", model=model, text=text, special=special, parse_special=parse_special)
        return self.tokens

    def detokenize(self, model: str, tokens: Sequence[int]) -> str:
        self._call("detokenize", model=model, tokens=tokens)
        return self.text

    def render(
        self,
        model: str,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message],
        template: str | None,
        add_generation_prompt: bool,
    ) -> RenderResult:
        self._call(
            "render",
            model=model,
            messages=messages,
            tools=tools,
            template=template,
            add_generation_prompt=add_generation_prompt,
        )
        return RenderResult(text=self.text, template="the model's own")

    def pull(self, reference: str, *, progress: Notice) -> FakePulling:
        self._call("pull", reference=reference)
        return FakePulling(self, progress)

    def downloads(self) -> Sequence[JsonMap]:
        self._call("downloads")
        return self.downloads_known

    def cancel_download(self, download: str) -> None:
        self._call("cancel_download", download=download)

    def events(self, *topics: str) -> Iterator[EventChunk]:
        self._call("events", topics=topics)
        yield from self.news
        self.rest()
        if self.answer_fails_with is not None:
            raise self.answer_fails_with

    def load(self, model: str, *, progress: Notice, **options: Any) -> FakeLoading:
        self._call("load", model=model, **options)
        for news in self.progress:
            progress(news)
        return FakeLoading()

    def unload(self, model: str | None, *, instance: str | None = None) -> UnloadResult:
        self._call("unload", model=model, instance=instance)
        if instance is not None and all(instance != known.id for known in self.instances_known):
            raise error_for("instance_not_found", f"{instance} is not loaded")
        return UnloadResult(unloaded=tuple(instance.id for instance in self.instances_known))

    def models(self) -> Sequence[ModelInfo]:
        self._call("models")
        return self.models_known

    def show(self, model: str) -> ModelShow:
        self._call("show", model=model)
        header = ModelHeaderInfo(
            format="gguf", architecture="llama", parameters=260_032, context_length=512, template=self.template
        )
        return ModelShow(name=model, source="builtin", size=1024, backends=("fake",), header=header, files=("a", "b"))

    def folders(self) -> Sequence[FolderInfo]:
        self._call("folders")
        return self.folders_known

    def add_folder(self, path: str) -> FolderInfo:
        self._call("add_folder", path=path)
        return FolderInfo(path=path, source="folder", added=True, models=3)

    def remove_folder(self, path: str) -> None:
        self._call("remove_folder", path=path)

    def instances(self) -> Sequence[InstanceInfo]:
        self._call("instances")
        return self.instances_known

    def plugins(self) -> Sequence[PluginInfo]:
        self._call("plugins")
        return self.plugins_known

    def why(self, request: str | None, *, model: str | None, limit: int) -> Sequence[WhyRecord]:
        self._call("why", request=request, model=model, limit=limit)
        return self.records

    def info(self) -> DaemonInfo:
        self._call("info")
        return DaemonInfo(
            version="0.1.0", protocol=1, pid=NO_PID, endpoint="ipc:///e", home="/home/e", started=0.25, sessions=2
        )

    def health(self) -> HealthResult:
        self._call("health")
        return HealthResult(status="degraded", problems=("plugin torn: gone",), uptime_seconds=75.0, running=1)

    def shutdown(self, *, now: bool) -> None:
        self._call("shutdown", now=now)


def _scripted() -> FakeDaemon:
    """The daemon that FAKE_DAEMON describes; it tells FAKE_DAEMON_FD what happens, a word a line."""
    wanted = cast("dict[str, Any]", json.loads(os.environ.get("FAKE_DAEMON", "{}")))
    for name in ("fails_with", "answer_fails_with"):
        code = wanted.get(name)
        if code is not None:
            wanted[name] = RuntimeError("boom") if code == "unforeseen" else error_for(code)
    daemon = FakeDaemon(**wanted)
    descriptor = os.environ.get("FAKE_DAEMON_FD")
    if descriptor is not None:
        daemon.tell = lambda word: os.write(int(descriptor), word.encode() + b"\n")
    return daemon


if __name__ == "__main__":
    from enclave_cli.main import main

    sys.exit(main(_scripted().connect))
