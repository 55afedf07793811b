"""The loss on lines, planes and paths through minima: kinds of surface, their directions, values on the grid.

Imports `metrics` and what stands below it. Begin with kinds.py.
"""
