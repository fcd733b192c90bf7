"""Admission by key: the neighbours' keys and no others, each as the peer that it belongs to."""

from collections.abc import Mapping

import zmq
from zmq.auth.thread import ThreadAuthenticator

__all__ = ["DOMAIN", "Gate"]

DOMAIN = "dslth"


class Gate(ThreadAuthenticator):
    """Answers libzmq's questions about keys (ZAP), from a thread of its own until ``stop``.

    ``neighbours`` are the public keys that are admitted, by peer; messages from them carry the peer's id as
    ``User-Id``. ``unknown`` counts the others.
    """

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", neighbours: Mapping[int, bytes]) -> None:
        super().__init__(context)
        self._peers = {key: peer for peer, key in neighbours.items()}
        self.unknown = 0
        self.configure_curve_callback(DOMAIN, self)
        self.start()

    def callback(self, domain: str, key: bytes) -> bool:
        """Return whether a key (Z85) is admitted."""
        known = key in self._peers
        self.unknown += not known
        return known

    def curve_user_id(self, client_public_key: bytes) -> str:
        """Return the id of the peer that a key (raw) belongs to."""
        return str(self._peers[zmq.utils.z85.encode(client_public_key)])
