"""Records of a run that may be interrupted anywhere."""

import pytest

import records


def test_rows_of_a_job_that_ended(tmp_path):
    path = tmp_path / "build" / "bench.jsonl"
    assert records.read(path) == {}
    records.add(path, job="x", environment={"commit": "1"})
    records.add(path, job="x", row={"name": "a"})
    assert records.read(path)["x"].seconds is None
    records.add(path, job="x", seconds=2.0)
    assert records.read(path) == {"x": records.Job({"commit": "1"}, [{"name": "a"}], 2.0)}


def test_a_new_attempt_counts_once_it_has_ended(tmp_path):
    path = tmp_path / "bench.jsonl"
    for commit, ended in (("1", True), ("2", False)):
        records.add(path, job="x", environment={"commit": commit})
        records.add(path, job="x", row={"name": commit})
        if ended:
            records.add(path, job="x", seconds=1.0)
    assert records.read(path)["x"].rows == [{"name": "1"}]
    records.add(path, job="x", seconds=3.0)
    assert records.read(path)["x"].rows == [{"name": "2"}]
    assert records.read(path)["x"].seconds == 3.0


def test_half_a_line_at_the_end_is_left_out_and_one_elsewhere_is_an_error(tmp_path):
    path = tmp_path / "bench.jsonl"
    records.add(path, job="x", environment={})
    with path.open("a") as file:
        file.write('{"job": "x", "ro')
    assert records.read(path)["x"].rows == []
    with path.open("a") as file:
        file.write("\n")
    records.add(path, job="x", row={})
    with pytest.raises(ValueError, match=r"line 2 of bench\.jsonl is no record"):
        records.read(path)
