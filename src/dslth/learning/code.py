"""Own code: imported where a topology file, or the user, names it."""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dslth.config import plugins
from dslth.errors import ConfigError

__all__ = ["factory", "importing", "told"]

_importing = 0


def importing() -> bool:
    """Whether a file of own code is being imported right now: it must not start runs."""
    return _importing > 0


def factory(name: str) -> Callable[..., Any]:
    """Return what makes an own network: ``package.module:Net``, ``path/of/file.py:Net``, or a plugin's name.

    Raises ConfigError if it cannot be imported, or if a ticket has named it and nobody else.
    """
    where, colon, attribute = name.rpartition(":")
    if not where and colon:
        raise ConfigError(
            "the network is somebody's own code, which is never run on the word of a ticket: name it with --model, "
            f"as in nets.py:{attribute}, or of a plugin that is installed"
        )
    try:
        if colon:
            module = _file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
            made = getattr(module, attribute)
        else:
            made = plugins.loaded("models", name)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"experiment.model: {name} cannot be imported: {told(error)}") from error
    if not callable(made):
        raise ConfigError(f"experiment.model: {name} is not a class or function that makes a network")
    found: Callable[..., Any] = made
    return found


def _file(path: Path) -> Any:
    """Import a file, as Python runs a script: what lies beside it can be imported from it."""
    name = f"dslth_own_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with _importable(path.parent):
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    global _importing
    sys.path.insert(0, str(folder))
    _importing += 1
    try:
        yield
    finally:
        _importing -= 1
        sys.path.remove(str(folder))


def told(error: Exception) -> str:
    """Return an error of own code as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
