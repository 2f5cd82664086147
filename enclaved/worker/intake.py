"""From a `Submit` to what the engine is to do: the body read and checked, the prompt as tokens that fit the context."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from enclave.protocol.bodies import GenerateParams
from enclave.protocol.codec import decode
from enclave.protocol.errors import RemoteProtocolError
from enclave.protocol.packing import BODY_LIMITS, unpack
from enclaved.link.messages import Failed, Submit
from enclaved.plugin.engine import Engine, EngineError, Sampling, Token, Vocabulary
from enclaved.worker.asked import Asked
from enclaved.worker.overflow import keep_max, truncation
from enclaved.worker.sampling import sampling_of

CHOICES_MAX = 256
SEED_BITS = 53
"""Of a seed that the worker draws: every language's numbers hold it exactly."""
SHIFTED_CONTEXTS_MAX = 10
"""An answer that may shift its context and has no limit of its own ends after so many contexts."""


class RefusedError(Exception):
    """The request cannot be done; `message` is for a person, and nothing of it came from a prompt."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        field: str | None = None,
        numbers: Mapping[str, int] | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.numbers = dict(numbers or {})
        self.detail = detail

    @classmethod
    def of(cls, error: RemoteProtocolError) -> RefusedError:
        """What is wrong with a body, as the requester's mistake."""
        code = "bad_request" if error.code == "bad_message" else error.code
        numbers = {name: value for name, value in error.numbers.items() if isinstance(value, int)}
        return cls(code, error.message, field=error.field or "body", numbers=numbers)

    def failed(self, request: str) -> Failed:
        detail = self.detail.encode("utf-8", "replace")
        return Failed(request, self.code, self.message, dict(self.numbers), detail, self.field)


def read(command: Submit, engine: Engine) -> Asked:
    """Raises RefusedError."""
    if command.method != "generate":
        raise RefusedError("unsupported", f"{command.method} is not built yet", field="method")
    if not engine.capabilities.can_generate:
        use = "ranks" if engine.capabilities.can_rank else "makes vectors"
        raise RefusedError("unsupported", f"The model {use}; it generates no text.", field="method")
    if not 1 <= command.choices <= CHOICES_MAX:
        raise RefusedError(
            "bad_request", f"choices: {command.choices} answers at once; 1 to {CHOICES_MAX} can be had", field="choices"
        )
    try:
        own = engine.read_body(command.body)
        if own is not None:
            params, prompt, fixed = GenerateParams(prompt=(), temperature=0), list(own), 0
        else:
            params = decode(GenerateParams, unpack(command.body, BODY_LIMITS, "body"))
            prompt, fixed = _prompt(params, engine.vocabulary)
        sampling = sampling_of(params, engine.vocabulary.size)
    except RemoteProtocolError as error:
        raise RefusedError.of(error) from error
    except EngineError as error:
        message = "The backend could not make tokens of the prompt."
        raise RefusedError("bad_request", message, field="prompt", detail=str(error)) from error
    return _fitted(command, engine.capabilities.context, params, prompt, fixed, sampling)


def _fitted(
    command: Submit, context: int, params: GenerateParams, prompt: list[Token], fixed: int, sampling: Sampling
) -> Asked:
    """`fixed`: tokens that the vocabulary put before the prompt, and that stay with it."""
    left_out = 0
    keep = max(params.keep, fixed)
    if params.overflow != "error":
        if keep > keep_max(context):
            raise RefusedError(
                "bad_request",
                f"keep: {keep:,} tokens are too many for a context of {context:,}; {keep_max(context):,} can be kept",
                field="keep",
                numbers={"keep": keep, "keep_max": keep_max(context), "context": context},
            )
        cut = truncation(len(prompt), context, keep, command.max_tokens)
        if cut is not None:
            prompt = prompt[: cut.start] + prompt[cut.start + cut.count :]
            left_out = cut.count
    if len(prompt) >= context:
        raise RefusedError(
            "context_exceeded",
            f"The prompt has {len(prompt):,} tokens; the context of {context:,} leaves {context - 1:,} for it.",
            numbers={"prompt_tokens": len(prompt), "prompt_tokens_max": context - 1, "context": context},
        )
    room = context - len(prompt)
    may_shift = params.overflow == "shift"
    wanted = command.max_tokens
    if wanted is None:
        wanted = context * SHIFTED_CONTEXTS_MAX if may_shift else room
    tokens_max = wanted if may_shift else min(wanted, room)
    return Asked(
        params=params,
        prompt=prompt,
        sampling=sampling,
        seed=secrets.randbits(SEED_BITS) if params.seed is None else params.seed,
        choices=command.choices,
        tokens_max=tokens_max,
        ends_with_context=not may_shift and (command.max_tokens is None or command.max_tokens > room),
        keep=keep,
        left_out_tokens=left_out,
    )


def _prompt(params: GenerateParams, vocabulary: Vocabulary) -> tuple[list[Token], int]:
    """The prompt's tokens, and how many of them the vocabulary put before it."""
    fixed = 0
    if isinstance(params.prompt, str):
        tokens = vocabulary.encode(params.prompt, add_special=True, parse_special=False)
        beginning = vocabulary.encode("", add_special=True, parse_special=False)[:1]
        fixed = len(beginning) if tokens[:1] == beginning else 0
    else:
        wrong = next((token for token in params.prompt if token >= vocabulary.size), None)
        if wrong is not None:
            raise RemoteProtocolError(
                f"prompt: token {wrong} is outside the vocabulary of {vocabulary.size}", field="prompt"
            )
        tokens = [Token(token) for token in params.prompt]
    if not tokens:
        raise RemoteProtocolError("prompt: empty, and the model has no token to begin with", field="prompt")
    return tokens, fixed
