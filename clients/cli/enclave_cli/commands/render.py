"""`enclave render`: what a model would see of a conversation."""

from __future__ import annotations

import click

from enclave_cli import stdout
from enclave_cli.inputs import read_file, read_messages, read_tools
from enclave_cli.invocation import Invocation, json_option, no_start_option
from enclave_cli.references import reference


@click.command("render")
@click.argument("model")
@click.option("--messages", required=True, metavar="FILE", help="The conversation as JSON; - is standard input.")
@click.option("--tools", metavar="FILE", help="Functions that the model may call, as JSON.")
@click.option("--template", metavar="FILE", help="A chat template instead of the model's own.")
@click.option("--no-generation-prompt", is_flag=True, help="Without the beginning of an answer at the end.")
@json_option("Print one JSON document: {text, template}.")
@no_start_option(hidden=True)
@click.pass_obj
def command(
    invocation: Invocation,
    model: str,
    messages: str,
    tools: str | None,
    template: str | None,
    no_generation_prompt: bool,
) -> None:
    """Print what a model would see of a conversation.

    The model's chat template renders the messages, and the text is printed exactly. Nothing is loaded.

    \b
    Examples:
      enclave render folder:chatty --messages talk.json
      echo '[{"role": "user", "content": "Hello"}]' | enclave render folder:chatty --messages -
      enclave render folder:chatty --messages talk.json --template mine.jinja --no-generation-prompt
    """
    name = reference(model)
    conversation = read_messages(messages, invocation.note)
    callable_tools = read_tools(tools)
    own_template = None if template is None else read_file(template, "the template")
    with invocation.client() as client:
        rendered = client.render(
            name,
            conversation,
            tools=callable_tools,
            template=own_template,
            add_generation_prompt=not no_generation_prompt,
        )
    if invocation.json:
        invocation.print_json(rendered)
    else:
        stdout.write_exactly(rendered.text)
