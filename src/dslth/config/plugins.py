"""What installed packages add by entry points: networks, data sets, means, codecs and sinks, each by a name.

A package names them in its own ``pyproject.toml``, as in::

    [project.entry-points."dslth.models"]
    tiny = "my_package.nets:Tiny"

Their code runs with the rights of whoever starts a peer, as all installed code does.
"""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, get_args

from dslth.errors import ConfigError

__all__ = ["Kind", "found", "loaded", "version"]

Kind = Literal["models", "datasets", "means", "codecs", "sinks"]
"""The entry points' groups are ``dslth.models`` and so on."""


@cache
def found(kind: Kind) -> Mapping[str, EntryPoint]:
    """Return the plugins of a kind that are installed, by name, without importing them."""
    assert kind in get_args(Kind)  # noqa: S101
    return {point.name: point for point in entry_points(group=f"dslth.{kind}")}


def loaded(kind: Kind, name: str) -> Any:
    """Import a plugin; raises ConfigError if it is not installed or cannot be imported."""
    if name not in found(kind):
        raise ConfigError(f"there is no {kind[:-1]} {name!r:.80} here: install the package that brings it")
    point = found(kind)[name]
    try:
        return point.load()
    except Exception as error:
        told = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ConfigError(f"{kind[:-1]} {name!r} ({point.value}) cannot be imported: {told}") from None


def version(kind: Kind, name: str) -> str:
    """Return a plugin's name with the package that brings it, and its version: peers must share them."""
    package = found(kind)[name].dist
    return f"{name} of {package.name} {package.version}" if package else name
