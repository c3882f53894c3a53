"""Curves of growing cost: when they stop, and what survives if the process is killed."""

import json
import os
import subprocess
import sys

import pytest

import bench_growth
from bench_growth import CURVES, Curve, grown, points


def counted(sizes, *, per_unit=0, **settings):
    calls = []

    def point(count):
        calls.append(count)
        return {"size": count, "seconds": 1.0, "bytes": per_unit * count}

    return Curve("f", "d", sizes, "1", point, **settings), calls


def test_a_curve_stops_before_what_does_not_fit(monkeypatch):
    monkeypatch.setattr(bench_growth, "free_bytes", lambda device: 2**31)
    curve, calls = counted((10**6, 10**8, 10**9), per_unit=8)
    found = list(points(curve, 1e9))
    assert [point.get("size") for point in found] == [10**6, 10**8, None]
    assert found[-1]["stopped"] == "1e+09 needs 7.5 GiB and 2.0 GiB are free"
    assert calls == [10**6, 10**6, 10**8]


def test_sizes_above_the_largest_wanted_are_left_out():
    curve, calls = counted((1, 10, 100), warm=False)
    assert [point["size"] for point in points(curve, 10)] == [1, 10]
    assert calls == [1, 10]


def test_a_point_has_the_memory_of_its_inputs_and_its_result():
    # In a separate process, since memory that other tests freed would be reused.
    script = (
        "import json, torch; from bench_growth import measured\n"
        "def make(count):\n"
        "    kept = torch.ones(count)\n"
        "    return lambda: kept + 1\n"
        "print(json.dumps(measured(make)(64 * 2**18)))\n"
    )
    folders = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": folders},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["seconds"] > 0
    assert found["bytes"] == pytest.approx(2 * 64 * 2**20, rel=0.1)


def test_points_that_came_before_a_process_was_killed_are_kept(monkeypatch, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, json\n"
        "print('a word of a library', flush=True)\n"
        "print(json.dumps({'size': 1, 'seconds': 1.0, 'bytes': 0}), flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    monkeypatch.setattr(bench_growth, "__file__", str(script))
    [row] = grown(counted((1, 2))[0], 1e9)
    assert row["points"] == [{"size": 1, "seconds": 1.0, "bytes": 0}]
    assert row["stopped"] == "the process ended with status -9"
    script.write_text("raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="ended with status 3"):
        next(grown(counted((1, 2))[0], 1e9))


def test_every_curve_can_be_told_by_its_name_and_measures_its_smallest_size():
    assert len({curve.name for curve in CURVES}) == len(CURVES)
    for curve in CURVES:
        assert list(curve.sizes) == sorted(curve.sizes)
        if curve.over == "d":
            found = curve.point(curve.sizes[0])
            assert found["size"] == curve.sizes[0]
            assert found["seconds"] > 0
