"""`frenet probe` as a person uses it, on a tiny model with an adapter beside it."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import frenet
from frenet.cli import main
from frenet.experiments.direction_scale.answers import sentences
from frenet.experiments.direction_scale.directions import Spot
from frenet.experiments.direction_scale.measure import lifetime_rows
from frenet.experiments.experiment import Cell
from frenet.geometry.rng import generator
from frenet.integrations.recording import Recording
from frenet.measure.trajectory import Trajectory
from frenet.measure.trajectory_files import read_steps
from frenet.methods.steering_vector import SteeringVector, save_vector
from frenet.methods.task_vectors import from_adapter
from frenet.network.adapters import attach_lora, quiet_peft
from frenet.runs import RunFolder
from frenet.runs.header import Header
from network.models import tiny_llama, tiny_tokenizer

SPACE = frenet.ParamSpace(("w",), ((1,),))
FEW = (
    "--lags", "1", "2", "--n", "2", "--batch-size", "4", "--eval-size", "8", "--k", "1",
    "--prompts", "4", "--threads", "1", "--quiet",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder, a task, statements, and an adapter."""
    path = tmp_path_factory.mktemp("probe")
    tiny_llama().save_pretrained(path / "model")
    tiny_tokenizer(" y", " n").save_pretrained(path / "model")
    task = [{"prompt": f"what is {i}?", "completion": f" {i * 7 % 10}"} for i in range(120)]
    statements = [{"prompt": f"is it {i}?", "label": "yn"[i % 2]} for i in range(32)]
    for name, rows in (("task", task), ("statements", statements)):
        text = "\n".join(json.dumps(row) for row in rows)
        (path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    model = attach_lora(tiny_llama(), rank=2)
    draw = generator(0, "adapter")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(0.1 * torch.randn(p.shape, generator=draw))
    model.save_pretrained(path / "adapter")
    return path, from_adapter(model).norm()


def probe(folder, *args):
    source = ("--model", folder / "model", "--tasks", folder / "task.jsonl")
    return main(["probe", *map(str, (*source, *FEW, *args))])


def test_one_line_for_each_direction(folder, capsys):
    path, norm = folder
    given = (
        "--vectors", path / "adapter", "--contrasts", path / "statements.jsonl",
        "--directions", "gradient", "prefix", "task vector", "steering", "--out", path / "out",
    )  # fmt: skip
    assert probe(path, *given, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    found = {result["direction"]: result for result in told["directions"]}
    assert {"gradient", "prefix", "task vector", "adapter", "steering"} <= set(found)
    adapter = found["adapter"]
    assert adapter["along"]["length"] == pytest.approx(norm, rel=1e-5)
    assert adapter["along"]["times"] == pytest.approx(adapter["along"]["radius"] / norm, rel=1e-5)
    assert adapter["along"]["low"] <= adapter["along"]["radius"]
    assert adapter["lifetime"]["longest"] == 2
    assert {"steps", "steps_low", "steps_high", "distance_low"} < set(adapter["lifetime"])
    assert (path / "out" / "report.html").exists()
    assert probe(path, *given) == 0  # the finished run is read again
    said = capsys.readouterr().out
    assert said.startswith('check: reads "what is ')
    assert "; loss is linear within 20%" in said.split("adapter: ")[1].split("\n")[0]
    assert "steering: log-odds are linear within 20%" in said
    assert said.count("of its own length") >= 3


def test_an_adapter_is_answered_without_a_training_and_with_its_chance(folder, capsys, monkeypatch):
    """The cost comes first, on standard error; the numbers are those of a run with a training."""
    path, norm = folder
    whole = ("--vectors", path / "adapter", "--json")
    assert probe(path, *whole, "--out", path / "with") == 0
    lasting = {r["direction"]: r for r in json.loads(capsys.readouterr().out)["directions"]}
    monkeypatch.delattr("frenet.experiments.direction_scale.measure.train_and_record")
    monkeypatch.delattr("frenet.experiments.direction_scale.measure.watch_training")
    loud = tuple(arg for arg in FEW if arg != "--quiet")
    monkeypatch.setitem(globals(), "FEW", loud)
    assert probe(path, *whole, "--lags", "0", "--out", path / "far") == 0
    told = capsys.readouterr()
    found = {r["direction"]: r for r in json.loads(told.out)["directions"]}
    assert list(found) == list(lasting) == ["adapter", "random like adapter"]
    assert "how far: 2 directions, each about 24 forward passes of 8 examples; up to" in told.err
    for name, one in found.items():
        assert one["lifetime"] is None
        assert "lifetime" not in one["sentence"]
        assert one["along"] == lasting[name]["along"]
        assert one["along"]["length"] == pytest.approx(norm, rel=1e-5)
        assert lasting[name]["lifetime"]["longest"] == 2


def test_how_far_is_told_before_how_long_is_measured(folder, capsys, monkeypatch):
    path, _ = folder
    monkeypatch.setitem(globals(), "FEW", tuple(arg for arg in FEW if arg != "--quiet"))
    given = ("--vectors", path / "adapter", "--out", path / "told")
    assert probe(path, *given) == 0
    said = capsys.readouterr()
    far = said.err.index("adapter: loss is linear within 20%")
    assert said.err.index("check: reads ") < said.err.index("coefficients of adapter: about") < far
    assert far < said.err.index("how long: 2 training steps of 4 rows, and 6 gradients of as many")
    assert "lifetime" not in said.err.split("how long")[0]
    assert "lifetime" in said.out


def test_failed_cells_run_again_on_request_with_all_processors(folder, tmp_path, monkeypatch):
    """The remedy that is named for a run with failures."""
    path, _ = folder
    asked = []

    def fails(experiment, config, out, **options):
        asked.append((options["threads"], options["retry_failed"]))
        raise FloatingPointError("for now")

    monkeypatch.setattr("frenet.runs.run_experiment", fails)
    monkeypatch.setattr("frenet.runs.machine.cpu_count", lambda: 7)
    monkeypatch.setitem(globals(), "FEW", ())
    for begun, flags in ((False, ()), (False, ("--threads", "0")), (True, ("--retry-failed",))):
        if begun:
            with RunFolder(tmp_path, Header("direction-scale", {}, [], {}, 2, {})):
                pass
        assert probe(path, *flags, "--out", tmp_path) == 1
    assert asked == [(7, False), (0, False), (2, True)]


def test_directions_of_one_name_stay_apart(folder, capsys, tmp_path):
    """Two folders called adapter, the second twice the first: neither stands for the other."""
    path, norm = folder
    twice = tmp_path / "adapter"
    shutil.copytree(path / "adapter", twice)
    file = twice / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({n: t * (2 if "lora_B" in n else 1) for n, t in tensors.items()}, file)
    given = ("--vectors", path / "adapter", twice, "--directions", "random", "--json")
    assert probe(path, *given, "--out", tmp_path / "out") == 0
    found = {r["direction"]: r for r in json.loads(capsys.readouterr().out)["directions"]}
    lengths = [found[str(p)]["along"]["length"] for p in (path / "adapter", twice)]
    assert lengths == pytest.approx([norm, 2 * norm], rel=1e-5)


def test_advice_on_adapters_of_both_kinds_with_ranks_and_other_text(folder, capsys, tmp_path):
    """DoRA has coefficients and no radius; an adapter of rank 2 has ranks, too."""
    path, _ = folder
    config = LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)
    with quiet_peft():
        bent = get_peft_model(tiny_llama(), config)
    with torch.no_grad():
        for name, p in bent.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn(p.shape, generator=generator(0, "bent")))
    bent.save_pretrained(tmp_path / "bent")
    lines = [{"text": f"the river number {i} runs to the sea"} for i in range(12)]
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    given = ("--vectors", path / "adapter", tmp_path / "bent", "--lags", "0", "--ranks")
    given = (*given, "--neutral", other, "--scales", "0.5", "1", "2", "--out", tmp_path / "out")
    assert probe(path, *given, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    found = {result["direction"]: result for result in told["directions"]}
    assert list(found) == ["bent", "adapter", "random like adapter"]
    assert {row["direction"] for row in told["check"]} == {"adapter", "bent"}
    for name in ("adapter", "bent"):
        one = found[name]
        assert one["advice"]["best"] > 0
        assert {row["examples"] for row in one["coefficients"]} == {"select", "test", "other text"}
        assert one["sentence"].split(": ")[1].split(" ")[0] in ("best", "leave", "no")
        assert any(text.startswith(f"on {other}: loss ") for text in one["more"])
    assert "along" not in found["bent"]
    assert any("bent: a DoRA adapter" in note for note in told["notes"])
    ranks = found["adapter"]["held"]
    assert ranks
    assert not found["bent"]["held"]
    assert {row["whole"] for row in found["adapter"]["ranks"]} <= {2}
    assert found["random like adapter"]["advice"] is None


def life(name, values, *, dim=100):
    """The row of a direction's lifetime, and its sentence, where it has no radius."""
    cell = Cell.of(seed=0, space="lora", task="t")
    spot = Spot(None, cell, None, None, None)
    path = Trajectory(torch.zeros(1), torch.ones(9, 1), torch.zeros(9), None, SPACE)
    rows = list(lifetime_rows(spot, {name: values}, path, {name: dim}, {}, {name: "weights"}))
    (answer,) = sentences(rows)
    return next(r for r in rows if r["table"] == "lifetime"), answer.sentence


@pytest.mark.parametrize(
    ("name", "values", "has_share", "ends", "words"),
    [
        ("steering", {0: -0.1, 9: -0.1}, False, None, "no lifetime: a vector made from other"),
        ("steering", {0: 0.19, 9: 0.0}, False, None, "made from other prompts"),
        ("steering", {0: 0.8, 8: 0.0}, True, (None, 0, 8), "lifetime at most 8 steps"),
        ("adapter", {0: 0.09, 9: 0.0}, False, None, "less of the gradient than 10 times chance"),
        ("adapter", {0: 0.2, 8: 0.2}, True, (None, 8, None), "lifetime more than 8 steps"),
        (
            "adapter",
            {0: 0.2, 4: 0.15, 5: 0.05},
            True,
            (4.5, 4, 5),
            "lifetime about 4.5 steps (between 4",
        ),
        ("gradient", {0: 0.0, 5: 0.0}, False, None, "no lifetime"),
    ],
)
def test_nothing_to_lose_is_not_called_fresh(unchecked, name, values, has_share, ends, words):
    """Of a direction without a radius there is a line too."""
    row, sentence = life(name, values)
    found = tuple(row[end] for end in ("steps", "steps_low", "steps_high"))
    assert (row["has_share"], found) == (has_share, ends or (None, None, None))
    assert row["longest"] == max(values)
    assert words in sentence
    assert "no radius: its slope cannot be distinguished from rounding" in sentence


def test_a_recorded_training_and_a_vector_from_a_file(folder, capsys, tmp_path):
    """The lifetime is that of the user's own training, the steering vector the one handed over."""
    path, _ = folder
    loaded = frenet.load(path / "model")
    model = frenet.attach_lora(loaded.model, rank=4, seed=0)
    space = frenet.ParamSpace.select(model)
    recording = Recording(tmp_path / "trajectory", space, gradients=False)
    recording.begin(space.read(model))
    draw = generator(0, "steps")
    for _ in range(3):
        recording.add(torch.randn(space.dim, generator=draw), zeros=0, gradient=None)
    recording.flush()
    v = torch.randn(16, generator=draw)
    save_vector(SteeringVector({1: v}, "by hand"), tmp_path / "v.safetensors")
    given = (
        "--trajectory", tmp_path, "--contrasts", path / "statements.jsonl",
        "--steering", tmp_path / "v.safetensors", "--json",
    )  # fmt: skip
    assert probe(path, *given, "--out", tmp_path / "out") == 0
    found = {r["direction"]: r for r in json.loads(capsys.readouterr().out)["directions"]}
    assert found["steering"]["along"]["length"] == pytest.approx(float(v.norm()), rel=1e-5)
    recorded = read_steps(tmp_path)
    steps = recorded.steps
    with torch.no_grad():  # the network at the end of the training, as PEFT adds it up
        space.write(model, recorded.theta(3))
        added = [m.get_delta_weight("default") for m in model.modules() if hasattr(m, "lora_A")]
    whole = float(torch.cat([change.reshape(-1) for change in added]).norm())
    assert found["task vector"]["along"]["length"] == pytest.approx(whole, rel=1e-5)
    assert found["task vector"]["along"]["coordinates"] == "weights"
    assert found["gradient"]["along"]["coordinates"] == "factors"
    assert found["task vector"]["lifetime"]["farthest"] == pytest.approx(
        float(steps[:2].sum(0).norm()), rel=1e-5
    )
    assert probe(path, *given, "--lags", "9", "--out", tmp_path / "other") == 2
    assert "has 3 steps; pass at least one lag" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--vectors", "nowhere"), "there is no adapter, checkpoint or task vector nowhere"),
        (("--contrasts", "nowhere.jsonl"), "there is no file or folder nowhere.jsonl"),
        (
            ("--k", "2"),
            "a prefix of k=2 steps is all of a training of 2 steps (the last of --lags); pass",
        ),
        (("--lags", "1"), "a prefix of k=1 steps is all of a training of 1"),
        (
            ("--lags", "0", "--directions", "prefix"),
            "the prefix is a part of a training, and --lags 0 starts none; pass --lags 1 10 100",
        ),
        (("--directions", "up"), "no direction 'up'; there are gradient, Adam step"),
        (("--ranks",), "--ranks is about adapters, and there is none; pass them as --vectors"),
        (("--scales", "0.5", "2"), "pass coefficients above 0 with 1 among them"),
        (("--share", "2"), "share=2.0; pass a number between 0 and 1"),
        (("--neutral", "nowhere.jsonl"), "there is no file or folder nowhere.jsonl"),
        (("--vectors", "@task.jsonl"), "is no .safetensors file"),
        (("--vectors", "@model"), "equals the model: no direction"),
        (("--contrasts", "@statements.jsonl", "--behaviour", "b"), "no contrast 'b' in"),
    ],
)
def test_mistakes_are_said_in_one_line(folder, capsys, tmp_path, args, words):
    path, _ = folder
    given = [arg.replace("@", f"{path}/") for arg in args]
    assert probe(path, *given, "--out", tmp_path / "out") in (1, 2)
    err = capsys.readouterr().err
    assert words in err
    assert "Traceback" not in err
