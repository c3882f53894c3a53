"""The columns of the tables of `composition`."""

from frenet.experiments.experiment import Column
from frenet.experiments.setup import columns

# Kinds of displacement. A first step has the length of its task's vector.
VECTORS, STEPS = "task vectors", "first steps"
_PAIR = (
    columns.SEED,
    columns.SPACE,
    Column("kind", "", "displacements: task vectors, or first steps as long", "key"),
    Column("first", "", "task of the first one, a", "key"),
    Column("second", "", "task of the second one, b", "key"),
)
_LOSS = Column("task", "", "task whose loss is measured", "key")
_BLOCK = Column("block", "", "0-based block", "key")
_DEPTH = Column("depth", "", "place of the block among all", "key")
_ERROR = "||shift(a + b) - shift(a) - shift(b)|| / ||shift(a) + shift(b)||"

TABLES = {
    "pair": (
        *_PAIR,
        Column("cosine", "", "between the two displacements, in the weights", "measure", "chance"),
        Column("chance", "", "1 / sqrt(d)", "reference"),
        Column("norm_first", "2-norm", "of a", "key"),
        Column("norm_second", "2-norm", "of b", "key"),
        Column("relative", "", "||a + b|| / ||W||, of the weights that move", "key"),
    ),
    "interaction": (
        *_PAIR,
        _LOSS,
        Column("s", "", "common scale of both", "key"),
        Column(
            "interaction", "nats/token", "L(s (a + b)) - L(s a) - L(s b) + L(0)", "measure",
            "random",
        ),
        Column("low", "nats/token", "lower end of its 95% interval over examples", "reference"),
        Column("high", "nats/token", "its upper end", "reference"),
        Column("random", "nats/token", "the same with a random b of equal norms", "reference"),
        Column("predicted", "nats/token", "s^2 a^T H b", "reference"),
        Column("change_first", "nats/token", "L(s a) - L(0)", "measure", "start"),
        Column("change_second", "nats/token", "L(s b) - L(0)", "measure", "start"),
        Column("change_both", "nats/token", "L(s (a + b)) - L(0)", "measure", "start"),
        Column("start", "nats/token", "L(0)", "reference"),
        Column("share", "", "|interaction| over the sizes of both changes alone", "measure", "eps"),
        Column("share_random", "", "the same with a random b", "reference"),
        Column("eps", "", "up to which they compose", "reference"),
        Column("known", "", "whether the changes exceed rounding", "key"),
    ),
    "radius": (
        *_PAIR,
        _LOSS,
        Column("radius", "", "common scale up to which they compose, interpolated if the ends "
               "are at most 25% apart, else empty", "reference"),
        Column("radius_low", "", "last scale before it; 0: none", "measure", "random_low"),
        Column("radius_high", "", "first scale after it; empty: beyond limit", "reference"),
        Column("low", "", "lower end of its 95% interval over examples", "reference"),
        Column("high", "", "its upper end; empty: beyond limit", "reference"),
        Column("limit", "", "largest scale", "reference"),
        Column("random_low", "", "radius_low with a random b of equal norms", "reference"),
        Column("random_high", "", "radius_high with it; empty: beyond limit", "reference"),
        Column("single_first", "", "scale up to which the loss is linear along a", "reference"),
        Column("single_second", "", "the same along b", "reference"),
        Column("predicted", "", "of slopes and a^T H b alone; empty: beyond limit", "reference"),
        Column("eps", "", "interaction that is allowed, as a share", "key"),
    ),
    "block": (
        *_PAIR,
        _LOSS,
        Column("block", "", "that b is restricted to, or all", "key"),
        Column("interaction", "nats/token", "at full scale", "measure", "random"),
        Column("low", "nats/token", "lower end of its 95% interval over examples", "reference"),
        Column("high", "nats/token", "its upper end", "reference"),
        Column("random", "nats/token", "the same with a random b of equal norms", "reference"),
        Column("predicted", "nats/token", "a^T H b of the block", "measure", "random"),
    ),
    "map": (
        *_PAIR,
        _LOSS,
        Column("x", "", "scale of a", "key"),
        Column("y", "", "scale of b", "key"),
        Column("loss", "nats/token", "there", "measure", "start"),
        Column("start", "nats/token", "at (0, 0)", "reference"),
    ),
    "curve": (
        *_PAIR,
        _BLOCK,
        _DEPTH,
        Column("s", "", "common scale of both", "key"),
        Column("error", "", _ERROR, "measure", "random"),
        Column("random", "", "the same with a random b of equal norms", "reference"),
    ),
    "position": (
        *_PAIR,
        _BLOCK,
        _DEPTH,
        Column("error", "", f"{_ERROR} at full scale", "measure", "random"),
        Column("low", "", "lower end of its 95% interval over prompts", "reference"),
        Column("high", "", "its upper end", "reference"),
        Column("each", "", "the same of every prompt's own shifts", "measure", "random"),
        Column("random", "", "error with a random b of equal norms", "reference"),
        Column("reached", "", "scale at which the error is 0.2, interpolated if the ends are at "
               "most 25% apart, else empty", "reference"),
        Column("reached_low", "", "last scale before it; 0: none", "reference"),
        Column("reached_high", "", "first scale after it; empty: beyond the last", "reference"),
        Column("shift_first", "", "||mean shift by a|| over its noise", "measure", "one"),
        Column("shift_second", "", "the same by b", "measure", "one"),
        Column("noise", "", "n / (n + m) of the weaker shift m and its noise n", "measure", "half"),
        Column("one", "", "of a shift that is noise", "reference"),
        Column("half", "", "of a shift that is noise", "reference"),
        Column("prompts", "", "number of prompts", "key"),
    ),
}  # fmt: skip
