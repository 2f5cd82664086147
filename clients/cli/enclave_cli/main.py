"""The entry point of `enclave`: reads the command line, runs one command, turns whatever happens into an exit code.

No command prints an error by itself and none ends the process: both happen here, once.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from enclave_cli import errors, stdout
from enclave_cli.errors import ExitCode, Problem
from enclave_cli.invocation import Connect, Invocation, connect, no_start_option
from enclave_cli.lazy import LazyGroup
from enclave_cli.output import line
from enclave_cli.stdout import OutputError

PROGRAM = "enclave"
_COMPLETION = "_ENCLAVE_COMPLETE"
"""Set by click's shell completion scripts."""

EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code.value:<5}{meaning}" for code, meaning in errors.MEANINGS.items())


def _print_version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from importlib.metadata import version

    click.echo(f"enclave {version('enclaved-cli')}")
    ctx.exit()


@click.group(
    cls=LazyGroup,
    name=PROGRAM,
    invoke_without_command=True,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@no_start_option()
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
@click.pass_context
def commands(ctx: click.Context) -> None:
    """Run AI models on this machine, through one daemon that all programs share.

    \b
    Examples:
      enclave run tiny "Once upon a time"     continue a text
      enclave run ~/models/some.gguf          ask for prompts, one after the other
      enclave list                            what can be run
      enclave ps                              what is in memory
      enclave why                             what the daemon did, and why

    The daemon, `enclaved`, is started when it is needed; `enclave stop` ends it. ENCLAVE_HOME names one folder under
    which everything lives; two homes are two daemons.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(connect: Connect = connect) -> int:
    """The script `enclave`: this process's command line, streams and signals."""
    if _COMPLETION in os.environ:
        commands.main(prog_name=PROGRAM)
    _prepare_streams()
    code = execute(sys.argv[1:], connect)
    # Nothing is left to be saved: a Ctrl-C during the interpreter's end prints no traceback and changes no exit code.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return code


def execute(arguments: Sequence[str], connect: Connect) -> int:
    """Runs one command line and gives its exit code. Standard output carries results, standard error the rest."""
    invocation = Invocation(connect)
    try:
        return _run(list(arguments), invocation)
    except KeyboardInterrupt:
        return _interrupted(invocation)
    except BrokenPipeError:
        return _output_closed()
    except OutputError as error:
        return _output_refused(error.reason)
    except Exception as error:  # noqa: BLE001 - the edge: whatever it is, a person gets a sentence and no traceback
        return _failed(error, invocation, arguments)


def _run(arguments: list[str], invocation: Invocation) -> int:
    errors.check_arguments(arguments)
    try:
        with commands.make_context(PROGRAM, arguments, obj=invocation) as ctx:
            commands.invoke(ctx)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.Abort:
        raise KeyboardInterrupt from None
    return ExitCode.OK


def _ask_for_json(invocation: Invocation, arguments: Sequence[str]) -> None:
    """Sets what a command line that could not be read says of its output, by its bare words."""
    words = arguments[: arguments.index("--")] if "--" in arguments else arguments
    invocation.json = invocation.json or "--json" in words
    invocation.json_lines = invocation.json_lines or (invocation.json and "--stream" in words)


def _failed(error: Exception, invocation: Invocation, arguments: Sequence[str]) -> int:
    if os.environ.get("ENCLAVE_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    if isinstance(error, OSError):
        # click writes help and version by itself; what standard output did not take is still in its buffer.
        try:
            stdout.write("")
        except OutputError as refused:
            return _output_refused(refused.reason)
    problem = errors.problem_of(error)
    if problem.exit_code == ExitCode.USAGE:
        _ask_for_json(invocation, arguments)
    if not invocation.start and errors.speaks_of_starting(problem.code, problem.hint):
        problem = replace(problem, hint=errors.NOT_STARTED_HINT)
    return _told(problem, invocation)


def _told(problem: Problem, invocation: Invocation) -> int:
    try:
        if invocation.json:
            invocation.print(errors.document(problem, lines=invocation.json_lines))
        else:
            stdout.begin_line_on_stderr()
            sys.stderr.write(errors.text(problem) + "\n")
            sys.stderr.flush()
    except BrokenPipeError:
        _output_closed()
    except OutputError as error:
        return _output_refused(error.reason, of=problem.message)
    return problem.exit_code


def _interrupted(invocation: Invocation) -> int:
    if sys.stderr.isatty():
        # The terminal has printed ^C: what comes next starts on a line of its own.
        sys.stderr.write("\n")
    if not invocation.json:
        return ExitCode.INTERRUPTED
    return _told(Problem("cancelled", "stopped with Ctrl-C", exit_code=ExitCode.INTERRUPTED), invocation)


def _output_closed() -> int:
    """Whoever read standard output (`| head -1`) has enough: no error."""
    _silence()
    return ExitCode.OK


def _output_refused(error: OSError, of: str = "") -> int:
    said = f"enclave: standard output could not be written: {error.strerror or error}"
    _silence()
    sys.stderr.write(said + (f" (it was to say: {line(of)})" if of else "") + "\n")
    sys.stderr.flush()
    return ExitCode.FAILED


def _silence() -> None:
    # The interpreter flushes standard output once more at its end, and would complain then.
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, sys.stdout.fileno())
    os.close(silent)


def _prepare_streams() -> None:
    """Text goes out as UTF-8 with bare newlines, whatever the locale, unless a terminal of another encoding reads it;
    what cannot be encoded never ends a command."""
    # Python has None for a stream that was closed at the start (`>&-`): nobody wants to hear.
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115 - it lives as long as the process
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            if stream.isatty():
                stream.reconfigure(errors="replace")
            else:
                stream.reconfigure(encoding="utf-8", errors="backslashreplace", newline="\n")
