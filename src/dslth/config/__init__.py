"""Topology files: names in them (``names``, ``plugins``), what they may say (``schema``), how they are read."""

from dslth.config.json_schema import *  # noqa: F403
from dslth.config.names import *  # noqa: F403
from dslth.config.reading import *  # noqa: F403
from dslth.config.schema import *  # noqa: F403
from dslth.config.template import *  # noqa: F403
