"""`enclave tokenize`: a text's token ids, and the other way round."""

from __future__ import annotations

import re
import shlex

import click

from enclave_cli import stdout
from enclave_cli.errors import usage
from enclave_cli.inputs import read_piped, without_newline
from enclave_cli.invocation import COUNT_MAX, Invocation, json_option, no_start_option
from enclave_cli.output import cut, line
from enclave_cli.references import reference

_BETWEEN = re.compile(r"[\s,\[\]]+")
"""What may stand between ids, so that a line of them can be pasted as well as a JSON array."""
_SHOWN_COLUMNS_MAX = 40


@click.command("tokenize")
@click.argument("model")
@click.argument("words", nargs=-1, metavar="[TEXT]")
@click.option("--no-special", is_flag=True, help="Without the special tokens that the vocabulary adds (BOS, EOS).")
@click.option("--parse-special", is_flag=True, help="Take what is written like a special token for that token.")
@click.option("--ids", is_flag=True, help="The other way round: TEXT is token ids, of which the text is printed.")
@json_option("Print one JSON document: {tokens: […]}, or with --ids {text: …}.")
@no_start_option(hidden=True)
@click.pass_obj
def command(
    invocation: Invocation, model: str, words: tuple[str, ...], no_special: bool, parse_special: bool, ids: bool
) -> None:
    """Print a text's token ids, or the text of token ids.

    Without TEXT it comes from a pipe, and loses one final newline. The ids are printed on one line. With --ids, ids are
    taken instead, separated by blanks or commas, and the text is printed exactly.

    \b
    Examples:
      enclave tokenize tiny "Once upon a time"
      enclave tokenize tiny --no-special < prompt.txt | wc -w
      enclave tokenize tiny --parse-special "<s>Once"
      enclave tokenize tiny --ids 403 1200 29
      enclave tokenize tiny "Once" | enclave tokenize tiny --ids
    """
    name = reference(model)
    for option, given in (("--no-special", no_special), ("--parse-special", parse_special)):
        if ids and given:
            raise usage(f"{option} goes with a text, not with --ids", "ids are taken as they are")
    if len(words) > 1 and not ids:
        raise usage(
            "a TEXT is one argument", f'put it into quotes: enclave tokenize {shlex.quote(model)} "Once upon a time"'
        )
    text = " ".join(words) if words else read_piped(invocation.note, "token ids" if ids else "the text")
    if text is None:
        raise usage(
            "there are no ids" if ids else "there is no text",
            f"enclave tokenize {shlex.quote(model)} " + ("--ids 403 1200" if ids else '"Once upon a time"'),
        )
    if not words:
        text = without_newline(text)
    if ids:
        _detokenize(invocation, name, ids_in(text))
    else:
        _tokenize(invocation, name, text, special=not no_special, parse_special=parse_special)


def _tokenize(invocation: Invocation, model: str, text: str, *, special: bool, parse_special: bool) -> None:
    with invocation.client() as client:
        tokens = client.tokenize(model, text, special=special, parse_special=parse_special)
    if invocation.json:
        invocation.print_json({"tokens": tokens})
    else:
        invocation.print(" ".join(str(token) for token in tokens))


def _detokenize(invocation: Invocation, model: str, tokens: list[int]) -> None:
    with invocation.client() as client:
        text = client.detokenize(model, tokens)
    if invocation.json:
        invocation.print_json({"text": text})
    else:
        stdout.write_exactly(text)


def ids_in(text: str) -> list[int]:
    """The token ids in a text. Raises CommandError (usage) for what is none."""
    found: list[int] = []
    for word in filter(None, _BETWEEN.split(text)):
        if not (word.isascii() and word.isdigit()) or int(word) > COUNT_MAX:
            raise usage(
                f"{cut(line(word), _SHOWN_COLUMNS_MAX)!r} is no token id",
                f"ids are whole numbers of at most {COUNT_MAX}, separated by blanks or commas",
            )
        found.append(int(word))
    return found
