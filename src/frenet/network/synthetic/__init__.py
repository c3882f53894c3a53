"""The synthetic multitask transformer and its contrasts."""
