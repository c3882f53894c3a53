"""Uses of a direction: searches, merges, steering."""
