"""Checks an engine against every rule of the engine contract that can be seen from outside.

A backend's author calls `check_backend` from a test, with a function that loads a small model. It knows nothing of any
backend, and never reaches behind the contract.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from enclaved.plugin.engine import (
    Engine,
    EngineError,
    InterruptedStepError,
    NoRoomError,
    Placement,
    Run,
    SampleRow,
    Sampling,
    SequenceId,
    Token,
)

PLACEMENT = Placement(device="cpu", context=256, sequences=4, threads=1, kv_type="f32", flash_attention=False)
"""What the engine under test is given: small, and as exact as a backend can be."""

NARROW_PLACEMENT = Placement(device="cpu", context=64, sequences=1, threads=1, kv_type="f32", flash_attention=False)

PROMPTS = ("Once upon a time there was a small house.", "The quick brown fox", "1 2 3 4", "x")

TEXTS = (
    *PROMPTS,
    "",
    " leading and trailing ",
    "two\nlines\tand a tab",
    "naïve café — 東京 🦊",
    "markers of all kinds are text: <s> </s> <|end|> <|im_start|> [INST] <unk>",
)
"""Texts that must survive being tokenised. The last one is what a user may type to be taken for the system."""

ANSWER_TOKENS = 8
"""Tokens generated where two answers are compared."""

DRAWS = tuple(index / 16 for index in range(16))

GREEDY = Sampling(temperature=0.0)
FREE = Sampling(top_k=0, top_p=1.0, min_p=0.0, temperature=1.0)


@dataclass(frozen=True)
class Skipped:
    """A rule that was not checked, and why not."""

    rule: str
    reason: str


def check_backend(
    make_engine: Callable[[Placement], Engine],
    *,
    prompts: Sequence[str] = PROMPTS,
    texts: Sequence[str] = TEXTS,
    exact: bool = True,
) -> list[Skipped]:
    """Checks all rules, in an order in which the first one broken is the most telling.

    `make_engine` loads the model under test for a placement; every engine it made is closed here. `prompts`: at least
    two texts that the model can go on from. `texts`: what must survive being tokenised; none for a model whose
    tokeniser normalises. `exact`: whether the most likely token stays the same however the step is cut, as it does for
    F32 weights and caches; where it does not hold, say so and these rules are skipped.

    Returns the rules that the engine's capabilities or `exact` exclude. Raises AssertionError, with the rule broken.
    """
    skipped: list[Skipped] = []
    limits_rule = "the limits in force are at most those asked for"
    with _closing(make_engine(NARROW_PLACEMENT)) as engine, _rule(limits_rule):
        _check_limits(engine, NARROW_PLACEMENT)
    with _closing(make_engine(PLACEMENT)) as engine:
        with _rule(limits_rule):
            _check_limits(engine, PLACEMENT)
        bench = _Bench(engine, [_prompt(engine, text) for text in prompts], exact)
        for rule, check in _CHECKS:
            with _rule(rule):
                reason = check(bench, texts)
            if reason is not None:
                skipped.append(Skipped(rule, reason))
            bench.clear()
    with _rule("closing an engine twice is harmless"):
        engine.close()
    return skipped


class _Bench:
    """An engine under test, and the few things that most checks do with it."""

    def __init__(self, engine: Engine, prompts: Sequence[Sequence[Token]], exact: bool) -> None:
        self.engine = engine
        self.prompts = prompts
        self.exact = exact

    def clear(self) -> None:
        for index in range(self.engine.capabilities.sequences):
            self.engine.drop(SequenceId(index))

    def extend(
        self, sequence: int, tokens: Sequence[Token], *, chunk: int | None = None, wants_logits: bool = True
    ) -> None:
        """Evaluates tokens at the end of a sequence, in chunks; the last one leaves logits, when they are wanted."""
        size = min(chunk or len(tokens), self.engine.capabilities.batch_tokens)
        start = self.engine.length(SequenceId(sequence))
        for offset in range(0, len(tokens), size):
            part = tokens[offset : offset + size]
            last = wants_logits and offset + size >= len(tokens)
            self.engine.forward([self.run(sequence, part, at=start + offset, wants_logits=last)])

    def run(self, sequence: int, tokens: Sequence[Token], *, at: int | None = None, wants_logits: bool = True) -> Run:
        position = self.engine.length(SequenceId(sequence)) if at is None else at
        return Run(SequenceId(sequence), position, tokens, wants_logits)

    def pick(self, sequence: int, sampling: Sampling = GREEDY, draw: float = 0.0) -> Token:
        (sampled,) = self.engine.sample([SampleRow(SequenceId(sequence), sampling, draw)])
        return sampled.token

    def answer(self, sequence: int, prompt: Sequence[Token], *, chunk: int | None = None) -> list[Token]:
        """The most likely continuation of a prompt, alone in a sequence; the sequence is empty before and after."""
        self.engine.drop(SequenceId(sequence))
        self.extend(sequence, prompt, chunk=chunk)
        answer = self.go_on(sequence)
        self.engine.drop(SequenceId(sequence))
        return answer

    def go_on(self, sequence: int, count: int = ANSWER_TOKENS) -> list[Token]:
        """`count` tokens from the logits that are there."""
        answer = [self.pick(sequence)]
        while len(answer) < count:
            self.engine.forward([self.run(sequence, answer[-1:])])
            answer.append(self.pick(sequence))
        return answer

    def lengths(self) -> list[int]:
        return [self.engine.length(SequenceId(index)) for index in range(self.engine.capabilities.sequences)]

    def refuses(self, runs: Sequence[Run], what: str) -> None:
        """Demands that a step is refused with an error of the contract and leaves every sequence as it was."""
        before = self.lengths()
        try:
            self.engine.forward(runs)
        except InterruptedStepError:
            raise AssertionError(f"{what}: it was reported as an interrupted step") from None
        except (EngineError, ValueError):
            pass
        else:
            raise AssertionError(f"{what}: it was accepted")
        _demand(self.lengths() == before, f"{what}: it was refused, but lengths went from {before} to {self.lengths()}")


def _check_limits(engine: Engine, placement: Placement) -> None:
    limits = engine.capabilities
    # There may be more of them, for tokens to stay in, but not more that are promised their whole context.
    _demand(limits.sequences >= 1, f"{limits.sequences} sequences are in force")
    _demand(
        limits.cache_tokens == 0 or limits.cache_tokens >= limits.context,
        f"all sequences together may hold {limits.cache_tokens} tokens, less than the context of {limits.context}",
    )
    _demand(
        1 <= limits.context <= placement.context,
        f"a context of {limits.context} is in force, {placement.context} was asked for",
    )
    _demand(limits.batch_tokens >= 1, f"a step carries {limits.batch_tokens} tokens")


def _check_vocabulary_ids(bench: _Bench, texts: Sequence[str]) -> str | None:
    vocabulary = bench.engine.vocabulary
    _demand(vocabulary.size > 0, f"the vocabulary has {vocabulary.size} tokens")
    for index in range(vocabulary.size):
        b"".join([vocabulary.piece(Token(index))])
        vocabulary.ends_generation(Token(index))
    for index in (-1, vocabulary.size, 2**31 - 1, -(2**31)):
        for method in (vocabulary.piece, vocabulary.ends_generation):
            try:
                method(Token(index))
            except ValueError:
                continue
            raise AssertionError(f"{method.__name__}({index}) raised no ValueError")
    return None


def _check_round_trip(bench: _Bench, texts: Sequence[str]) -> str | None:
    vocabulary = bench.engine.vocabulary
    for text in texts:
        tokens = vocabulary.encode(text, add_special=False, parse_special=False)
        outside = [token for token in tokens if not 0 <= token < vocabulary.size]
        _demand(not outside, f"{text!r} has tokens outside the vocabulary: {outside}")
        back = b"".join(vocabulary.piece(token) for token in tokens)
        # Some tokenisers put a space before the first word, and so say their models' training.
        _demand(back in (text.encode(), b" " + text.encode()), f"{text!r} comes back as {back!r}")
        with_special = vocabulary.encode(text, add_special=True, parse_special=False)
        spoken = b"".join(vocabulary.piece(token) for token in with_special)
        _demand(spoken == back, f"special tokens around {text!r} have text: {spoken!r}")
    return None if texts else "no texts were given"


def _check_vocabulary_threads(bench: _Bench, texts: Sequence[str]) -> str | None:
    text = " ".join((*PROMPTS, *texts))

    def encode() -> list[Token]:
        return bench.engine.vocabulary.encode(text, add_special=True, parse_special=False)

    expected = encode()
    answers: list[list[Token]] = []
    threads = [threading.Thread(target=lambda: answers.append(encode())) for _ in range(4)]
    for thread in threads:
        thread.start()
    bench.extend(0, bench.prompts[0])
    for thread in threads:
        thread.join()
    _demand(answers == [expected] * 4, "tokenising beside a step, or in several threads at once, fails or differs")
    return None


def _check_one_sequence(bench: _Bench, texts: Sequence[str]) -> str | None:
    prompt = bench.prompts[0]
    _demand(not any(bench.lengths()), f"the sequences of a new engine hold tokens: {bench.lengths()}")
    bench.extend(0, prompt)
    _demand(bench.lengths()[0] == len(prompt), f"it holds {bench.lengths()[0]} tokens after {len(prompt)}")
    token = bench.pick(0)
    _demand(0 <= token < bench.engine.vocabulary.size, f"sample chose {token}, which is not in the vocabulary")
    _demand(bench.lengths()[0] == len(prompt), "sampling changed the sequence")
    bench.engine.forward([bench.run(0, [token])])
    _demand(bench.lengths()[0] == len(prompt) + 1, f"it holds {bench.lengths()[0]} tokens after {len(prompt)} and one")
    bench.clear()
    _demand(bench.answer(0, prompt)[0] == token, "the same prompt gives another token the second time")
    return None


def _check_several_sequences(bench: _Bench, texts: Sequence[str]) -> str | None:
    count = min(bench.engine.capabilities.sequences, len(bench.prompts))
    if count < 2:
        return "the engine runs one sequence at a time"
    runs = [bench.run(index, bench.prompts[index], wants_logits=index != 1) for index in range(count)]
    if sum(len(run.tokens) for run in runs) > bench.engine.capabilities.batch_tokens:
        return "the prompts do not fit into one step"
    bench.engine.forward(runs)
    expected = [len(prompt) for prompt in bench.prompts[:count]]
    _demand(bench.lengths()[:count] == expected, f"lengths are {bench.lengths()[:count]}, not {expected}")
    rows = [SampleRow(SequenceId(index), GREEDY, 0.0) for index in range(count) if index != 1]
    forwards = [sampled.token for sampled in bench.engine.sample(rows)]
    backwards = [sampled.token for sampled in bench.engine.sample(rows[::-1])]
    _demand(len(forwards) == len(rows), f"{len(rows)} rows gave {len(forwards)} tokens")
    _demand(forwards == backwards[::-1], "the tokens do not come in the order of the rows")
    return None


def _check_rows_without_logits(bench: _Bench, texts: Sequence[str]) -> str | None:
    bench.engine.forward([bench.run(0, bench.prompts[0], wants_logits=False)])
    try:
        token = bench.pick(0)
    except (EngineError, ValueError):
        return None
    raise AssertionError(f"a sequence that wanted no logits was given token {token}")


def _check_positions(bench: _Bench, texts: Sequence[str]) -> str | None:
    prompt = bench.prompts[0]
    bench.refuses([bench.run(0, prompt, at=1)], "a first run that begins at 1")
    bench.extend(0, prompt)
    for position in (0, len(prompt) - 1, len(prompt) + 1, -1):
        bench.refuses([bench.run(0, prompt[:1], at=position)], f"a run at {position} of {len(prompt)} tokens")
    return None


def _check_bad_runs(bench: _Bench, texts: Sequence[str]) -> str | None:
    prompt = bench.prompts[0]
    bench.extend(0, prompt)
    for token in (-1, bench.engine.vocabulary.size):
        bench.refuses([bench.run(0, [*prompt, Token(token)])], f"a run with token {token}")
    bench.refuses([bench.run(0, [])], "a run without tokens")
    bench.refuses([bench.run(0, prompt[:1]), bench.run(0, prompt[:1])], "two runs of one sequence")
    beyond = SequenceId(bench.engine.capabilities.sequences)
    bench.refuses([Run(beyond, 0, prompt, wants_logits=True)], f"a run of sequence {beyond}")
    return None


def _check_batch_bound(bench: _Bench, texts: Sequence[str]) -> str | None:
    limits = bench.engine.capabilities
    if limits.batch_tokens + 1 > limits.context * limits.sequences:
        return "all sequences together hold less than a step may carry"
    tokens = list(itertools.islice(itertools.cycle(bench.prompts[0]), limits.batch_tokens + 1))
    parts = [tokens[start : start + limits.context] for start in range(0, len(tokens), limits.context)]
    bench.refuses(
        [bench.run(index, part) for index, part in enumerate(parts)],
        f"a step of {len(tokens)} tokens, where {limits.batch_tokens} are the most",
    )
    return None


def _check_context_bound(bench: _Bench, texts: Sequence[str]) -> str | None:
    limits = bench.engine.capabilities
    filling = list(itertools.islice(itertools.cycle(bench.prompts[0]), limits.context))
    together = limits.cache_tokens or limits.context * limits.sequences
    count = min(limits.sequences, together // limits.context)
    for index in range(count):
        try:
            bench.extend(index, filling, chunk=64)
        except NoRoomError:
            raise AssertionError(
                f"sequence {index} found no room for {limits.context} tokens, though all together may hold {together}"
            ) from None
    for index in range(count):
        bench.refuses([bench.run(index, filling[:1])], f"token {limits.context} of a full sequence")
    bench.engine.drop(SequenceId(0))
    bench.extend(0, filling[:1])
    return None


def _check_drop(bench: _Bench, texts: Sequence[str]) -> str | None:
    first, second = bench.prompts[:2]
    expected = bench.answer(0, first)
    bench.extend(0, second)
    bench.engine.drop(SequenceId(0))
    _demand(bench.lengths()[0] == 0, f"a dropped sequence holds {bench.lengths()[0]} tokens")
    bench.engine.drop(SequenceId(0))
    _demand(bench.answer(0, first) == expected, "what a sequence held before it was dropped shows in its next answer")
    return None


def _check_trim(bench: _Bench, texts: Sequence[str]) -> str | None:
    prompt = bench.prompts[0]
    bench.extend(0, prompt)
    keep = len(prompt) // 2
    cut = bench.engine.trim(SequenceId(0), keep)
    if not bench.engine.capabilities.can_trim:
        _demand(not cut, "trim returned True though the capabilities say that it cannot")
        _demand(bench.lengths()[0] == len(prompt), "trim returned False but changed the sequence")
        return "the engine cannot trim"
    _demand(cut, "trim returned False though the capabilities say that it can")
    _demand(bench.lengths()[0] == keep, f"it holds {bench.lengths()[0]} tokens, cut back to {keep}")
    bench.extend(0, prompt[keep:])
    again = bench.go_on(0)
    if bench.exact:
        _demand(again == bench.answer(0, prompt), "a sequence that was cut back and went on gives another answer")
    return None


def _check_share(bench: _Bench, texts: Sequence[str]) -> str | None:
    engine, prompt = bench.engine, bench.prompts[0]
    if not engine.capabilities.can_share:
        return "the engine cannot share"
    if engine.capabilities.sequences < 2:
        return "the engine runs one sequence at a time"
    expected = bench.answer(0, prompt)
    bench.extend(0, prompt)
    keep = len(prompt) // 2
    engine.share(SequenceId(0), SequenceId(1), keep)
    _demand(bench.lengths()[:2] == [len(prompt), keep], f"after sharing {keep} lengths are {bench.lengths()[:2]}")
    first = bench.pick(0)
    bench.extend(1, prompt[keep:])
    second = bench.go_on(1)
    bench.engine.forward([bench.run(0, [first])])
    rest = bench.go_on(0, ANSWER_TOKENS - 1)
    if bench.exact:
        _demand(second == expected, f"from a shared beginning the answer is {second}, else it is {expected}")
        _demand([first, *rest] == expected, "a sequence answers otherwise after it was shared from")
    engine.drop(SequenceId(1))
    engine.share(SequenceId(0), SequenceId(1), len(prompt))
    engine.drop(SequenceId(0))
    _demand(bench.lengths()[:2] == [0, len(prompt)], "dropping the one that was shared from changes the other")
    for target, length in ((1, 1), (0, len(prompt) + 1), (0, 0)):
        try:
            engine.share(SequenceId(1), SequenceId(target), length)
        except (EngineError, ValueError):
            continue
        raise AssertionError(f"sharing {length} tokens of sequence 1 with sequence {target} was accepted")
    return None


def _check_shift(bench: _Bench, texts: Sequence[str]) -> str | None:
    engine, prompt = bench.engine, bench.prompts[0]
    if not engine.capabilities.can_shift:
        return "the engine cannot shift"
    bench.extend(0, prompt)
    for start, count in ((0, len(prompt) + 1), (-1, 1), (1, 0)):
        try:
            engine.shift(SequenceId(0), start, count)
        except (EngineError, ValueError):
            continue
        raise AssertionError(f"taking {count} tokens out from {start} was accepted")
    engine.shift(SequenceId(0), 1, len(prompt) // 2)
    left = len(prompt) - len(prompt) // 2
    _demand(bench.lengths()[0] == left, f"it holds {bench.lengths()[0]} tokens, {left} should be left")
    bench.extend(0, prompt[:1])
    token = bench.pick(0)
    _demand(0 <= token < engine.vocabulary.size, f"after a shift sample chose {token}, which is not in the vocabulary")
    return None


def _check_logprobs(bench: _Bench, texts: Sequence[str]) -> str | None:
    bench.extend(0, bench.prompts[0])
    (plain,) = bench.engine.sample([SampleRow(SequenceId(0), GREEDY, 0.0)])
    _demand(plain.logprob is None and not plain.top, "logprobs come though nobody asked")
    (asked,) = bench.engine.sample([SampleRow(SequenceId(0), GREEDY, 0.0, logprobs=3)])
    if asked.logprob is None:
        return "the engine tells no logprobs"
    _demand(asked.logprob <= 1e-6, f"a logarithm of a probability is {asked.logprob}")
    _demand(1 <= len(asked.top) <= 3, f"of 3 likeliest tokens {len(asked.top)} come")
    _demand(asked.top[0][0] == asked.token, "the likeliest token is not the one that greedy sampling chose")
    falling = sorted(asked.top, key=lambda item: (-item[1], item[0]))
    _demand(list(asked.top) == falling, f"the likeliest tokens are not in order: {asked.top}")
    return None


def _check_bias(bench: _Bench, texts: Sequence[str]) -> str | None:
    bench.extend(0, bench.prompts[0])
    likeliest = bench.pick(0)
    forbidden = Sampling(temperature=0.0, logit_bias=((likeliest, float("-inf")),))
    _demand(bench.pick(0, forbidden) != likeliest, "a forbidden token comes all the same")
    other = Token((likeliest + 1) % bench.engine.vocabulary.size)
    _demand(
        bench.pick(0, Sampling(temperature=0.0, logit_bias=((other, 1000.0),))) in (other, likeliest),
        "a bias on one token makes a third one come",
    )
    return None


def _check_draws(bench: _Bench, texts: Sequence[str]) -> str | None:
    def pick(sampling: Sampling, draw: float) -> Token:
        bench.engine.drop(SequenceId(0))
        bench.extend(0, bench.prompts[0])
        return bench.pick(0, sampling, draw)

    likeliest = pick(GREEDY, 0.0)
    _demand(pick(GREEDY, 0.999) == likeliest, "at temperature 0 the draw makes a difference")
    _demand(pick(FREE, 0.0) == likeliest, "draw 0 does not give the most likely token")
    _demand(pick(Sampling(), 0.0) == likeliest, "draw 0 does not give the most likely token with the default filters")
    _demand(pick(Sampling(top_k=1), 0.999) == likeliest, "top_k 1 leaves more than the most likely token")
    _demand(pick(Sampling(min_p=1.0), 0.999) == likeliest, "min_p 1 leaves more than the most likely token")
    _demand(pick(Sampling(top_p=1e-6), 0.999) == likeliest, "top_p near 0 leaves more than the most likely token")
    drawn = [pick(FREE, draw) for draw in DRAWS]
    groups = [token for token, _ in itertools.groupby(drawn)]
    _demand(len(groups) == len(set(groups)), f"rising draws come back to a token they had left: {drawn}")
    _demand(drawn == [pick(FREE, draw) for draw in DRAWS], "the same draws give other tokens the second time")
    hot = Sampling(top_k=0, top_p=1.0, min_p=0.0, temperature=100.0)
    spread = len({pick(hot, draw) for draw in DRAWS})
    _demand(spread >= len(set(drawn)) and spread > 1, "a high temperature does not spread the choice")
    return None


def _check_chunks(bench: _Bench, texts: Sequence[str]) -> str | None:
    if not bench.exact:
        return "the backend does not promise the same answer for another cut of the steps"
    for prompt in bench.prompts:
        whole = bench.answer(0, prompt)
        for chunk in (1, 3):
            answer = bench.answer(0, prompt, chunk=chunk)
            _demand(answer == whole, f"in chunks of {chunk} the answer is {answer}, whole it is {whole}")
    return None


def _check_batch(bench: _Bench, texts: Sequence[str]) -> str | None:
    limits = bench.engine.capabilities
    count = min(limits.sequences, limits.batch_tokens, len(bench.prompts))
    if not bench.exact:
        return "the backend does not promise the same answer in a batch"
    if count < 2:
        return "the engine runs one sequence at a time"
    alone = [bench.answer(0, prompt) for prompt in bench.prompts[:count]]
    for index in range(count):
        bench.extend(index, bench.prompts[index][:-1], wants_logits=False)
    newest = [prompt[-1] for prompt in bench.prompts[:count]]
    answers: list[list[Token]] = [[] for _ in range(count)]
    for _ in range(ANSWER_TOKENS):
        bench.engine.forward([bench.run(index, [token]) for index, token in enumerate(newest)])
        rows = [SampleRow(SequenceId(index), GREEDY, 0.0) for index in range(count)]
        newest = [sampled.token for sampled in bench.engine.sample(rows)]
        for answer, token in zip(answers, newest, strict=True):
            answer.append(token)
    _demand(answers == alone, f"in a batch the answers are {answers}, alone they are {alone}")
    return None


def _check_interrupt(bench: _Bench, texts: Sequence[str]) -> str | None:
    limits = bench.engine.capabilities
    count = min(limits.context - ANSWER_TOKENS, limits.batch_tokens)
    prompt = list(itertools.islice(itertools.cycle(bench.prompts[0]), count))
    expected = bench.answer(0, prompt)
    thread = threading.Thread(target=bench.engine.interrupt)
    thread.start()
    interruptions = _finish(bench, prompt)
    thread.join()
    if interruptions == 0:  # it came before the step or after it, and may end the next one
        bench.engine.drop(SequenceId(0))
        _finish(bench, prompt)
    answer = bench.go_on(0)
    if bench.exact:
        _demand(answer == expected, f"after an interrupt the answer is {answer}, without it is {expected}")
    return None


def _finish(bench: _Bench, prompt: Sequence[Token]) -> int:
    """Brings sequence 0 to the end of its prompt, with logits, and returns how often that was interrupted: 0 or 1."""
    for interruptions in range(2):
        try:
            bench.extend(0, prompt[bench.lengths()[0] :])
        except InterruptedStepError:
            complete = bench.lengths()[0] == len(prompt)
            _demand(not complete, "an interrupted sequence is complete, though its logits are gone")
        else:
            return interruptions
    raise AssertionError("one interrupt ended more than one step")


def _check_threads(bench: _Bench, texts: Sequence[str]) -> str | None:
    if bench.engine.capabilities.threads == "fixed":
        return "the engine's threads are fixed"
    expected = bench.answer(0, bench.prompts[0])
    for threads in (2, 1):
        bench.engine.set_threads(threads)
        answer = bench.answer(0, bench.prompts[0])
        if bench.exact:
            _demand(answer == expected, f"with {threads} threads the answer is {answer}, before it was {expected}")
    return None


def _check_memory(bench: _Bench, texts: Sequence[str]) -> str | None:
    use = bench.engine.memory()
    parts = (use.weights_bytes, use.kv_bytes, use.compute_bytes, use.repacked_bytes, use.other_bytes)
    _demand(all(part >= 0 for part in parts), f"a part of the memory is negative: {use}")
    _demand(use.total_bytes > 0, "a loaded model holds no memory")
    return None


_CHECKS: Sequence[tuple[str, Callable[[_Bench, Sequence[str]], str | None]]] = (
    ("every id of the vocabulary has a piece, every other id raises ValueError", _check_vocabulary_ids),
    ("text comes back from its tokens as it was", _check_round_trip),
    ("the vocabulary may be called from any thread", _check_vocabulary_threads),
    ("a sequence grows by the tokens of its runs, and sampling chooses one of the vocabulary", _check_one_sequence),
    ("several sequences run in one step, and tokens come in the order of the rows", _check_several_sequences),
    ("only a sequence that wanted logits can be sampled", _check_rows_without_logits),
    ("a run begins where its sequence ends", _check_positions),
    ("a bad run is refused and changes nothing", _check_bad_runs),
    ("a step carries at most batch_tokens tokens", _check_batch_bound),
    ("every sequence may hold its context at once, and no more", _check_context_bound),
    ("a dropped sequence is empty and forgets", _check_drop),
    ("a sequence can be cut back and goes on from there", _check_trim),
    ("logprobs come where asked, likeliest first", _check_logprobs),
    ("a bias moves the choice", _check_bias),
    ("draw, filters and temperature choose as documented", _check_draws),
    ("a prompt in chunks is the same prompt", _check_chunks),
    ("a sequence in a batch answers as it does alone", _check_batch),
    ("a beginning can be shared, and both go on as if each had evaluated it", _check_share),
    ("tokens can be taken out of a sequence, and those behind move up", _check_shift),
    ("an interrupt from another thread ends at most one step and breaks nothing", _check_interrupt),
    ("threads can be set between steps", _check_threads),
    ("memory is counted", _check_memory),
)


def _prompt(engine: Engine, text: str) -> list[Token]:
    tokens = engine.vocabulary.encode(text, add_special=True, parse_special=False)
    limits = engine.capabilities
    tokens = tokens[-min(limits.batch_tokens, limits.context // 2) :]
    _demand(len(tokens) >= 2, f"of the prompt {text!r} only {len(tokens)} tokens fit into a step")
    return tokens


def _demand(holds: bool, sentence: str) -> None:
    if not holds:
        raise AssertionError(sentence)


@contextmanager
def _rule(rule: str) -> Generator[None]:
    """Puts the rule before the sentence of whatever went wrong inside."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{rule}: {error}") from error
    except Exception as error:
        raise AssertionError(f"{rule}: the engine raised {type(error).__name__}: {error}") from error


@contextmanager
def _closing(engine: Engine) -> Generator[Engine]:
    try:
        yield engine
    finally:
        engine.close()
