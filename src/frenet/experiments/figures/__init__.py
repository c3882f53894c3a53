"""Charts: axes, series and the usual kinds of figure."""
