"""One request through all of it: client, ZeroMQ, daemon, core, sandboxed worker, engine, tokens back."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import enclave
from tests.conftest import StartDaemon
from tests.running import RunningDaemon

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="walls are built on Linux only")


def test_an_answer_streams_from_the_fake_backend(daemon: RunningDaemon) -> None:
    with daemon.client(name="test") as client:
        stream = client.generate("fake:counting", "count", temperature=0, max_tokens=5)
        texts = [chunk.text for chunk in stream]
        result = stream.result()
    assert "".join(texts) == result.text == "1 2 3"
    assert len(texts) == 5
    assert result.finish_reason == "length"
    assert result.usage.completion_tokens == 5


@pytest.mark.usefixtures("llama_cpp")
def test_the_embedded_model_answers_alike_each_time(daemon: RunningDaemon) -> None:
    with daemon.client() as client:
        first, second = (client.generate("tiny", "Hello", temperature=0, max_tokens=12).result() for _ in range(2))
    assert first.text == second.text != ""
    assert first.receipt.backend == "llama_cpp"
    assert (first.receipt.loading_seconds or 0) > 0
    assert second.receipt.loading_seconds == 0


@pytest.mark.usefixtures("llama_cpp")
def test_a_seed_means_the_same_text_and_another_seed_another(daemon: RunningDaemon) -> None:
    with daemon.client() as client:

        def text(seed: int) -> str:
            return client.generate("tiny", "Hello", temperature=1.5, seed=seed, max_tokens=16).result().text

        assert text(1) == text(1) != text(2)


@pytest.mark.usefixtures("llama_cpp")
def test_streams_side_by_side_say_what_they_say_alone(daemon: RunningDaemon) -> None:
    prompts = ["Hello", "A big dog", "The house", "Once upon a time"]
    with daemon.client() as client:
        client.load("tiny", kv_type="f32", flash_attention=False).result()
        alone = [client.generate("tiny", prompt, temperature=0, max_tokens=24).result().text for prompt in prompts]

    def together(prompt: str) -> str:
        with daemon.client() as client:
            return client.generate("tiny", prompt, temperature=0, max_tokens=24).result().text

    with ThreadPoolExecutor(len(prompts)) as pool:
        assert list(pool.map(together, prompts)) == alone


def test_four_requests_run_at_once_on_one_instance(daemon: RunningDaemon) -> None:
    with daemon.client() as client:
        streams = [client.generate("fake:slow?tokens_per_second=50", "x", max_tokens=400) for _ in range(4)]
        iterators = [iter(stream) for stream in streams]
        for iterator in iterators:
            next(iterator)
        (instance,) = client.instances()
        assert instance.leases == 4
        for stream in streams:
            stream.cancel()


def test_requests_for_a_loading_model_share_one_load(daemon: RunningDaemon) -> None:
    with daemon.client() as client:
        streams = [client.generate("fake:a?load_seconds=0.3", "x", max_tokens=2) for _ in range(3)]
        instances = {stream.result().receipt.instance for stream in streams}
    assert len(instances) == 1


@on_linux
def test_the_instance_tells_which_walls_stand(daemon: RunningDaemon) -> None:
    with daemon.client() as client:
        client.load("fake:a").result()
        (instance,) = client.instances()
    assert instance.walls is not None
    assert instance.walls.state in ("full", "partial")
    assert instance.walls.seccomp is True
    status = Path(f"/proc/{instance.pid}/status").read_text()
    assert "Seccomp:\t2" in status
    assert "NoNewPrivs:\t1" in status


def test_a_result_is_a_receipt(daemon: RunningDaemon) -> None:
    with daemon.client() as client:
        receipt = client.generate("fake:a", "x", max_tokens=2).result().receipt
    assert (receipt.model, receipt.backend, receipt.device) == ("fake:a", "fake", "cpu")
    assert receipt.instance
    assert receipt.charged_seconds is not None


def test_stop_strings_end_the_text_before_them(daemon: RunningDaemon) -> None:
    with daemon.client() as client:
        result = client.generate("fake:a", "x", temperature=0, stop=["4 5"], max_tokens=100).result()
    assert result.text == "1 2 3 "
    assert result.finish_reason == "stop"


def test_a_prompt_longer_than_the_context_is_an_error_with_the_numbers(daemon: RunningDaemon) -> None:
    with daemon.client() as client:
        with pytest.raises(enclave.EnclaveError) as error:
            client.generate("fake:short?context=16", "x" * 40, max_tokens=2).result()
        assert error.value.code == "context_exceeded"
        assert error.value.numbers["context"] == 16
        assert "trained for 16 tokens" in (error.value.hint or "")
        assert client.generate("fake:short?context=16", "x", max_tokens=2).result().text


def test_load_unload_and_list(daemon: RunningDaemon) -> None:
    with daemon.client() as client:
        loaded = client.load("fake:a").result()
        assert [i.model for i in client.instances()] == ["fake:a"] == [loaded.instance.model]
        assert client.load("fake:a").result().already_loaded
        client.unload("fake:a")
        assert client.instances() == []
        with pytest.raises(enclave.EnclaveError) as error:
            client.unload("fake:a")
        assert error.value.code == "instance_not_found"


def test_why_tells_the_story_of_a_load(daemon: RunningDaemon) -> None:
    with daemon.client() as client:
        client.generate("fake:a", "a secret prompt", max_tokens=2).result()
        records = client.why(limit=100)
    kinds = [record.kind for record in records]
    order = ["event RequestArrived", "action Load", "event InstanceReady", "action Dispatch", "event LeaseReturned"]
    assert [kind for kind in kinds if kind in order] == order
    assert "secret" not in str(records)


def test_why_tells_the_whole_story_of_one_model(daemon: RunningDaemon) -> None:
    with daemon.client() as client:
        for name in ("fake:a", "fake:b"):
            client.generate(name, "x", max_tokens=2).result()
        records = client.why(model="fake:b")
    kinds = [record.kind for record in records]
    assert kinds[0] == "event RequestArrived"
    assert kinds[-1] == "event LeaseReturned"
    assert "fake:a" not in str(records)
    numbers = {record.number for record in records}
    assert all(record.cause in numbers for record in records if record.kind.startswith("action"))


def test_a_newer_request_with_the_same_key_cancels_the_older(daemon: RunningDaemon) -> None:
    model = "fake:slow?tokens_per_second=50&sequences=1"
    with daemon.client() as client:
        older = client.generate(model, "x", max_tokens=100_000, supersedes="file:a.py")
        other = client.generate("fake:other", "x", max_tokens=1, supersedes="file:b.py")
        newer = client.generate(model, "x", max_tokens=1, supersedes="file:a.py")
        with pytest.raises(enclave.CancelledError):
            older.result()
        assert newer.result().text
        assert other.result().text


def test_a_deadline_ends_a_request_that_runs(daemon: RunningDaemon) -> None:
    with daemon.client() as client, pytest.raises(enclave.EnclaveError) as error:
        client.generate("fake:slow?tokens_per_second=20", "x", max_tokens=100_000, deadline=0.3).result()
    assert error.value.code == "deadline"


def test_threads_are_as_wished_and_no_more_than_there_are_cores(start_daemon: StartDaemon) -> None:
    daemon = start_daemon({"ENCLAVE_CPU_CORES_MAX": "2"})
    big = "fake:big?bytes=1073741824&tokens_per_second=100"
    with daemon.client() as client:
        for threads, granted in ((None, 2), (1, 1), (64, 2)):
            assert client.load(big, threads=threads).result().instance.threads == granted
            stream = client.generate(big, "x", max_tokens=100_000)
            iterator = iter(stream)
            next(iterator)
            assert [i.threads for i in client.instances()] == [granted]
            stream.cancel()
            with pytest.raises(enclave.CancelledError):
                stream.result()


def test_the_least_recently_used_model_makes_room(start_daemon: StartDaemon) -> None:
    daemon = start_daemon({"ENCLAVE_MEMORY_LIMIT_BYTES": str(250 * 2**20)})
    with daemon.client() as client:
        for name in ("a", "b", "a", "c"):
            client.generate(f"fake:{name}?bytes=104857600", "x", max_tokens=1).result()
        assert {i.model.partition("?")[0] for i in client.instances()} == {"fake:a", "fake:c"}


def test_a_model_too_large_for_the_limit_is_refused_with_the_numbers(start_daemon: StartDaemon) -> None:
    daemon = start_daemon({"ENCLAVE_MEMORY_LIMIT_BYTES": str(50 * 2**20)})
    with daemon.client() as client:
        with pytest.raises(enclave.EnclaveError) as error:
            client.generate("fake:big?bytes=104857600", "x").result()
        assert error.value.code == "out_of_memory"
        assert error.value.numbers["needed_bytes"] >= 100 * 2**20
        assert error.value.numbers["limit_bytes"] == 50 * 2**20


def test_waiting_is_explained(daemon: RunningDaemon) -> None:
    with daemon.client() as client:
        seen: list[str] = []
        stream = client.generate(
            "fake:a?load_seconds=0.2", "x", max_tokens=1, progress=lambda message: seen.append(str(message.stage))
        )
        stream.result()
    assert "loading" in seen


def test_methods_that_are_not_built_say_so(daemon: RunningDaemon) -> None:
    with daemon.client() as client:
        with pytest.raises(enclave.EnclaveError) as error:
            client.embed("tiny", ["a"])
        assert error.value.code == "unsupported"
