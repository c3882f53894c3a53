"""What `frenet probe` advises: its sentences, and the same from Python."""

import json
import math
from dataclasses import replace

import pytest
import torch

import frenet
from frenet.experiments import described
from frenet.experiments.direction_scale import EXPERIMENT, PROBE, STUDY
from frenet.experiments.direction_scale.advised import JUDGE, OWN, RANDOM, checks, sentences
from frenet.experiments.setup.check import check_row, check_sentence
from frenet.geometry.rng import generator
from frenet.measure.damage import fixed_loss
from frenet.network.adapters import attach_lora
from network.models import tiny_llama, tiny_tokenizer

KEYS = {"seed": 0, "space": "lora", "task": "t", "direction": "ad"}
FEW = {"eval_size": 8, "scales": (0.5, 1.0, 2.0), "n": 2, "batch_size": 4}


def rows_of(*, advised, best, helps_not=3.0, least=0.5, helps_from=0.5, edge=False, why="because"):
    """Rows of one direction whose loss is 4 without it and 1 at every coefficient."""
    advice = {
        "table": "advice", **KEYS, "advised": advised, "usual": 1.0, "why": why, "best": best,
        "over_usual": 0.2, "over_usual_low": 0.1, "over_usual_high": 0.3, "none": 0.0,
        "helps_from": helps_from, "helps_to": 2.0, "helps_not": helps_not, "least": least,
        "most": 4.0, "edge": edge, "select_rows": 8, "test_rows": 9, "other": "neutral text",
    }  # fmt: skip
    losses = {
        "loss": 1.0, "loss_low": 0.9, "loss_high": 1.1, "without": 4.0, "gain": 3.0,
        "gain_low": 2.9, "gain_high": 3.1, "none": 0.0,
    }  # fmt: skip
    at = {"table": "coefficient", **KEYS, **losses, "examples": JUDGE}
    random = {**at, "change": RANDOM, "loss": 4.1}
    scales = {best, advised} - {None}
    return [
        advice, *({**at, "change": OWN, "scale": scale} for scale in scales),
        *({**random, "scale": scale} for scale in scales),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"advised": 1.5, "best": 1.5},
            "best at 1.5 x (loss 4 -> 1 [0.9, 1.1] on 9 test rows, 4.1 with a random change of "
            "equal norm; 0.2 [0.1, 0.3] lower than at 1 x); better than nothing up to 2 x "
            "(not shown at 3 x)",
        ),
        (
            {"advised": 1.0, "best": 1.0, "helps_not": None},
            "best at 1 x (loss 4 -> 1 [0.9, 1.1] on 9 test rows, 4.1 with a random change of equal "
            "norm); better than nothing at least up to 2 x",
        ),
        (
            {"advised": 1.0, "best": 1.2, "helps_from": 0.75},
            "leave it at 1 x (loss 4 -> 1 [0.9, 1.1] on 9 test rows, 4.1 with a random change of "
            "equal norm; 1.2 x, the best of other rows, is not shown to be better: by 0.2 [0.1, "
            "0.3]); better than nothing from 0.75 x up to 2 x (not shown at 3 x)",
        ),
        (
            {"advised": None, "best": 0.5, "why": "it harms"},
            "no advice: it harms (loss 4 -> 1 [0.9, 1.1] on 9 test rows at 0.5 x, a gain of 3 "
            "[2.9, 3.1])",
        ),
    ],
)
def test_the_advice_is_one_sentence(given, words):
    (answer,) = sentences(rows_of(**given))
    assert (answer.subject, answer.sentence) == ("ad", words)


def test_the_edge_of_what_was_tried_is_said():
    (answer,) = sentences(rows_of(advised=4.0, best=4.0, helps_not=None, edge=True))
    end = "the best is the largest that was tried: pass --scales with larger ones"
    assert answer.sentence.endswith(end)


