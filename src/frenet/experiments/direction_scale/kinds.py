"""The kinds of direction that `direction_scale` makes itself."""

# Directions that are compared with a fresh one at every measured step.
FRESH = ("gradient", "Adam step")
KINDS = (
    *FRESH, "prefix", "task vector", "damage line", "search winner", "random", "steering",
)  # fmt: skip
