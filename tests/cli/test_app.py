"""Records of options, flattened into commands."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer

from dslth.cli.app import App
from dslth.errors import ConfigError


@dataclass(frozen=True)
class Colours:
    red: Annotated[int, typer.Option(help="Red light.")] = 1
    green: Annotated[bool, typer.Option("--green", help="Green light.")] = False
    blue: Annotated[str | None, typer.Option(metavar="HUE", help="Blue light.")] = None


def typed(command, *words):
    """What a command takes from a command line."""
    taken = []
    app = App()
    app.command()(command(taken.append))
    app(list(words), standalone_mode=False)
    return taken[0]


def whole(take):
    def command(colours: Colours = Colours(red=7), other: int = 0) -> None:
        take((colours, other))

    return command


def in_part(take):
    def command(colours: Annotated[Colours, "blue"]) -> None:
        take(colours)

    return command


@pytest.mark.parametrize(
    ("words", "taken"),
    [
        ([], (Colours(7), 0)),
        (["--red", "3"], (Colours(3), 0)),
        (["--other", "4", "--green", "--blue=sky"], (Colours(7, True, "sky"), 4)),
    ],
)
def test_a_record_is_made_of_what_is_typed_and_of_the_commands_own_defaults(words, taken):
    assert typed(whole, *words) == taken


def test_a_command_may_have_some_of_a_records_options():
    assert typed(in_part, "--blue", "navy") == Colours(blue="navy")
    with pytest.raises(typer.BadParameter.__base__, match="--green"):
        typed(in_part, "--green")


def test_a_field_that_a_record_does_not_have_is_an_error_before_anything_is_typed():
    def command(colours: Annotated[Colours, "blu"]) -> None: ...

    with pytest.raises(AttributeError, match="blu"):
        App().command()(command)


@pytest.mark.parametrize("debug", [True, False])
def test_debug_shows_where_an_error_comes_from(debug, capsys):
    app = App()

    @app.command()
    def command() -> None:
        raise ConfigError("wrong")

    with pytest.raises(ConfigError):
        app(["--debug"] if debug else [], standalone_mode=False)
    assert ("Traceback" in capsys.readouterr().err) == debug
