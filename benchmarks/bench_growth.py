"""How time and memory grow with d and the numbers of gradients, candidates and workers.

    python benchmarks/bench_growth.py [--most 1e8] [--only "top_k_svd ..."]

Every curve is measured in a separate process, from small sizes to large ones. It stops before a
size that would need more than the free memory, judging by the size before. A point has the median
time of a few runs, and the peak memory above that before the inputs were made.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from frenet.experiments import EXPERIMENTS
from frenet.geometry import rng
from frenet.geometry.basis import prefix_basis
from frenet.geometry.energy import half_splits
from frenet.geometry.linalg import top_k_svd
from frenet.measure.gradients import gradient_matrix
from frenet.measure.spectra import NullSpectra, held_out_energy
from frenet.methods.candidates import Candidates, Noise
from frenet.methods.search import Selection, random_search
from frenet.network.memory import free_bytes
from frenet.network.space import ParamSpace
from frenet.network.synthetic.model import SyntheticTask, SyntheticTransformer
from frenet.runs.engine import cells_of, jobs
from frenet.runs.pool import here
from frenet.runs.ray_cells import in_cluster
from frenet.runs.worker import Job, Outcome
from timing import STORIES, Row, adapted, attempted, from_status, high_water, reason
from units import duration, size

Point = dict[str, Any]
# Vectors of a basis, its directions, rows of a batch, seeds of an experiment.
N, K, BATCH, SEEDS = 16, 8, 16, 16
# The largest tensor of a network with displaced weights.
LARGEST_TENSOR = 1_000_000
# A routine that takes longer runs once, without a warm-up.
LONG_S = 4.0
# Largest share of the free memory for a point.
MOST_OF_FREE = 0.75
NOISE = Noise(1e-3)


@dataclass(frozen=True)
class Curve:
    """One cost that grows.

    Attributes:
        name: the routine.
        over: the unit of the size.
        sizes: from small to large.
        expected: expected exponent of the time.
        point: measures one size.
        warm: run the smallest size once before, since the first call also loads code.
    """

    name: str
    over: str
    sizes: tuple[int, ...]
    expected: str
    point: Callable[[int], Point]
    warm: bool = True


def measured(make: Callable[[int], Callable[[], Any]]) -> Callable[[int], Point]:
    """The point of a size: median seconds of its routine, and its peak memory."""

    def point(count: int) -> Point:
        before = from_status("VmRSS")
        routine = make(count)
        seconds: list[float] = []

        def once() -> None:
            start = time.perf_counter()
            routine()
            seconds.append(time.perf_counter() - start)

        peak = high_water(once)
        if seconds[0] < LONG_S:
            seconds.clear()
            for _ in range(3):
                once()
        return {"size": count, "seconds": statistics.median(seconds), "bytes": peak - before}

    return point


def _svd(d: int) -> Callable[[], Any]:
    rows = torch.randn(N, d, generator=rng.generator(0, "bench", "growth"))
    return lambda: top_k_svd(rows, K)


def _prefix(d: int) -> Callable[[], Any]:
    rows = torch.randn(N, d, generator=rng.generator(0, "bench", "growth"))
    return lambda: prefix_basis(rows, N)


def _candidate(d: int) -> Callable[[], Any]:
    sizes = [min(LARGEST_TENSOR, d - start) for start in range(0, d, LARGEST_TENSOR)]
    model = nn.ParameterList(torch.zeros(count) for count in sizes)
    space = ParamSpace.select(model)

    def write_and_restore() -> None:
        with Candidates(model, space, NOISE) as candidates:
            candidates.put(0)

    return write_and_restore


def _gradients(n: int) -> Callable[[], Any]:
    model, task = SyntheticTransformer().eval(), SyntheticTask("reverse")
    space = ParamSpace.select(model)
    return lambda: gradient_matrix(model, task, space=space, n=n, batch_size=BATCH)


def _energy(n: int) -> Callable[[], Any]:
    sizes = ParamSpace.select(SyntheticTransformer()).sizes
    draw = rng.generator(0, "bench", "growth")
    rows, shuffled = (torch.randn(n, sum(sizes), generator=draw) for _ in range(2))
    splits = half_splits(n, 4, draw)

    def energy() -> None:
        null = NullSpectra.draw(rows, sizes, rng.generator(0, "bench", "null"))
        held_out_energy(rows, shuffled, splits=splits, draws=[null], ks=(1, 2, 4))

    return energy


def _search(count: int) -> Callable[[], Any]:
    model, task, space = adapted(STORIES)
    selection = Selection(select_size=4, test_size=64)
    return lambda: random_search(
        model, task, space, noise=NOISE, num_candidates=count, selection=selection
    )


def workers(count: int) -> Point:
    """Time of an experiment's seeds on Ray workers, from the moment when all of them work."""
    torch.set_num_threads(1)
    experiment = EXPERIMENTS["gradient-rank"]
    seeds = replace(experiment.presets["smoke"], seeds=tuple(range(SEEDS)))
    todo = jobs(experiment, seeds, cells_of(experiment, seeds), threads=1)
    # The networks are trained before, and cached.
    for _ in here(deque(job for job in todo if job.stage == "prepare")):
        pass
    work = [job for job in todo if job.stage == "run"]
    alone, _ = _pace(here(deque(work)), 1)
    on_ray = in_cluster(
        deque(work), address=None, workers=count, threads=1, given=True, say=lambda line: None
    )
    seconds, start = _pace(on_ray, count)
    note = (
        f"{duration(alone)} in one process without Ray, the first {count} after {duration(start)}"
    )
    return {"size": count, "seconds": seconds, "bytes": None, "note": note}


