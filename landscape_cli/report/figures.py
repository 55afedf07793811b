"""The figures of a report, one row each: from which tables, by which function, under which title and caption.

A new figure is a function and a row. The kinds of surface bring theirs, see figures_surface.py.
"""

from landscape_cli.report import figures_audit as audit
from landscape_cli.report import figures_curves as curves
from landscape_cli.report import figures_groups as groups
from landscape_cli.report import figures_surface
from landscape_cli.report.inputs import RECORDS, Figure

FIRST = (
    Figure(
        "metric_by_group",
        ("metrics.csv", "runs.csv"),
        lambda of, stem: groups.metric_by_group(of.metrics, of.runs, of.groups, stem),
        "Metrics by group",
        "Each dot is a run; the bar beside it is the group's mean and 95 % interval.",
    ),
    Figure(
        "metric_vs_gap",
        ("metrics.csv", "runs.csv"),
        lambda of, stem: groups.metric_vs_gap(of.metrics, of.runs, stem),
        "Metrics against the generalization gap",
        "Each dot is a run. A metric that predicts generalization orders the dots: rho (Spearman) near 1 or "
        "-1. Groups that merely lie apart give a high rho too; `landscape rank` tells the two cases apart.",
    ),
    Figure(
        "regret_by_radius",
        ("metrics.csv", "runs.csv"),
        lambda of, stem: groups.regret_by_radius(of.metrics, of.runs, of.groups, stem),
        "How far the linear formula holds",
        "The regret R says how much worse the best step for one minibatch is on another minibatch than that "
        "one's own best step. Solid: R of the exact best steps within a radius, per unit of radius; mean and "
        "95 % interval over the runs of a group. Dashed: the first-order formula, which takes the loss for "
        "linear. Where the two part is how far one may walk from the minimum before the linear formula "
        "misjudges the regret.",
    ),
    Figure(
        "invariance",
        ("invariance.csv",),
        lambda of, stem: audit.invariance(of.table("invariance.csv"), stem),
        "What a change of parameters that changes nothing does to each metric",
        "Metrics down, those that move furthest first; transforms across; in each cell the value after it, in "
        "parts of the value before. All but logits leave the network's function as it is. Green: the metric "
        "claims to survive, and does within the tolerance of its row; red: it claims, and does not.",
    ),
)
LAST = (
    Figure(
        "lines",
        ("tables/lines.csv",),
        lambda of, stem: audit.lines(of.table("tables/lines.csv"), stem),
        "The same function, sharp and flat",
        "Loss along a random line through a minimum and through images of it that compute the same function. "
        "Left: in one direction, the image whose largest eigenvalue was driven up looks sharp. Right: with "
        "each filter of the direction as long as the minimum's own (Li et al. 2018) that difference is gone, "
        "but other coordinates of the same parameters still change the picture.",
    ),
    Figure(
        "along_training",
        ("metrics.csv", "runs.csv", RECORDS),
        lambda of, stem: curves.along_training(of.metrics, of.runs, of.groups, curves.edges(of), stem),
        "Along training",
        "What was measured at snapshots, a line a run, its minimum as a dot at the end. Dashed beside "
        "hessian_top: 2/lr, with momentum mu 2(1+mu)/lr, where training is gradient descent with a constant "
        "rate lr. On a quadratic of more curvature, descent on the full batch diverges. Networks are seen to "
        "sharpen up to there, and to stay about it (Cohen et al. 2021); with small batches they stay below.",
        optional=("experiment.yaml",),
    ),
    Figure(
        "spectral_density",
        ("tables/spectral_density.csv", "runs.csv"),
        lambda of, stem: curves.spectral_density(of.table("tables/spectral_density.csv"), of.runs, of.groups, stem),
        "Spectrum of the Hessian",
        "How the eigenvalues of the Hessian of the training loss are spread, on a log scale: a bulk about 0, "
        "and few that stand out, each smeared by 1 % of the range. A thin line is a run, a thick one the mean "
        "of its group.",
    ),
    Figure(
        "training_curves",
        (RECORDS,),
        lambda of, stem: groups.training_curves(of.records, stem),
        "Training",
        "Loss on the training set, a line a run, against updates and against passes.",
    ),
)


def figures() -> dict[str, Figure]:
    """All by name, in the order of the page."""
    return {figure.name: figure for figure in (*FIRST, *figures_surface.figures(), *LAST)}
