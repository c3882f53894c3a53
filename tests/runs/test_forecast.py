"""Forecasts for language models: time follows tokens, passes and tasks."""

import json
from dataclasses import replace

import pytest
import torch

from frenet.experiments.experiment import MODEL, Texts
from frenet.experiments.reproduce import Reproduction, parts
from frenet.experiments.reproduce.costs import Cost
from frenet.experiments.steering_effect import passes as effect_passes
from frenet.experiments.step_vs_vector import passes as step_passes
from frenet.runs import forecast as forecasting
from frenet.runs.forecast import Speed, forecast, network_speed, preparation
from network.models import tiny_llama, tiny_tokenizer

NAMES = ("plural", "past", "reverse", "comparisons")


def part_of(name, network="a/model", **changes):
    (part,) = parts(Reproduction(networks=(network,), experiments=(name,)), "cpu")
    return part._replace(config=replace(part.config, **changes))


def reading(part, tokens, *, rows=600, longest=0, step=0.0):
    """A network that takes 0.01 s for every token, and texts of these mean lengths by name."""
    texts = {name: Texts(rows, each, longest or round(each)) for name, each in tokens.items()}
    return Speed(step, 100.0, 0.01, 0.5, {part.experiment.name: texts})


@pytest.fixture
def forecast_of(tmp_path, monkeypatch):
    """The forecast of a part if this is the cost of a cell."""

    def found(part, speed, cost):
        key = MODEL, "cpu", part.experiment.name
        monkeypatch.setattr(forecasting, "stored", lambda: {key: cost})
        return forecast(part, "cpu", speed, folder=tmp_path / "none")

    return found


@pytest.mark.parametrize(
    ("name", "passes"), [("gradient-rank", 2), ("recovery-basis", 1), ("step-vs-vector", 2064)]
)
def test_a_cost_of_the_same_texts_gives_itself_and_twice_the_tokens_twice_the_time(
    name, passes, forecast_of
):
    part, cost = part_of(name), Cost(100, 600, passes=passes, tokens=22.0)
    cells = len(part.experiment.cells(part.config))
    tokens = dict.fromkeys(NAMES[:2] if "rank" in name else NAMES[-1:], 22.0)
    tokens |= {"plural": 22.0} if name == "recovery-basis" else {}
    found = forecast_of(part, reading(part, tokens), cost)
    assert found.seconds == pytest.approx(cells * 100 * 22 * 0.01)
    twice = forecast_of(part, reading(part, {n: 2 * t for n, t in tokens.items()}), cost)
    assert twice.seconds == pytest.approx(2 * found.seconds)
    # What a step takes without its tokens does not double.
    fixed = forecast_of(part, reading(part, tokens, step=0.3), cost)
    assert fixed.seconds - found.seconds == pytest.approx(cells * 100 * 0.3)


def test_tasks_of_one_cell_count_together_and_those_of_several_each_in_its_own(forecast_of):
    tokens = dict(zip(NAMES[:3], (10.0, 20.0, 60.0), strict=True))
    together, apart = (
        part_of(name, only=NAMES[:3]) for name in ("gradient-rank", "recovery-basis")
    )
    cost = Cost(100, 600, passes=2, tokens=10.0)
    found = forecast_of(together, reading(together, tokens), cost)
    cells = len(together.experiment.cells(together.config))
    assert found.seconds == pytest.approx(cells * 100 * (0.1 + 0.2 + 0.6) / 2)
    found = forecast_of(apart, reading(apart, tokens), cost._replace(passes=1))
    each = len(apart.experiment.cells(apart.config)) / 3
    assert found.seconds == pytest.approx(each * 100 * (0.1 + 0.2 + 0.6))


def test_the_passes_of_step_vs_vector_are_those_of_its_settings():
    config, texts = part_of("step-vs-vector").config, Texts(600, 22.0, 22)
    # 144 prompts choose; 96 are reported, twice; the gradients of 48, and of 10 groups for 24.
    assert step_passes(config, texts) == 144 + 2 * 96 + 2 * 3 * (48 + 10 * 24) == 2064
    assert step_passes(replace(config, groups=20), texts) == 2064 + 2 * 3 * 10 * 24
    assert step_passes(replace(config, shuffles=9, halves=2), texts) == 2064
    assert step_passes(config, texts._replace(rows=6000)) == 2064
    # With 90 prompts: 30 choose, 20 in each tested part.
    assert step_passes(config, texts._replace(rows=90)) == 30 + 2 * 20 + 2 * 3 * (10 + 10 * 10)


