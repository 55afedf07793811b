"""The loss on lines, planes and paths through minima: kinds of surface, their directions, values on the grid.

Imports `metrics` and what stands below it. Begin with kinds.py; a new kind is one function with @surface there.
"""

from landscape_cli.surface.kinds import directions_of, is_random
from landscape_cli.surface.span import Span

__all__ = ["Span", "directions_of", "is_random"]
