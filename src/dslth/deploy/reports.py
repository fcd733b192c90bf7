"""How peers that run elsewhere and their collector get the keys for reports, and connect to each other.

In the folder of keys the collector comes after the last peer: with peers 0 to 9 its pair is that of "peer" 10.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dslth import keys as key_files
from dslth.config import NetworkConfig, Security
from dslth.engines.inbox import Reporter
from dslth.keys import Keys
from dslth.runs.events import Event
from dslth.stop import Stop

__all__ = ["collector_keys", "sending"]


def collector_keys(
    network: NetworkConfig | None, peers: int, patience: float, stop: Stop, *, make: bool
) -> Keys | None:
    """Load the keys that the collector needs, None if it talks unencrypted; raises SecurityError.

    ``make``: makes its own pair if need be, and waits for the peers' public keys, up to ``patience`` seconds.
    """
    if network is None or network.security != Security.CURVE:
        return None
    folder = Path(network.keys or "")
    if make:
        key_files.ensure(folder, peers)
        key_files.wait_for(folder, range(peers), patience, stop)
    return key_files.load(folder, peers, range(peers))


@contextmanager
def sending(
    address: str | None, peer: int, peers: int, network: NetworkConfig | None
) -> Iterator[Callable[[Event], None]]:
    """Return a function that sends a peer's reports to the collector at ``address``, with keys if the peer has them.

    Without an address it does nothing. Raises SecurityError and AddressError.
    """
    if address is None:
        yield lambda event: None
        return
    curve = network is not None and network.security == Security.CURVE
    mine = key_files.load(Path(network.keys or ""), peer, [peers]) if network and curve else None
    reporter = Reporter(address, mine, collector=peers)
    try:
        yield reporter.emit
    finally:
        reporter.close()
