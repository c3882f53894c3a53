"""Numbers in, numbers out: intervals, tests, and how many units a question needs."""
