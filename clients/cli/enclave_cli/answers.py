"""One streamed answer, from its request to its receipt: what `run` and `infill` share.

The command says what is asked; here it is sent, printed as it comes, and cancelled by whatever ends it early.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from enclave_cli import stdout
from enclave_cli.errors import usage
from enclave_cli.invocation import Invocation, Priority
from enclave_cli.options import check_stream, given, usual_priority
from enclave_cli.output import json_text, plain_map
from enclave_cli.receipts import receipt_text
from enclave_cli.sinks import DocumentSink, LinesSink, Sink, TextSink, message_of
from enclave_cli.status_line import StatusLine

if TYPE_CHECKING:
    from enclave.calls import SamplingOptions
    from enclave_cli.daemon import Answer, AnswerStream


@dataclass(frozen=True)
class Wish:
    """The options of one command line, as they go into every request of it."""

    options: SamplingOptions
    """Keyword arguments of the client's method; only those that were given."""
    stream: bool
    verbose: bool
    priority: Priority


def wish_of(invocation: Invocation, *, stream: bool, verbose: bool, priority: Priority | None, **options: Any) -> Wish:
    """What options.py:answer_options brought. Raises CommandError (usage)."""
    check_stream(invocation, stream)
    for name in ("choices", "logprobs"):
        if options.get(name) is not None and not invocation.json:
            raise usage(f"--{name} goes with --json", "as text there is one answer and nothing beside it")
    return Wish(cast("SamplingOptions", given(options)), stream, verbose, usual_priority(priority))


def answer(invocation: Invocation, model: str, wish: Wish, ask: Callable[[SamplingOptions], AnswerStream]) -> None:
    """One request from its sending to its end. Whatever ends it early cancels the request."""
    with StatusLine(sys.stderr) as status:
        sink: Sink
        if not invocation.json:
            sink = TextSink(status, model)
        elif wish.stream:
            sink = LinesSink()
        else:
            sink = DocumentSink(status, model)
        result, receipt = _answered(ask, wish, sink)
    if not invocation.json:
        for call in _tool_calls(result):
            invocation.note(f"the model calls {json_text(call)}")
    if wish.verbose:
        stdout.begin_line_on_stderr()
        sys.stderr.write(receipt_text(result, receipt) + "\n")
        sys.stderr.flush()


def _answered(
    ask: Callable[[SamplingOptions], AnswerStream], wish: Wish, sink: Sink
) -> tuple[Answer, dict[str, object]]:
    stream = ask({**wish.options, "progress": sink.progress})
    try:
        for chunk in stream:
            sink.chunk(chunk)
        result = stream.result()
        receipt = plain_map(result.receipt)
        sink.result(result, receipt)
    except BaseException:
        stream.cancel()
        raise
    finally:
        sink.close()
    return result, receipt


def _tool_calls(result: Answer) -> Sequence[object]:
    """What the model asks its caller to do: no part of the text, and an answer may consist of nothing else."""
    message: Mapping[str, object] = message_of(result) or {}
    calls = message.get("tool_calls")
    return cast("Sequence[object]", calls) if isinstance(calls, (list, tuple)) else ()
