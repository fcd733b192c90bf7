"""How commands are made: a record of options stands for its options, and every command has ``--debug``."""

import inspect
import traceback
from collections.abc import Callable
from dataclasses import is_dataclass, replace
from inspect import Parameter
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer

from dslth.errors import DslthError
from dslth.terminal import say

__all__ = ["App"]

Command = TypeVar("Command", bound=Callable[..., Any])
DEBUG = Parameter(
    "debug",
    Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")],
)


class App(typer.Typer):
    """A group of commands, or a single command if it has only one.

    If a command takes a dataclass, the command line has an option for each of its fields; ``Annotated[Record, "a",
    "b"]`` has options for these fields only. The command's own default for the record gives the options' defaults.
    """

    def __init__(self, *, add_completion: bool = False, **settings: Any) -> None:
        super().__init__(
            pretty_exceptions_enable=False,
            rich_markup_mode=None,  # brackets in help texts are brackets
            context_settings={"help_option_names": ["-h", "--help"]},
            add_completion=add_completion,
            **settings,
        )

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Command], Command]:
        """Return a decorator that adds a function as a command and returns it unchanged."""
        register = super().command(name, **settings)

        def add(command: Command) -> Command:
            register(_flattened(command))
            return command

        return add


def _flattened(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command with a parameter for each option: those of its records, and ``--debug``."""
    hints, parameters = get_type_hints(command, include_extras=True), []
    records: dict[str, tuple[Any, list[str]]] = {}
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        record, *only = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if not (isinstance(record, type) and is_dataclass(record)):
            parameters.append(parameter.replace(annotation=hint, kind=Parameter.KEYWORD_ONLY))
            continue
        default = record() if parameter.default is Parameter.empty else parameter.default
        options = get_type_hints(record, include_extras=True)
        records[parameter.name] = default, only or list(options)
        parameters += [
            Parameter(name, Parameter.KEYWORD_ONLY, default=getattr(default, name), annotation=options[name])
            for name in only or options
        ]

    def flattened(*, debug: bool, **typed: Any) -> Any:
        for name, (default, options) in records.items():
            typed[name] = replace(default, **{option: typed.pop(option) for option in options})
        try:
            return command(**typed)
        except DslthError:
            for line in traceback.format_exc().splitlines() if debug else ():
                say(line)
            raise

    flattened.__name__, flattened.__doc__ = command.__name__, command.__doc__
    flattened.__signature__ = inspect.Signature([*parameters, DEBUG])  # type: ignore[attr-defined]
    return flattened
