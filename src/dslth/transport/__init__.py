"""Moving opaque bytes between peers."""

from dslth.transport.base import Delivery, LinkBytes, Transport

__all__ = ["Delivery", "LinkBytes", "Transport"]
