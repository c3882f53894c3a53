"""What a probe of one adapter costs: forward passes, memory, and the memory of a plan.

    python benchmarks/bench_probe.py [--model FILE]

Passes are counted by rows: several passes of a few rows each are one pass of all. Memory is the
peak of a separate process above that of one that has only imported everything, over the weights.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from frenet.experiments.direction_scale import PROBE
from frenet.geometry import rng
from frenet.measure.displaced import DisplacedLosses, moving
from frenet.measure.loss_line import loss_line
from frenet.methods.coefficient import best_coefficient
from frenet.methods.linear_range import looked_between, radius
from frenet.methods.local_model import Effort, survey
from frenet.methods.plan import plan
from frenet.methods.search import Selection
from frenet.methods.task_vectors import TaskVector, from_step
from frenet.network.space import ParamSpace
from frenet.network.tasks import Batch
from timing import (
    STORIES,
    RandomTokens,
    Row,
    adapted,
    alone,
    attempted,
    from_status,
    model_name,
    show,
    with_adapter,
)

ROWS, BUDGET = 32, 64
# Parameters of a model beside whose weights the libraries and a few activations are small.
LARGE = 50_000_000
# Of the shape of Llama 3.2 1B. A probe moves the weights themselves, in steps below the rounding of
# bf16; a plan moves the adapter's.
BILLION = {
    "probe": "random Llama of 1.2 billion weights, float32",
    "plan": "random Llama of 1.2 billion weights, bf16",
}


def probed(model: nn.Module, task: RandomTokens, batch: Batch, vector: TaskVector) -> list[float]:
    """Passes for slopes, curvature and their check, and for both radii with their intervals."""
    passes = [0.0]

    def count(_module: nn.Module, _inputs: Any, output: Any) -> None:
        passes[-1] += len(output.logits) / len(batch["labels"])

    space, length = vector.space(model), vector.norm()
    size = space.norm(model)
    handle = model.register_forward_hook(count)
    with loss_line(model, task, batch, vector.read, space=space) as line:
        passes.append(0.0)
        start, limit = looked_between(line, size, length=length, eps=0.2)
        for sign in (1, -1):
            radius(line, start=start, limit=limit, sign=sign, generator=rng.generator(0, "bench"))
    handle.remove()
    return passes


def advised(model: nn.Module, task: RandomTokens, rows: int, vector: TaskVector) -> int:
    """Passes for the advised coefficient, on the examples to choose on and on those that judge."""
    batches = {split: next(task.batches(split, rows, 0)) for split in ("select", "test")}
    with moving(model, {"v": vector.read}, space=vector.space(model)) as mover:
        losses = DisplacedLosses(mover, batches)
        curves = (losses.curve(split, "v") for split in batches)
        best_coefficient(*curves, scales=PROBE.scales)
    return losses.passes


def subject(source: str) -> tuple[nn.Module, RandomTokens, ParamSpace, TaskVector]:
    """A model with an adapter on queries and values, and the change of its weights by a step."""
    made = source in BILLION.values()
    model, task, space = with_adapter(billion(source)) if made else adapted(source)
    step = 0.02 * torch.randn(space.dim, generator=rng.generator(1, "bench"))
    return model, task, space, from_step(model, step, space=space)


def billion(name: str) -> nn.Module:
    """A random network of 1.2 billion weights."""
    dtype = torch.bfloat16 if name == BILLION["plan"] else torch.float32
    config = LlamaConfig(
        vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
        num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM._from_config(config, dtype=dtype).eval()


def inside(what: str, source: str, rows: int) -> dict[str, float]:
    """Peak of this process above the import, in bytes, and of the weights."""
    before = from_status("VmRSS")
    model, task, space, vector = subject(source)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    if what == "probe":
        probed(model, task, next(task.batches("test", rows, 0)), vector)
    else:
        chosen = Selection(select_size=rows)
        effort = Effort.within(BUDGET)
        plan(survey(model, task, space, selection=chosen, effort=effort), budget=BUDGET)
    return {"peak": from_status("VmHWM") - before, "weights": weights}


def run(source: str | Path = STORIES, rows: int = ROWS) -> Iterator[Row]:
    """Passes of a probe, and on a large model the memory of a probe and of a plan."""
    model, task, _, vector = subject(str(source))
    batch = next(task.batches("test", rows, 0))
    derivatives, passes = probed(model, task, batch, vector)
    tokens = f"{task.context + task.target} tokens"
    yield {
        "name": "forward passes for how far an adapter goes, with intervals",
        "model": model_name(source),
        "ratio": passes,
        "aim": "at most 24",
        "detail": f"{rows} x {tokens}; beside one pass for slopes and curvature, and "
        f"{derivatives - 1:.3g} for the check of the derivatives",
    }
    yield {
        "name": "forward passes for the advised coefficient, with intervals",
        "model": model_name(source),
        "ratio": advised(model, task, rows, vector),
        "aim": "",
        "detail": f"{len(PROBE.scales)} coefficients on {rows} rows to choose and {rows} to judge, "
        f"of {tokens}",
    }
    if sum(p.numel() for p in model.parameters()) >= LARGE:
        yield memory("probe", str(source), rows)
        yield memory("plan", str(source), 16)
    if source == STORIES:
        for what, name in BILLION.items():
            yield from attempted(
                "memory", lambda what=what, name=name: [memory(what, name, 4)], model=name
            )


def memory(what: str, source: str, rows: int) -> Row:
    """The peak of a probe or of a plan on this many rows, in a process of its own."""
    found = alone(__file__, "--inside", what, "--model", source, "--rows", rows)
    return {
        "name": f"peak memory of a {what}, against the weights",
        "model": model_name(source),
        "ratio": found["peak"] / found["weights"],
        "aim": {"probe": "at most 3", "plan": "at most 4"}[what],
        "detail": f"{found['peak'] / 2**20:.0f} MiB above the import for weights of "
        f"{found['weights'] / 2**20:.0f} MiB; {rows} x 32 tokens",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(STORIES))
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--inside", choices=("probe", "plan"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.inside:
        print(json.dumps(inside(chosen.inside, chosen.model, chosen.rows)))
    else:
        show(run(chosen.model, chosen.rows))
