"""The options of `landscape surface`, those of the `surface` section of a config."""

from __future__ import annotations

from typing import Annotated

import typer

Kind = Annotated[
    str | None, typer.Option("--kind", metavar="line|plane|path|trajectory|eigen", help="What to draw; a line.")
]
Points = Annotated[int | None, typer.Option("--points", help="Along each axis; 51.")]
Range = Annotated[
    float | None, typer.Option("--range", help="From -range to range; a path to 1 + range. 1; path: 0.5.")
]
Normalization = Annotated[
    str | None, typer.Option("--normalization", metavar="filter|layer|weight|none", help="Of random directions.")
]
Ignore = Annotated[
    str | None, typer.Option("--ignore", metavar="biasbn|none", help="Biases and BatchNorm stay, or move too.")
]
BatchNorm = Annotated[
    str | None, typer.Option("--batchnorm", metavar="fixed|interpolate|recompute", help="Statistics off a minimum.")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Of the directions; 0.")]
Draws = Annotated[int | None, typer.Option("--draws", help="Of the directions; 3 for a line, 1 for a plane.")]
Curvature = Annotated[
    bool, typer.Option("--curvature", help="The Hessian's largest and smallest eigenvalue at each point too.")
]
Directions = Annotated[
    str | None, typer.Option("--directions", metavar="FILE", help="Take those of an earlier surface.")
]
Runs = Annotated[str | None, typer.Option("--runs", metavar="A,B", help="Whose minima; the first run of each group.")]
