"""Every error that dslth raises on purpose, and the exit code that a command ends with.

::

    DslthError              1   something went wrong that dslth can explain
    ├── ConfigError         3   a topology file or an option has a wrong key or value
    ├── TopologyError       4   nothing can be learned on the graph: in pieces, impossible degrees
    ├── UnknownPeerError    5   a peer id that the graph does not have
    ├── MissingFileError    6   a file or folder does not exist or cannot be read
    ├── DataError           7   a data set is missing, damaged, or too small for the partition
    ├── AddressError        8   a port is taken, or an address cannot be listened on
    ├── JoinError           9   neighbours did not show up within the join time-out
    ├── WrongRunError      10   a neighbour belongs to another run: other seed, model, data, algorithm or graph
    ├── PeerFailedError    11   a peer of a local run ended before its last round
    ├── OutputError        12   the run folder cannot be written
    ├── CheckpointError    13   a checkpoint is damaged, or another run's
    ├── SecurityError      14   a key is missing, damaged, or readable by others
    ├── BusyError          15   another process works in the run folder
    ├── LimitError         16   the system allows a process less memory or fewer files than a run needs
    └── SkippedError       17   a peer skipped more rounds than it played, to keep up with its neighbours

Exit code 0 means done, 2 a misspelt command line (from the option parser), 130 Ctrl-C.
"""

__all__ = [
    "AddressError",
    "BusyError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DslthError",
    "JoinError",
    "LimitError",
    "MissingFileError",
    "OutputError",
    "PeerFailedError",
    "SecurityError",
    "SkippedError",
    "TopologyError",
    "UnknownPeerError",
    "WrongRunError",
]


class DslthError(Exception):
    """Base of all errors that a person can fix; its text is one line: what is wrong, where, what to change."""

    exit_code = 1


class ConfigError(DslthError):
    """A topology file or an option has a wrong key or value."""

    exit_code = 3


class TopologyError(DslthError):
    """Nothing can be learned on the graph: it is in pieces, or its degrees are impossible."""

    exit_code = 4


class UnknownPeerError(DslthError):
    """A peer id that the graph does not have."""

    exit_code = 5


class MissingFileError(DslthError):
    """A file or folder does not exist or cannot be read."""

    exit_code = 6


class DataError(DslthError):
    """A data set is missing, damaged, or too small for the partition."""

    exit_code = 7


class AddressError(DslthError):
    """A port is taken, or an address cannot be listened on."""

    exit_code = 8


class JoinError(DslthError):
    """Neighbours did not show up within the join time-out."""

    exit_code = 9


class WrongRunError(DslthError):
    """A neighbour belongs to another run."""

    exit_code = 10


class PeerFailedError(DslthError):
    """A peer of a local run ended before its last round."""

    exit_code = 11


class OutputError(DslthError):
    """The run folder cannot be written."""

    exit_code = 12


class CheckpointError(DslthError):
    """A checkpoint cannot be read, or belongs to another run."""

    exit_code = 13


class SecurityError(DslthError):
    """A key that a peer needs is missing, damaged, or readable by others."""

    exit_code = 14


class BusyError(DslthError):
    """Another process works in the run folder."""

    exit_code = 15


class LimitError(DslthError):
    """The system allows a process less than a run needs."""

    exit_code = 16


class SkippedError(DslthError):
    """A peer skipped more rounds than it played."""

    exit_code = 17