def _pace(outcomes: Iterator[tuple[Job, Outcome]], count: int) -> tuple[float, float]:
    """Seconds for all outcomes at the pace after each worker's first one, and until those."""
    arrivals = [time.perf_counter()]
    for job, outcome in outcomes:
        if outcome.failure is not None:
            raise RuntimeError(f"{job.cell.id}: {outcome.failure.error}")
        arrivals.append(time.perf_counter())
    begun, count_done = arrivals[count], len(arrivals) - 1
    return (arrivals[-1] - begun) / (count_done - count) * count_done, begun - arrivals[0]


TO_1E8 = tuple(10**power for power in range(4, 9))
TO_512 = tuple(2**power for power in range(3, 10))
TO_4096 = tuple(4**power for power in range(7))
CURVES = (
    Curve(f"top_k_svd of {N} vectors, k = {K}", "d", TO_1E8, "1", measured(_svd)),
    Curve(f"prefix_basis of {N} steps", "d", TO_1E8, "1", measured(_prefix)),
    Curve("a candidate drawn, written, restored", "d", TO_1E8, "1", measured(_candidate)),
    Curve("gradient_matrix, synthetic", "gradients", TO_512, "1", measured(_gradients)),
    Curve("held-out energy and its nulls, d = 103,680", "gradients", TO_512, "1 to 2",
          measured(_energy)),
    Curve("random_search, stories260K", "candidates", TO_4096, "1", measured(_search)),
    Curve(f"gradient-rank, {SEEDS} seeds on Ray", "workers", (1, 2, 4), "-1 up to the cores",
          workers, warm=False),
)  # fmt: skip


def points(curve: Curve, most: float) -> Iterator[Point]:
    """The points of a curve, and the reason if it stopped early."""
    if curve.warm:
        curve.point(curve.sizes[0])
    per_unit = 0.0
    for count in (count for count in curve.sizes if count <= most):
        needed, free = per_unit * count, free_bytes(torch.device("cpu"))
        if needed > MOST_OF_FREE * free:
            yield {"stopped": f"{count:.0e} needs {size(needed)} and {size(free)} are free"}
            return
        point = curve.point(count)
        per_unit = (point["bytes"] or 0) / count
        yield point


def grown(curve: Curve, most: float) -> Iterator[Row]:
    """The curve, measured in a separate process; if that is killed, its points so far count."""
    command = [sys.executable, __file__, "--curve", curve.name, "--most", str(most)]
    points_so_far: list[Point] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        points_so_far += [json.loads(line) for line in process.stdout if line.startswith("{")]
    stopped = next((point["stopped"] for point in points_so_far if "stopped" in point), None)
    if process.returncode:
        stopped = f"the process ended with status {process.returncode}"
    measured_points = [point for point in points_so_far if "size" in point]
    if not measured_points:
        raise RuntimeError(stopped or f"no size is as small as {most:.0e}")
    yield {
        "name": curve.name,
        "over": curve.over,
        "expected": curve.expected,
        "points": measured_points,
        "stopped": stopped,
    }


def run(most: float = 1e8, only: str = "") -> Iterator[Row]:
    """One row per curve."""
    for curve in CURVES:
        if only in curve.name:
            yield from attempted(curve.name, lambda curve=curve: grown(curve, most))


def main() -> None:
    """Print the curves, or the points of one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=float, default=1e8, help="the largest size")
    parser.add_argument("--only", default="", help="curves with this in their name")
    parser.add_argument("--curve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.curve is None:
        for row in run(options.most, options.only):
            print(json.dumps(row))
        return
    curve = next(curve for curve in CURVES if curve.name == options.curve)
    try:
        for point in points(curve, options.most):
            print(json.dumps(point), flush=True)
    except Exception as error:
        print(json.dumps({"stopped": reason(error)}))


if __name__ == "__main__":
    main()
