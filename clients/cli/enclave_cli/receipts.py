"""What an answer took, for a person: the receipt that `--verbose` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from enclave_cli.output import NOTHING, count, duration, facts, rate

if TYPE_CHECKING:
    from enclave_cli.daemon import Answer


def receipt_text(result: Answer, receipt: dict[str, Any]) -> str:
    """The receipt, one fact a line; what the daemon did not say is left out."""
    usage, timings = result.usage, result.timings
    computed = usage.prompt_tokens - usage.cached_tokens
    prompt_seconds = timings.prompt_seconds or receipt.get("prompt_seconds")
    decoding_seconds = timings.decoding_seconds or receipt.get("decoding_seconds")
    prompt = [
        _counted(usage.prompt_tokens, "token"),
        f"{count(usage.cached_tokens)} of them from the cache" if usage.cached_tokens else "",
        *_pace(computed, prompt_seconds),
    ]
    answer = [_counted(usage.completion_tokens, "token"), *_pace(usage.completion_tokens, decoding_seconds)]
    return facts(
        [
            ("model", _said(receipt.get("model"))),
            ("file", _said(receipt.get("model_hash"))),
            ("backend", _said(receipt.get("backend"))),
            ("device", _said(receipt.get("device"))),
            ("instance", _said(receipt.get("instance"))),
            ("context", _counted(receipt.get("context"), "token")),
            ("template", _said(receipt.get("template"))),
            ("queued", _lasting(receipt.get("queued_seconds"))),
            ("loading", _lasting(receipt.get("loading_seconds"))),
            ("prompt", _listed(prompt)),
            ("not cached", _said(receipt.get("uncached_reason"))),
            ("left out", _counted(usage.left_out_tokens or None, "token")),
            ("shifted", _counted(usage.shifted_tokens or None, "token")),
            ("seed", _said(receipt.get("seed"))),
            ("first token", _lasting(timings.first_token_seconds)),
            ("answer", _listed(answer)),
            ("preempted", _counted(receipt.get("preempted"), "time")),
            ("charged", _lasting(receipt.get("charged_seconds"))),
            ("finish", str(result.finish_reason) + (", the context is full" if receipt.get("context_full") else "")),
        ]
    )


def _pace(tokens: int, seconds: float | None) -> tuple[str, ...]:
    return () if seconds is None else (duration(seconds), rate(tokens, seconds))


def _listed(words: list[str]) -> str:
    return ", ".join(word for word in words if word not in ("", NOTHING))


def _said(value: object) -> str:
    return "" if value is None else str(value)


def _counted(number: int | None, unit: str) -> str:
    return "" if number is None else f"{count(number)} {unit}{'' if number == 1 else 's'}"


def _lasting(seconds: float | None) -> str | None:
    return None if seconds is None else duration(seconds)
