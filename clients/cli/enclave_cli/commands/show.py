"""`enclave show MODEL`: what is known of one model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from enclave_cli.invocation import Invocation, json_option, no_start_option
from enclave_cli.output import count, facts, magnitude, size
from enclave_cli.references import reference

if TYPE_CHECKING:
    from enclave.protocol.bodies import ModelShow


@click.command("show")
@click.argument("model")
@json_option()
@no_start_option(hidden=True)
@click.pass_obj
def command(invocation: Invocation, model: str) -> None:
    """Tell what is known of one model.

    MODEL is a name from `enclave list`, an alias, or the path of a file. Its header is read, nothing is loaded. A
    header that cannot be read is an error; why the backend refuses a model that can be read is told as `problem`.

    \b
    Examples:
      enclave show tiny
      enclave show ~/models/some.gguf
      enclave show tiny --json | jq .header.context_length
    """
    with invocation.client() as client:
        shown = client.show(reference(model))
    if invocation.json:
        invocation.print_json(shown)
    else:
        invocation.print(text(shown))


def text(model: ModelShow) -> str:
    """One fact a line; what the header does not say is left out."""
    header = model.header
    pairs: list[tuple[str, str | None]] = [
        ("name", model.name),
        ("aliases", ", ".join(model.aliases)),
        ("source", model.source),
        ("path", model.path),
        ("size", size(model.size)),
        ("backends", ", ".join(model.backends) or "none installed"),
        ("can", ", ".join(model.capabilities)),
        ("default", "yes" if model.default else None),
    ]
    if header is not None:
        pairs += [
            ("title", header.name),
            ("format", header.format),
            ("architecture", header.architecture),
            ("parameters", None if header.parameters is None else magnitude(header.parameters)),
            ("quantisation", header.quantisation),
            ("context", None if header.context_length is None else f"{count(header.context_length)} tokens"),
            ("layers", None if header.layers is None else count(header.layers)),
            ("embedding", None if header.embedding_length is None else count(header.embedding_length)),
            ("vocabulary", None if header.vocabulary_size is None else f"{count(header.vocabulary_size)} tokens"),
            ("template", None if header.template is None else "yes" if header.template else "no"),
            ("licence", header.licence),
        ]
    if len(model.files) > 1:
        pairs += [("file", name) for name in model.files]
    pairs += [("note", model.note), ("problem", model.problem)]
    return facts(pairs)
