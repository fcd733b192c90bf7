"""``dslth report`` and ``dslth plot``: pictures of runs."""

from pathlib import Path
from typing import Annotated

import typer

from dslth.cli import options
from dslth.errors import ConfigError
from dslth.keys import is_loopback
from dslth.show.console import err, out

__all__ = ["plot", "report"]

RunsArgument = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders; of runs that go on, too.")]


def report(
    runs: RunsArgument,
    out_file: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The page [default: report.html in the first folder].")
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="Serve the page while the runs go on, until Ctrl-C.")] = False,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where to serve it; whoever can connect there can read it.")
    ] = "127.0.0.1:0",
) -> None:
    """Write a page with pictures of runs and their tables, in one file that opens offline."""
    from dslth.report import page
    from dslth.report.live import serve

    if not live:
        path = out_file or runs[0] / "report.html"
        out.print(f"{path}: {page.write(path, runs):,} bytes", soft_wrap=True)
        return
    if out_file is not None:
        raise typer.BadParameter("--live serves the page and writes no file: leave out --out")
    host, port = _address(listen)
    page.content(runs)  # an error now, not in the browser
    page.page({"title": "", "sections": []})
    with options.orderly(), serve(runs, host, port) as server:
        out.print(f"http://{host}:{server.server_port}/ (Ctrl-C ends it)", soft_wrap=True)
        if not is_loopback(f"tcp://{host}:{port}"):
            err.print(f"note: everybody who can connect to {host} can read it")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            out.print("ended")


def plot(
    runs: RunsArgument,
    out_file: Annotated[Path, typer.Option("--out", metavar="FILE", help="What to draw into: .png, .svg or .pdf.")],
    by_bytes: Annotated[
        bool, typer.Option("--bytes", help="Accuracy against message bytes, in place of rounds.")
    ] = False,
) -> None:
    """Draw the accuracy of runs side by side: the mean of the peers, and a band from the worst to the best."""
    from dslth.report import page

    out.print(f"{out_file}: {page.picture_file(out_file, runs, by_bytes=by_bytes):,} bytes", soft_wrap=True)


def _address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"--listen {listen[:80]!r}: expected HOST:PORT, as in 127.0.0.1:8000; port 0 is a free one")
    return host, int(port)
