"""Exit codes: done; a cell failed; a mistake of the user; a bug; Ctrl-C; SIGTERM."""

DONE, NO_RESULT, MISTAKE, FAULT, STOPPED, TERMINATED = 0, 1, 2, 70, 130, 143
