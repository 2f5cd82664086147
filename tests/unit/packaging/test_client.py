"""uv is told about the network what pip was told."""

from __future__ import annotations

from enclave_setup.client import pip_settings, uv_environment

LISTING = """:env:.cert='/mine.pem'
global.cert='/everyones.pem'
global.index-url='https://mirror.example/simple'
global.trusted-host='a.example\\nb.example'
list.format='json'
"""


def test_an_environment_variable_outranks_a_configuration_file() -> None:
    assert pip_settings(LISTING)["cert"] == "/mine.pem"


def test_settings_of_single_commands_are_not_the_networks() -> None:
    assert "format" not in pip_settings(LISTING)


def test_uv_gets_the_index_and_the_certificate_of_pip() -> None:
    added = uv_environment({"index-url": "https://mirror.example/simple", "cert": "/mine.pem"}, {})
    assert added == {"UV_DEFAULT_INDEX": "https://mirror.example/simple", "SSL_CERT_FILE": "/mine.pem"}


def test_what_the_user_told_uv_stays() -> None:
    said = {"UV_INDEX_URL": "https://other.example/simple", "SSL_CERT_FILE": "/other.pem"}
    assert uv_environment({"index-url": "https://mirror.example/simple", "cert": "/mine.pem"}, said) == {}


def test_nothing_is_added_where_pip_has_no_settings() -> None:
    assert uv_environment(pip_settings(""), {"HOME": "/home"}) == {}
