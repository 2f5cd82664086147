from __future__ import annotations

import pytest

from enclave_cli.prompts import joined


@pytest.mark.parametrize(
    ("prompt", "piped", "sent"),
    [
        ("a", None, "a"),
        (None, "a\n", "a"),
        (None, "a\r\n", "a"),
        (None, "a\n\n", "a\n"),
        ("do:", "text\n", "do:\n\ntext"),
        ("a", "", "a"),
        ("a", "\n", "a"),
        ("", None, ""),
        (None, "", None),
        (None, None, None),
    ],
)
def test_prompt_and_piped_text_are_joined_by_a_blank_line(
    prompt: str | None, piped: str | None, sent: str | None
) -> None:
    assert joined(prompt, piped) == sent
