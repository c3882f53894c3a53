"""The tables of a finding, for tests."""

from frenet.experiments.experiment import Finding, Row


def parts(finding: Finding, title: str) -> list[Row]:
    """The rows of the one table with a title that starts so; none if there is no table."""
    found = [table.rows for table in finding.breakdowns if table.title.startswith(title)]
    assert len(found) <= 1
    return list(found[0]) if found else []
