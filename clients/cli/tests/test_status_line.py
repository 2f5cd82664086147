from __future__ import annotations

import io

import pytest

from enclave_cli.status_line import StatusLine


def test_where_there_is_no_terminal_nothing_is_written() -> None:
    stream = io.StringIO()
    with StatusLine(stream) as status:
        status.show("loading")
    assert stream.getvalue() == ""


def test_the_line_is_gone_whatever_ends_the_command() -> None:
    stream = io.StringIO()

    def interrupted() -> None:
        with StatusLine(stream, shown=True) as status:
            status.show("loading")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert stream.getvalue().endswith("loading\r\x1b[K")


def test_the_line_is_cut_at_the_terminals_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream = io.StringIO()
    StatusLine(stream, shown=True).show("x" * 50)
    assert stream.getvalue() == "\r\x1b[K" + "x" * 18 + "…"


def test_the_same_line_is_not_written_twice() -> None:
    stream = io.StringIO()
    status = StatusLine(stream, shown=True)
    status.show("loading")
    status.show("loading")
    assert stream.getvalue().count("loading") == 1
