"""The commands of ``dslth``: whole runs and their run folders."""

from dslth.cli import (
    bench,
    collect,
    compare,
    deploy,
    doctor,
    experiment,
    files,
    inspect,
    keys,
    report,
    run,
    sink,
    sweep,
    ticket,
)
from dslth.cli.app import App
from dslth.cli.guard import guarded
from dslth.cli.options import VersionOption

__all__ = ["main"]

app = App(
    name="dslth",
    help="Decentralised learning in which peers exchange nothing but binary masks.",
    no_args_is_help=True,
    add_completion=True,
)
for command in (
    files.init,
    files.topologies,
    files.schema,
    doctor.doctor,
    run.run,
    collect.collect,
    inspect.inspect,
    report.report,
    report.plot,
    sink.sink,
    compare.compare,
    sweep.sweep,
    experiment.experiment,
    deploy.compose,
    deploy.k8s,
):
    app.command()(command)
app.add_typer(inspect.topology_app, name="topology")
app.add_typer(bench.bench_app, name="bench")
app.add_typer(keys.keys_app, name="keys")
app.add_typer(ticket.ticket_app, name="ticket")


def main() -> None:
    """Run ``dslth``."""
    guarded(app)


@app.callback()
def _root(version: VersionOption = False) -> None:
    pass