def test_vectors_at_doses_take_a_token_of_each_prompt():
    config, texts = part_of("steering-effect").config, Texts(600, 22.0, 22)
    read = 144 + 3 * 96 + 3 * 48 + 3 * (48 + 10 * 24)
    vectors = 2 * 4 * (2 + 3 * 4) * 96
    assert effect_passes(config, texts) == pytest.approx(read + vectors / 22)
    assert effect_passes(config, texts._replace(tokens=44.0)) == pytest.approx(read + vectors / 44)
    more = replace(config, draws=8)
    assert effect_passes(more, texts) == pytest.approx(read + vectors * 26 / 14 / 22)


def test_longer_texts_need_the_memory_of_their_minibatches(forecast_of):
    cost = Cost(100, 600, weights=2.5, passes=1, tokens=10.0)
    part = part_of("recovery-basis")
    rows = max(part.config.learn_batch, part.config.batch_size)
    same = forecast_of(part, reading(part, {"plural": 9.0}, longest=10), cost)
    assert same.mib == 600 + 2.5 * 100
    longer = forecast_of(part, reading(part, {"plural": 9.0}, longest=50), cost)
    assert longer.mib == pytest.approx(same.mib + 0.5 * 40 * rows / 8)
    steering = part_of("step-vs-vector")
    found = forecast_of(steering, reading(steering, {"comparisons": 50.0}, longest=90), cost)
    assert found.mib == same.mib


def test_the_training_on_the_tasks_follows_their_length():
    part = part_of("gradient-rank")
    short, long = (reading(part, {"plural": t, "past": 3 * t}) for t in (10.0, 20.0))
    steps = len(part.config.seeds) * part.config.learn_steps
    assert preparation(part, short) == pytest.approx(steps * 20 * 0.01)
    assert preparation(part, long) == pytest.approx(2 * preparation(part, short))


def test_a_step_keeps_its_input_and_its_output_but_not_its_weights():
    model = torch.nn.Linear(4, 3, bias=False)
    rows = torch.zeros(6, 4, requires_grad=True)
    kept = forecasting._kept_mib(model, lambda: model(rows).square().sum())
    assert kept * 2**20 == 4 * (6 * 4 + 6 * 3)


def test_the_texts_of_a_language_model_are_read_and_timed(tmp_path, monkeypatch):
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer(" y", " n").save_pretrained(tmp_path / "model")
    task = [{"prompt": "abcdefghij"[: 1 + i % 5] + "?", "completion": f" {i}"} for i in range(10)]
    asked = [{"prompt": f"is it {10 + i}?", "label": "yn"[i % 2]} for i in range(48)]
    for name, rows in (("task", task), ("asked", asked)):
        text = "\n".join(json.dumps(row) for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    wanted = Reproduction(
        networks=(str(tmp_path / "model"),),
        tasks=(str(tmp_path / "task.jsonl"),),
        statements=(str(tmp_path / "asked.jsonl"),),
        experiments=("recovery-basis", "step-vs-vector"),
    )
    monkeypatch.setattr(forecasting, "_seconds", lambda model, loss: 0.1 * float(loss() > 0))
    speed = network_speed(parts(wanted, "cpu"))
    (task_texts,) = speed.texts["recovery-basis"].values()
    (asked_texts,) = speed.texts["step-vs-vector"].values()
    # A character is a token, and so is an answer.
    assert (asked_texts.rows, asked_texts.tokens, asked_texts.longest) == (48, 10, 10)
    assert (task_texts.rows, task_texts.longest) == (10, 8)
    assert 6 < task_texts.tokens <= 8  # a minibatch is as wide as its longest row
    assert speed.at(5.0) == pytest.approx(0.1)
    assert speed.kept_mib > 0
