"""Exit codes: done; a cell failed; the user's mistake; a fault of frenet; stopped by Ctrl-C."""

DONE, NO_RESULT, MISTAKE, FAULT, STOPPED = 0, 1, 2, 70, 130
