"""Topology files: the names in them (``names``), what they may say (``schema``), how they are read (``reading``)."""

from dslth.config.names import *  # noqa: F403
from dslth.config.reading import *  # noqa: F403
from dslth.config.schema import *  # noqa: F403