def test_tables_and_figures_are_declared_with_references():
    """As for every experiment, whose contract the probe does not share: it has no presets."""
    assert described()["probe"] is STUDY
    assert set(EXPERIMENT.tables) < set(STUDY.tables)
    for columns in STUDY.tables.values():
        roles = {column.name: column.role for column in columns}
        assert len(roles) == len(columns)
        for column in columns:
            if column.role == "measure":
                assert roles[column.beside] in ("reference", "measure")
    assert {figure.table for figure in STUDY.figures} <= set(STUDY.tables)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A tiny model, an adapter trained on a task, and its change of the weights."""
    folder = tmp_path_factory.mktemp("advice")
    tiny_llama().save_pretrained(folder / "model")
    tiny_tokenizer(" y", " n").save_pretrained(folder / "model")
    rows = [{"prompt": f"what is {i}?", "completion": f" {'yn'[i % 2]}"} for i in range(80)]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    loaded = frenet.load(folder / "model")
    tasks = frenet.text_tasks(folder / "t.jsonl", loaded.tokenizer, max_length=64)
    task = replace(tasks["t"], whole=True)
    tuned = attach_lora(tiny_llama(), rank=2)
    training = frenet.Training("adamw:2e-2", batch_size=8, steps=25)
    path = frenet.train_and_record(tuned, task, training, space=frenet.ParamSpace.select(tuned))
    path.space.write(tuned, path.theta(25))
    tuned.save_pretrained(folder / "adapter")
    return loaded.model, task, folder


def test_python_gives_the_advice_the_radius_and_the_lifetime(case):
    model, task, folder = case
    before = {name: p.clone() for name, p in model.named_parameters()}
    vector = frenet.TaskVector.from_adapter(folder / "adapter", base=model)
    said = []
    found = frenet.probe(
        model, task, {"own": vector, "stored": folder / "adapter"}, lags=[1, 2], ranks=True,
        say=said.append, **FEW,
    )  # fmt: skip
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert list(found) == ["own", "stored"]
    own, stored = found["own"], found["stored"]
    assert own.best.selected == stored.best.selected
    with vector.applied(model, 2.0):
        at_two = fixed_loss(model, task, size=8)
    tried = {one.scale: one.loss.value for one in own.best.curve}
    assert tried[2.0] == pytest.approx(at_two, rel=0.3)  # fixed_loss draws other rows
    assert own.best.scale is not None
    assert own.best.usual.helps
    assert own.radius.low <= own.radius.value <= own.radius.high
    assert own.lifetime is None or own.lifetime.low <= 2
    assert set(own.ranks.ranks) == set(vector.shapes)
    assert [one.scale for one in own.cost] == sorted({1.0, 2.0, own.best.scale})
    assert {one.without for one in own.cost} == {own.cost[0].without}
    assert said[0].startswith(f"check: {found.check.split(' with own')[0]} with own")
    assert found.check == checks(found.rows)[0].sentence
    html = found._repr_html_() + own._repr_html_() + own.best._repr_html_()
    assert "compare with" in html
    assert "no advice" not in repr(own)


def test_a_task_with_fewer_rows_than_asked_for_is_measured_on_all_of_them(case):
    model, task, folder = case
    few = FEW | {"eval_size": 64}
    found = frenet.probe(model, replace(task, whole=False), {"own": folder / "adapter"}, **few)
    assert f"on {len(task.examples['test'])} test rows" in found["own"].answers[0]


def test_a_negated_adapter_has_no_advice(case):
    """Back from the end of a training, where every step loses what was learned."""
    model, task, folder = case
    vector = frenet.TaskVector.from_adapter(folder / "adapter", base=model)
    with vector.applied(model):
        found = frenet.probe(model, task, {"negated": -vector}, ranks=True, **FEW)["negated"]
    assert found.best.scale is None
    assert found.answers[0].startswith("no advice: ")
    assert found.ranks.weights == ()
    assert any(answer.startswith("no advice about ranks") for answer in found.answers)


def test_a_vector_without_a_low_rank_is_probed_without_ranks(case):
    model, task, _ = case
    name = "model.layers.0.mlp.up_proj.weight"
    shape = tuple(model.get_parameter(name).shape)
    draw = 0.1 * torch.randn(shape, generator=generator(0, "full"))
    vector = frenet.TaskVector({name: shape}, lambda _: draw, "tuned")
    found = frenet.probe(model, task, {"tuned": vector}, ranks=True, **FEW)
    assert found["tuned"].ranks is None
    assert any("tuned: no ranks: tuned has no low-rank form" in text for text in found.notes)


@pytest.mark.parametrize(
    ("directions", "settings", "words"),
    [
        ({}, {}, "there is no direction to probe"),
        ({"gradient": "x"}, {}, "the name 'gradient' is that of a kind of direction"),
        ({"a": "x"}, {"rates": 1}, "there is no setting 'rates'; there are scales"),
        ({"a": "x"}, {"scales": (2.0,)}, "with 1 among them"),
        ({"a": "x"}, {"share": 1.5}, "share=1.5; pass a number between 0 and 1"),
        ({"a": "x"}, {"eval_size": 1}, "eval_size=1; pass at least 2"),
    ],
)
def test_mistakes_in_python_are_named(case, directions, settings, words):
    model, task, _ = case
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        frenet.probe(model, task, directions, **settings)


def test_a_direction_that_is_not_there_is_named(case):
    model, task, _ = case
    with pytest.raises(FileNotFoundError, match="there is no adapter, checkpoint or task vector"):
        frenet.probe(model, task, {"a": "nowhere"})


def test_a_lifetime_is_that_of_the_shares_of_the_gradient(case):
    model, task, folder = case
    before = {name: p.clone() for name, p in model.named_parameters()}
    vector = frenet.TaskVector.from_adapter(folder / "adapter", base=model)
    training = frenet.Training("adam:1e-2", batch_size=8, steps=1)
    life = frenet.lifetime(model, task, vector, steps=6, training=training, n=2)
    assert life is None or (life.longest, life.steps.low <= 6) == (6, True)
    space = frenet.ParamSpace.select(model)
    gradient = frenet.gradient(model, task, next(task.batches("train", 8, 0)), space=space)
    own = frenet.lifetime(model, task, gradient, steps=6, training=training, n=2)
    assert own.longest == 6
    # A direction that no gradient has: the embedding of a token that never occurs.
    outside = torch.zeros(space.dim)
    part = space.unflatten(outside)["model.embed_tokens.weight"]
    part[-1] = 1.0
    assert frenet.lifetime(model, task, outside, steps=1, training=training, n=2) is None
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    with pytest.raises(ValueError, match="pass lags from 1 to the number of steps"):
        frenet.lifetime(model, task, vector, steps=2, lags=[3])


def test_a_radius_has_defaults(case):
    model, task, folder = case
    vector = frenet.TaskVector.from_adapter(folder / "adapter", base=model)
    batch, space = next(task.batches("test", 8, 0)), vector.space(model)
    with frenet.loss_line(model, task, batch, vector.read, space=space) as line:
        found = frenet.radius(line)
        assert line.length == pytest.approx(vector.norm(), rel=1e-6)
        assert found.limit == pytest.approx(max(space.norm(model), 4 * vector.norm()))
        assert frenet.radius(line, limit=found.limit / 2).limit == found.limit / 2
        again = frenet.radius(line, start=0.1, limit=1.0, generator=generator(0, "radius"))
        assert again.limit == 1.0
    bare = line._replace(size=None)
    with pytest.raises(ValueError, match="pass start and limit, two distances"):
        frenet.radius(bare)


def test_a_saved_vector_is_the_same_direction(case, tmp_path):
    model, _, folder = case
    vector = frenet.TaskVector.from_adapter(folder / "adapter", base=model)
    again = frenet.load_task_vector(vector.save(tmp_path / "v.safetensors"))
    assert again.cosine(vector) == pytest.approx(1.0)
    assert again.norm() == pytest.approx(vector.norm())


def test_the_check_shows_what_is_scored(case):
    _, task, _ = case
    row = check_row(task)
    first = task.examples["test"][0]
    assert row["prompt"] == first.prompt
    assert row["scored"] == len(first.encoded.target)
    long = first._replace(prompt="head " * 20 + "\x1b the\nend")
    cut = check_row(replace(task, examples={"test": (long,)}))
    assert len(cut["prompt"]) < 90
    assert cut["prompt"].startswith("head head")
    assert cut["prompt"].endswith("\\x1b the\\nend")
    said = check_sentence({**row, "rows": 6}, [("without", math.pi)])
    assert said.startswith(f'reads "{first.prompt}" -> "{first.completion}" (scored: ')
    assert said.endswith("; loss 3.14 without on 6 test rows")


def test_the_command_of_a_probe_is_repeated():
    config = {"model": "./m", "tasks": ["t.jsonl"], "ranks": True, "vectors": ["a"], "share": 0.8}
    assert STUDY.command(config) == (
        "frenet probe --model ./m --tasks t.jsonl --vectors a --ranks --share 0.8"
    )
    assert PROBE.ranks is False
