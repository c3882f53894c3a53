"""The columns of `best_of_n`."""

from frenet.experiments.experiment import Column
from frenet.experiments.setup import columns

_PLACE = (
    columns.SEED,
    columns.SPACE,
    Column("size", "", "width of the network, or rank of the adapters", "key"),
    columns.DAMAGED_TASK,
    columns.PROTOCOL,
    Column("place", "", "where candidates move", "key"),
    Column("search", "", "number of the search, with its own noise and directions", "key"),
    Column("dim", "", "coordinates that are perturbed", "key"),
)
_AT = (
    *_PLACE,
    Column("factor", "", "sigma in units of sigma*, or of the largest trusted sigma", "key"),
    Column("unit", "", "sigma*, or the largest trusted sigma if there is none", "key"),
    Column("sigma", "", "standard deviation per coordinate", "key"),
)
TABLES = {
    "place": (
        *_PLACE,
        Column("gradient", "", "||g||", "reference"),
        Column("trace", "", "tr(H), by Hutchinson's estimator", "measure", "trace_error"),
        Column("trace_error", "", "its standard error", "reference"),
        Column("trace_square", "", "tr(H^2)", "reference"),
        Column("sigma_star", "", "predicted best sigma; empty: no positive trace", "reference"),
        Column("linear_sigma", "", "largest sigma with little spread by curvature", "reference"),
        Column("best_gain", "nats/token", "predicted gain at sigma*", "reference"),
        Column("density", "", "||g||^2 / d", "reference"),
        Column("density_over_curvature", "", "||g||^2 / tr(H)", "reference"),
        Column("transfer", "", "share of the slope's gain on other examples", "reference"),
        Column("bend", "", "the same for the curvature's gain", "reference"),
        Column("loss", "nats/token", "loss on the selection batch", "reference"),
    ),
    "spread": (
        *_AT,
        Column("mean", "nats/token", "mean change", "measure", "mean_predicted"),
        Column("mean_predicted", "nats/token", "sigma^2 tr(H) / 2", "reference"),
        Column("std", "nats/token", "standard deviation of the change", "measure", "std_predicted"),
        Column("std_predicted", "nats/token", "its prediction", "reference"),
        Column("noise", "std", "error of a score that is not due to the weights", "reference"),
        Column("ks", "", "Kolmogorov-Smirnov distance to the prediction", "measure", "ks_limit"),
        Column("ks_limit", "", "95% lie below if the prediction is right", "reference"),
        Column(
            "second_order", "", "spread by curvature over slope", "measure", "second_order_limit"
        ),
        Column("second_order_limit", "", "counts as linear below this", "reference"),
    ),
    "quantile": (
        *_AT,
        Column("p", "", "share of the candidates below", "key"),
        Column("observed", "std", "quantile of the change", "measure", "predicted"),
        Column("predicted", "std", "its prediction", "reference"),
    ),
    "best": (
        *_AT,
        Column("candidates", "", "candidates N", "key"),
        Column("blocks", "", "disjoint blocks of N candidates", "key"),
        Column("gain", "nats/token", "best of N, mean over the blocks", "measure", "predicted"),
        Column("predicted", "nats/token", "expected best of N", "reference"),
        Column("scale", "nats/token", "predicted gain at sigma*, or the loss", "reference"),
        Column("second_order", "", "spread by curvature over spread by slope", "reference"),
        Column("linear", "nats/token", "the same for a linear loss", "reference"),
        Column("low", "nats/token", "lower end of the predicted 95% band", "reference"),
        Column("high", "nats/token", "its upper end", "reference"),
        Column("inside", "fraction", "share of blocks in the band", "measure", "nominal"),
        Column("nominal", "fraction", "nominal coverage of the band", "reference"),
        Column("density", "", "||g||^2 / d", "reference"),
        Column("density_over_curvature", "", "||g||^2 / tr(H)", "reference"),
    ),
    "winner": (
        *_AT,
        Column("candidates", "", "candidates N", "key"),
        Column("selected", "nats/token", "on the selection batch", "measure", "selected_predicted"),
        Column("selected_predicted", "nats/token", "expected best of N", "reference"),
        Column("held_out", "nats/token", "on held-out data", "measure", "held_out_predicted"),
        Column("held_out_low", "nats/token", "95% interval over examples", "reference"),
        Column("held_out_high", "nats/token", "95% interval over examples", "reference"),
        Column("held_out_predicted", "nats/token", "expected on held-out data", "reference"),
        Column("step", "nats/token", "by a gradient step of equal norm", "measure", "held_out"),
        Column("loss", "nats/token", "loss on the selection batch", "reference"),
    ),
}
