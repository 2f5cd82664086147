"""One exception class for each error code."""

from __future__ import annotations

import subprocess
import sys

import pytest

import enclave
from enclave import exceptions
from enclave.exceptions import BY_CODE, EnclaveError, error_for
from enclave.protocol.errors import ERROR_CODES


def test_each_code_has_one_class_named_after_it_and_no_class_has_no_code() -> None:
    assert set(BY_CODE) == set(ERROR_CODES)
    assert len(BY_CODE) == len(EnclaveError.__subclasses__())
    for code, kind in BY_CODE.items():
        assert kind.__name__ == "".join(word.capitalize() for word in code.split("_")) + "Error"
        assert getattr(enclave, kind.__name__) is kind
        assert ERROR_CODES[code].meaning.startswith(kind.__doc__ or "?")


@pytest.mark.parametrize("code", ERROR_CODES)
def test_an_error_without_words_takes_those_of_its_row(code: str) -> None:
    error, row = error_for(code), ERROR_CODES[code]
    assert type(error) is BY_CODE[code]
    assert (error.code, error.message, error.hint, error.retryable) == (code, row.meaning, row.hint, row.retryable)
    assert BY_CODE[code]().code == code


def test_a_bad_request_points_at_a_field_only_when_it_names_one() -> None:
    assert error_for("bad_request", "top_k: too large", field="top_k").hint
    assert error_for("bad_request", "cannot be written").hint == ""


def test_a_code_of_a_newer_daemon_is_kept_under_its_own_name() -> None:
    error = error_for("moon_phase", "wrong moon", retryable=True)
    assert type(error) is EnclaveError
    assert (error.code, error.retryable, str(error)) == ("moon_phase", True, "wrong moon (Update the client.)")


def test_detail_stays_out_of_the_text_and_the_repr() -> None:
    error = exceptions.WorkerDiedError("gone", detail="secret")
    assert "secret" not in str(error) + repr(error)


def test_every_public_name_can_be_had_and_dir_tells_it() -> None:
    for name in enclave.__all__:
        assert getattr(enclave, name).__name__ == name
    assert set(enclave.__all__) <= set(dir(enclave))
    with pytest.raises(AttributeError, match="no_such"):
        enclave.no_such  # type: ignore[attr-defined]  # noqa: B018  # pyright: ignore


def test_importing_the_package_brings_in_neither_zeromq_nor_msgpack_nor_asyncio() -> None:
    code = (
        "import sys, enclave; print(*(n for n in ('zmq', 'msgpack', 'asyncio', 'enclave.client') if n in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_blocking_client_does_not_bring_in_asyncios_loop() -> None:
    code = (
        "import sys, enclave; enclave.Client; print(*(n for n in ('zmq.asyncio', 'enclave.aio') if n in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_hint_that_speaks_of_the_seconds_says_how_many() -> None:
    assert error_for("busy", retry_after=2.5).hint == "Try again after 2.5 s."
    assert error_for("backing_off", retry_after=8.0).hint.startswith("Wait 8 s;")
