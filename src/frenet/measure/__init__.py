"""Numbers measured on a network, at a point or along a path."""
