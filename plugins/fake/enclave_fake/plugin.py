"""The fake plugin's light half: a source whose references are models, and the backend that runs them.

A reference such as `fake:slow?load_seconds=2&tokens_per_second=10` is a model: its name means nothing and its knobs
(`enclave_fake.knobs`) everything. There is no file, so the source hands the header over with the entry.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import parse_qsl

from enclave_fake.knobs import knobs_of, parse_knobs, spell_knobs
from enclaved.plugin.engine import MemoryUse, Placement
from enclaved.plugin.hookspecs import Backend, Source, SourceContext, hookimpl
from enclaved.plugin.model import ModelEntry, ModelHeader, ModelName

ENCLAVE_API_VERSION = 1

VOCABULARY_SIZE = 259
"""Every byte, and three markers."""

ANSWER_MARKER = "<|answer|>"
"""Ends a prompt: what the model generates is counted from here."""

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}" + ANSWER_MARKER + "{% endif %}"
)

_PREFIX = "fake:"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class FakeBackend(Backend):
    """Runs models that do nothing but what their knobs say."""

    name = "fake"
    engine = "enclave_fake.engine:FakeEngine"
    vocabulary = "enclave_fake.engine:open_vocabulary"
    preload = ("enclave_fake.engine",)
    packages = ("enclave_fake",)

    def recognises(self, file_name: str) -> bool:
        return False

    def refuse(self, header: ModelHeader) -> str | None:
        return None if header.format == "fake" else f"the fake backend runs no {header.format} models"

    def estimate(self, header: ModelHeader, placement: Placement) -> MemoryUse:
        """The header's bytes, and of each token of context `key_length` bytes, whatever the placement's `kv_type`."""
        context = min(placement.context, header.context_length or placement.context)
        return MemoryUse(weights_bytes=header.weights_bytes, kv_bytes=header.key_length * context * placement.sequences)


class FakeSource(Source):
    """Offers whatever fake model one asks for, and lists none."""

    name = "fake"

    def models(self, context: SourceContext) -> Iterable[ModelEntry]:
        return ()

    def resolve(self, reference: str, context: SourceContext) -> ModelEntry | None:
        """The model of a `fake:` reference, under a name with its knobs in order, so that one model has one name."""
        if not reference.startswith(_PREFIX):
            return None
        name, _, query = reference.removeprefix(_PREFIX).partition("?")
        if not _NAME.fullmatch(name):
            raise LookupError(f"{name!r} is no name for a fake model; write fake:NAME?knob=value&…")
        try:
            settings = parse_knobs(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
            knobs = knobs_of(settings)
        except ValueError as error:
            raise LookupError(f"{_PREFIX}{name}: {error}") from None
        spelled = spell_knobs(settings)
        return ModelEntry(
            name=ModelName(f"{_PREFIX}{name}?{spelled}" if spelled else f"{_PREFIX}{name}"),
            source=self.name,
            files=(),
            backends=("fake",),
            header=ModelHeader(
                format="fake",
                architecture="fake",
                name=name,
                context_length=knobs.context,
                block_count=1,
                head_count=1,
                head_count_kv=(1,),
                key_length=knobs.kv_bytes,
                vocabulary_size=VOCABULARY_SIZE,
                weights_bytes=knobs.bytes,
                tokenizer="bytes",
                template=TEMPLATE,
                template_bytes=len(TEMPLATE),
                capabilities=("generate", "chat"),
            ),
            settings=settings,
            note="It is no model: it answers what its knobs say.",
        )


@hookimpl
def enclave_backends() -> list[Backend]:
    return [FakeBackend()]


@hookimpl
def enclave_sources() -> list[Source]:
    return [FakeSource()]
