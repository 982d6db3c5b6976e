"""The commands: `vmops demo | simulate | submit | watch | operations | show | cancel | tasks | doctor | dom0`.

Exit status: 0 success, 1 the operation failed (or something does not answer), 2 usage.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from worker import __version__
from worker.cli.complaints import FAILED, USAGE, Complaint, complaint_about, open_client, pool_of

if TYPE_CHECKING:
    from worker.client import VMOps
    from worker.operations.catalogue import Definition
    from worker.operations.record import Record

#: Columns when the output is no terminal.
_WIDTH = 200
#: 128 + SIGINT, as shells count.
INTERRUPTED = 130


class _Commands(TyperGroup):
    """Turns errors into sentences, unless --debug asks for the traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Carry out a command."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            complaint = complaint_about(error)
            if complaint is None or ctx.params.get("debug"):
                raise
            typer.echo(f"vmops: {complaint}", err=True)
            raise typer.Exit(complaint.status) from error


app = typer.Typer(
    name="vmops",
    cls=_Commands,
    help="VM operations on XenServer and XCP-ng pools.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

dom0_app = typer.Typer(help="The plugins that vmops has in the dom0 of hosts.", no_args_is_help=True)
app.add_typer(dom0_app, name="dom0")

OperationId = Annotated[str, typer.Argument(metavar="ID", help="The operation's id.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Run the command line."""
    app(prog_name="vmops")


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"vmops {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options that every command has."""
    del debug, version


@app.command()
def demo(
    once: Annotated[bool, typer.Option("--once", help="End after the snapshot: status 0 verified, 1 not.")] = False,
    keep_state: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep everything in this folder; default: a temporary one, removed."),
    ] = None,
    no_flower: Annotated[bool, typer.Option("--no-flower", help="Leave Flower out.")] = False,
) -> None:
    """Snapshot a running VM of a simulated pool, everything else being real, and verify the image bit by bit."""
    from worker.cli.demo import run

    raise typer.Exit(run(keep_state, once=once, with_flower=not no_flower))


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def simulate(context: typer.Context) -> None:
    """Run a simulated XenServer pool. Its options: `vmops simulate --help`."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "simulator", *context.args])  # noqa: S606 - no shell, our own module


@app.command()
def submit(
    operation: Annotated[
        str, typer.Argument(metavar="OPERATION", help="Name of the operation, such as snapshot: see `vmops tasks`.")
    ],
    fields: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="The request. Values may be JSON, keys dotted; a secret is key=@file."
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it; status 0 when it succeeded, 1 when not.")] = False,
    operation_id: Annotated[
        str | None,
        typer.Option("--id", help="The operation's id; the same id twice is one operation. Default: a new one."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Submit an operation and print its id; ask a query, such as get_info, and print the answer."""
    from worker.cli.arguments import request_of
    from worker.cli.catalogue import find_definition, query_if_known

    asked = query_if_known(operation)
    if asked is not None:
        if operation_id is not None:
            raise Complaint("--id goes with operations; a query has none.", USAGE)
        with open_client() as vmops:
            request = request_of(asked.name, asked.request, fields or [], vmops.seal)
            try:
                answer = vmops.query(asked.name, request)
            except TimeoutError as error:
                raise Complaint(str(error)) from error
        _print_json(answer)
        return
    definition = find_definition(operation)
    if operation_id is not None and not operation_id.strip():
        raise Complaint("--id is empty: leave it out for a new id.", USAGE)
    with open_client() as vmops:
        request = request_of(definition.name, definition.request, fields or [], vmops.seal)
        pool_of(vmops, request)
        handle = vmops.submit(definition.name, request, operation_id=operation_id)
        if not wait:
            typer.echo(json.dumps({"id": handle.id}) if as_json else handle.id)
            return
        if not as_json:
            typer.echo(handle.id)
        _follow(vmops, handle.id, as_json=as_json)


@app.command()
def watch(operation_id: OperationId, as_json: AsJson = False) -> None:
    """Follow an operation live until it has ended; status 0 when it has succeeded, 1 when not."""
    with open_client() as vmops:
        _follow(vmops, operation_id, as_json=as_json)


@app.command()
def operations(
    vm: Annotated[str | None, typer.Option(help="Only those of this VM, by the name or uuid of the request.")] = None,
    state: Annotated[str | None, typer.Option(help="Only those in this state, such as running or stuck.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the newest operations."""
    from worker.cli.lists import OperationsList
    from worker.operations.states import State

    if state is not None and state not in list(State):
        raise Complaint(f"No state is called {state!r}; there are: {', '.join(State)}.", USAGE)
    with open_client() as vmops:
        found = vmops.operations(vm=vm, state=state, limit=limit)
    if as_json:
        from worker.cli.view import stamp

        times = ("created_at", "started_at", "ended_at")
        _print_json([one.summary() | {name: stamp(getattr(one, name)) for name in times} for one in found])
    elif found:
        _print(OperationsList(found))
    else:
        typer.echo("No operation matches." if vm or state else "The journal has no operation.", err=True)


@app.command()
def show(operation_id: OperationId, as_json: AsJson = False) -> None:
    """Show an operation: its steps, what it waits for, what went wrong, what is left and what to do."""
    from worker.cli import view
    from worker.cli.lists import operation_details

    with open_client() as vmops:
        record, now_ms = vmops.handle(operation_id).record(), vmops.journal.now_ms()
    definition = _definition_of(record)
    if as_json:
        _print_json(view.as_json(record, definition))
    else:
        _print(operation_details(record, definition, now_ms))


@app.command()
def cancel(
    operation_id: OperationId,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it until it has ended.")] = False,
    give_up: Annotated[
        bool,
        typer.Option("--give-up", help="End one that can neither undo the rest nor get further; the rest stays."),
    ] = False,
) -> None:
    """Ask an operation to stop and undo what it did; a stuck one tries again."""
    from worker.operations.states import State

    with open_client() as vmops:
        handle = vmops.handle(operation_id)
        if give_up:
            handle.give_up()
            typer.echo(f"Operation {operation_id} is given up; `vmops show {operation_id}` tells what is left.")
            return
        was_stuck = handle.record().state is State.STUCK
        handle.cancel()
        if not wait:
            told = "tries again" if was_stuck else "is asked to stop and to undo what it did"
            typer.echo(f"Operation {operation_id} {told}; `vmops watch {operation_id}` follows it.")
            return
        record = _watched(vmops, operation_id, is_quiet=False)
    if record.state not in {State.CANCELLED, State.SUCCEEDED, State.UNDONE}:
        _say_failure(record)
        raise typer.Exit(FAILED)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Look at everything the deployment stands on; say what is wrong and what to do. Status 1 when anything is."""
    from dataclasses import asdict

    from worker.cli.doctor import examine
    from worker.cli.lists import findings_table

    with open_client() as vmops:
        found = list(examine(vmops))
    if as_json:
        _print_json([asdict(one) for one in found])
    else:
        _print(findings_table(found))
    if any(one.level == "bad" for one in found):
        raise typer.Exit(FAILED)


Hosts = Annotated[list[str], typer.Argument(metavar="HOST", help="Addresses of hosts, or user@address.")]
Ssh = Annotated[str, typer.Option(metavar="COMMAND", help="The SSH client with its options.")]
DEFAULT_SSH = "ssh -o BatchMode=yes"


@dom0_app.command()
def install(hosts: Hosts, ssh: Ssh = DEFAULT_SSH) -> None:
    """Install or update the plugins on hosts; changes nothing where they are up to date."""
    _carry_out("install", hosts, ssh)


@dom0_app.command()
def remove(hosts: Hosts, ssh: Ssh = DEFAULT_SSH) -> None:
    """Remove the plugins from hosts; what they made there stays."""
    _carry_out("remove", hosts, ssh)


def _carry_out(action: str, hosts: list[str], ssh: str) -> None:
    from worker.cli.dom0 import carry_out

    problems = 0
    for host in hosts:
        done = carry_out(action, host, shlex.split(ssh))
        problems += bool(done.problem)
        if done.problem:
            typer.echo(f"{host}: {done.problem}", err=True)
        elif not done.answer["changed"]:
            typer.echo(f"{host}: nothing to do")
        elif action == "install":
            typer.echo(f"{host}: version {done.answer['pack']} installed, Python {done.answer['python']}")
        else:
            typer.echo(f"{host}: removed")
    if problems:
        raise typer.Exit(FAILED)


@app.command()
def tasks(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Only this task, in full.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the catalogue: every Celery task with the JSON Schema of its request and an example."""
    from worker.cli import catalogue
    from worker.cli.lists import catalogue_table, task_details

    if name is not None:
        entry = catalogue.find(name)
        if as_json:
            _print_json(entry.as_json())
        else:
            _print(task_details(entry))
        return
    found = catalogue.entries()
    if as_json:
        _print_json([entry.as_json() for entry in found])
    else:
        _print(catalogue_table(found))


def _definition_of(record: Record) -> Definition | None:
    from worker.cli.catalogue import definition_if_known

    return definition_if_known(record)


def _follow(vmops: VMOps, operation_id: str, *, as_json: bool) -> None:
    """Follow an operation to its end, print its result, end with its status."""
    from worker.cli import view
    from worker.operations.states import State

    record = _watched(vmops, operation_id, is_quiet=as_json)
    if as_json:
        _print_json(view.as_json(record, _definition_of(record)))
    elif record.state is State.SUCCEEDED and record.result is not None:
        _print_json(record.result)
    if record.state is not State.SUCCEEDED:
        _say_failure(record)
        raise typer.Exit(FAILED)


def _watched(vmops: VMOps, operation_id: str, *, is_quiet: bool) -> Record:
    """Follow an operation; its progress goes to standard error when standard output is for a program."""
    from rich.console import Console

    from worker.cli.follow import follow

    record = vmops.handle(operation_id).record()
    try:
        return follow(vmops, operation_id, _definition_of(record), Console(stderr=is_quiet))
    except KeyboardInterrupt:
        typer.echo(f"\nOperation {operation_id} goes on; `vmops watch {operation_id}` follows it.", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _say_failure(record: Record) -> None:
    from worker.operations.results import failure_text

    typer.echo(f"vmops: The operation did not succeed: {failure_text(record)}", err=True)


def _print(renderable: Any) -> None:
    """Print for people; long cells are never cut when nobody looks."""
    from rich.console import Console

    console = Console(highlight=False)
    if console.is_terminal:
        console.print(renderable)
        return
    console = Console(highlight=False, width=_WIDTH, file=io.StringIO())
    with console.capture() as capture:
        console.print(renderable)
    typer.echo("\n".join(line.rstrip() for line in capture.get().strip("\n").splitlines()))


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))
