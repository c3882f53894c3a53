"""`frenet pair` as a person uses it: two adapters on a tiny model, with a task for each."""

import contextlib
import io
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import frenet
from frenet.cli import main
from frenet.experiments.experiment import answered
from frenet.experiments.pair_command import PAIR, STUDY, Config, command
from frenet.experiments.pair_command.measure import rows_of
from frenet.experiments.pair_command.subject import load_subject
from frenet.measure.damage import fixed_loss
from frenet.methods.task_vectors import TaskVector, from_adapter, save_task_vector
from frenet.methods.vector_files import plain_base
from frenet.runs import read_run
from network.models import tiny_llama, tiny_tokenizer

FEW = (
    "--select-size", "8", "--test-size", "10", "--scales", "0", "0.5", "1", "--batch-size", "8",
    "--threads", "1", "--quiet",
)  # fmt: skip
NAMES = ("ones", "twos")
WEIGHT = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder, a task that wants 1 and one that wants 2, and an adapter for each."""
    path = tmp_path_factory.mktemp("pair")
    tiny_llama().save_pretrained(path / "model")
    tiny_tokenizer(" y", " n").save_pretrained(path / "model")
    for name, answer in zip(NAMES, (" 1", " 2"), strict=True):
        rows = [{"prompt": f"{name} {i}", "completion": answer} for i in range(120)]
        text = "\n".join(json.dumps(row) for row in rows)
        (path / f"{name}.jsonl").write_text(text, encoding="utf-8")
        loaded = frenet.load(path / "model")
        (task,) = frenet.text_tasks(
            path / f"{name}.jsonl", loaded.tokenizer, max_length=32
        ).values()
        model = frenet.attach_lora(loaded.model, rank=2, seed=0, targets=["q_proj", "down_proj"])
        space = frenet.ParamSpace.select(model)
        training = frenet.Training("adamw:2e-2", batch_size=16, steps=30)
        frenet.train_and_record(model, task, training, space=space)
        model.save_pretrained(path / f"lora-{name}")
    return path


def pair(folder, *args, directions=("lora-ones", "lora-twos"), tasks=NAMES):
    given = [str(folder / name) if "/" not in name else name for name in directions]
    source = [
        "--model",
        str(folder / "model"),
        "--tasks",
        *(str(folder / f"{t}.jsonl") for t in tasks),
    ]
    return main(["pair", *given, *source, *FEW, *map(str, args)])


@pytest.fixture(scope="module")
def told(folder, tmp_path_factory):
    """What the command prints as JSON, and its folder."""
    out = tmp_path_factory.mktemp("out") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert pair(folder, "--out", out, "--json") == 0
    return json.loads(text.getvalue()), out


def loss(folder, task, *, vector=None):
    """The mean loss of the held-out rows, in the order that the command takes."""
    loaded = frenet.load(folder / "model")
    (task,) = frenet.text_tasks(folder / f"{task}.jsonl", loaded.tokenizer, max_length=64).values()
    if vector is None:
        return fixed_loss(loaded.model, task, split="test", size=10)
    with vector.applied(loaded.model):
        return fixed_loss(loaded.model, task, split="test", size=10)


def adapter(folder, name):
    return from_adapter(folder / f"lora-{name}", base=plain_base(tiny_llama()))


def test_losses_are_those_of_the_model_with_each_and_both(folder, told):
    found = {row["task"]: row for row in told[0]["losses"]}
    ones, twos = (adapter(folder, name) for name in NAMES)
    for name, own, other in (("ones", ones, twos), ("twos", twos, ones)):
        expected = {
            "without": None, "with_own": own, "with_other": other, "with_both": own + other,
        }  # fmt: skip
        for key, vector in expected.items():
            assert found[name][key] == pytest.approx(loss(folder, name, vector=vector), rel=1e-4)
        assert found[name]["own"] == f"lora-{name}"
        kept = next(row for row in told[0]["kept"] if row["task"] == name)
        gain = found[name]["without"] - found[name]["with_own"]
        assert kept["gain"] == pytest.approx(gain, rel=1e-5)
        assert kept["kept"] == pytest.approx(
            (found[name]["without"] - found[name]["with_both"]) / gain, rel=1e-4
        )


def test_each_part_has_its_rows_and_its_line(told):
    printed, _ = told
    subjects = [answer["subject"] for answer in printed["answers"]]
    assert subjects == [
        "check, ones", "check, twos", "ones", "twos", "how far together, ones",
        "how far together, twos", "kept, ones", "kept, twos", "blocks", "order of training",
        "merge",
    ]  # fmt: skip
    assert {row["kind"] for row in printed["scale"]} == {"own", "other", "both", "random"}
    assert len([r for r in printed["map"] if r["kind"] == "loss"]) == 2 * 9
    assert len([r for r in printed["map"] if r["kind"] == "box"]) == 2
    assert {row["block"] for row in printed["block"]} == {"block 0", "block 1"}
    (order,) = printed["order"]
    assert order["measured"] == pytest.approx(order["predicted"], rel=0.2)
    assert order["cosine"] > 0.9


def test_the_map_at_0_and_1_has_the_losses_of_the_select_split(folder, told):
    """Without a change, and with the plain sum; the share is that of its own gain."""
    rows = [r for r in told[0]["map"] if r["kind"] == "loss" and r["task"] == "ones"]
    at = {(row["x"], row["y"]): row for row in rows}
    assert at[0, 0]["loss"] == at[0, 0]["without"]
    assert at[0, 0]["kept"] == 0
    assert at[1, 0]["kept"] == pytest.approx(1.0)
    gain = at[0, 0]["loss"] - at[1, 0]["loss"]
    assert at[1, 1]["kept"] == pytest.approx((at[0, 0]["loss"] - at[1, 1]["loss"]) / gain)


def test_merges_are_judged_beside_the_plain_sum_and_the_average(told):
    rows = {row["merge"]: row for row in told[0]["merge"]}
    assert {"1.0 and 1.0", "average", "one each", "one per block"} <= set(rows)
    scored = {name: row for name, row in rows.items() if row.get("score") is not None}
    whole, average = rows["1.0 and 1.0"], rows["average"]
    assert (whole["over_whole"], average["over_average"]) == (0, 0)
    for row in scored.values():
        assert row["over_whole"] == pytest.approx(row["score"] - whole["score"], abs=1e-9)
        assert row["over_average"] == pytest.approx(row["score"] - average["score"], abs=1e-9)
        assert row["score"] == pytest.approx((row["kept_a"] + row["kept_b"]) / 2, abs=1e-9)
    kept = {row["task"]: row["kept"] for row in told[0]["kept"]}
    assert (whole["kept_a"], whole["kept_b"]) == pytest.approx((kept["ones"], kept["twos"]))
    (chosen,) = [row for row in scored.values() if row["chosen"]]
    assert chosen["selected"] == max(row["selected"] for row in scored.values())
    # The adapters' scale is 1, so that every kind of peft passes its check.
    assert rows["cat, peft"]["error"] < 1e-5
    assert len([r for r in rows.values() if r["kind"].endswith("svd") and "score" in r]) == 4


def test_the_merge_on_disk_is_the_advised_one(folder, told):
    printed, out = told
    merged = from_adapter(out / "merged", base=plain_base(tiny_llama()))
    run = read_run(out)
    config = Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in run.config.items()})
    from frenet.experiments.pair_command.merged import merged_vector

    load_subject.cache_clear()
    expected = merged_vector(load_subject(config), run.rows)
    assert (merged - expected).norm() < 1e-4 * expected.norm()
    assert printed["merged"]["folder"] == str(out / "merged")
    assert "adapter of rank" in printed["merged"]["what"]


def test_a_repeated_command_reads_what_is_there_and_the_report_says_the_same(folder, told, capsys):
    printed, out = told
    assert pair(folder, "--out", out) == 0
    text = capsys.readouterr().out
    for answer in printed["answers"]:
        assert f"{answer['subject']}: {answer['sentence']}" in text
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "What do both coefficients do together?" in page
    assert "order of training" in page
    run = read_run(out)
    assert [str(a) for a in answered(STUDY, run.rows)] == [
        f"{a['subject']}: {a['sentence']}" for a in printed["answers"]
    ]
    shown = command(run.config)
    assert shown.startswith(
        f"frenet pair {folder / 'lora-ones'} {folder / 'lora-twos'} --select-size 8"
    )


def test_python_gives_the_same_numbers(folder, told):
    loaded = frenet.load(folder / "model")
    tasks = [
        next(
            iter(frenet.text_tasks(folder / f"{n}.jsonl", loaded.tokenizer, max_length=64).values())
        )
        for n in NAMES
    ]
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    found = frenet.pair(
        loaded.model, folder / "lora-ones", str(folder / "lora-twos"), tasks=tasks, select_size=8,
        test_size=10, scales=(0.0, 0.5, 1.0), batch_size=8,
    )  # fmt: skip
    after = loaded.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert [str(a) for a in found.answers] == [
        f"{a['subject']}: {a['sentence']}" for a in told[0]["answers"]
    ]
    assert "merge" in repr(found)
    assert "order of training" in found._repr_html_()


def test_checkpoints_and_vectors_become_a_checkpoint(folder, tmp_path, capsys):
    """Their merged change is the combination of both, with the same numbers as for adapters."""
    ones, twos = (adapter(folder, name) for name in NAMES)
    frenet.save_merged(folder / "model", ones, tmp_path / "ones-tuned")
    save_task_vector(twos, tmp_path / "twos.safetensors")
    given = (str(tmp_path / "ones-tuned"), str(tmp_path / "twos.safetensors"))
    args = ("--out", tmp_path / "out", "--no-by-block", "--json", "--batch-size", "0")
    assert pair(folder, *args, directions=given) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["merge"] for row in printed["merge"]] == ["1.0 and 1.0", "average", "one each"]
    assert printed["order"] == []
    assert printed["merged"]["what"].startswith("checkpoint")
    run = read_run(tmp_path / "out")
    from frenet.experiments.pair_command.answers import advised

    row = advised(run.rows)
    expected = row["a"] * ones + row["b"] * twos
    found = frenet.from_checkpoints(folder / "model", tmp_path / "out" / "merged")
    assert (found - expected).norm() < 1e-3 * expected.norm()


def times(factor):
    """A function that writes the first adapter, multiplied."""

    def write(folder, tmp_path):
        path = tmp_path / f"times{factor}"
        shutil.copytree(folder / "lora-ones", path)
        file = path / "adapter_model.safetensors"
        changed = {n: t * (factor if "lora_B" in n else 1) for n, t in load_file(file).items()}
        save_file(changed, file)
        return str(path)

    return write


def no_change(folder, tmp_path):
    """A task vector of zeros."""
    vector = TaskVector({WEIGHT: (16, 16)}, lambda _: torch.zeros(16, 16), "nothing")
    return str(save_task_vector(vector, tmp_path / "nothing.safetensors"))


def of_another_base(folder, tmp_path):
    model = frenet.attach_lora(tiny_llama(width=32), rank=2, seed=0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.fill_(0.1)
    model.save_pretrained(tmp_path / "other")
    return str(tmp_path / "other")


@pytest.mark.parametrize(
    ("make", "args", "words"),
    [
        (times(2), (), "one and the same direction (cosine 1.000000), so there is no pair"),
        (times(-1), (), "are opposite directions (cosine -1.000000), so there is no pair"),
        (times(0), (), "is all zero: it is untrained and has no direction"),
        (no_change, (), "nothing.safetensors changes no weight, so it has no direction"),
        (of_another_base, (), "belongs to another base"),
        (lambda *_: "/nowhere", (), "there is no adapter, checkpoint or task vector /nowhere"),
        (None, ("--only", "ones"), "--only names 1 tasks; pass two, that of A first"),
        (None, ("--only", "ones", "threes"), "no task 'threes'; there are ones, twos"),
        (None, ("--dtype", "bfloat16"), "lines in the weights, and bfloat16 rounds"),
        (None, ("--eps", "1"), "eps=1.0; pass a number between 0 and 1"),
        (None, ("--scales", "0", "0.5"), "pass at least two, none below 0, and 1 among them"),
        (None, ("--densities", "1"), "densities=(1.0,); pass numbers between 0 and 1"),
        (None, ("--select-size", "1"), "select_size=1; pass at least 2"),
    ],
)  # fmt: skip
def test_mistakes_are_said_in_one_line(folder, tmp_path, capsys, make, args, words):
    second = make(folder, tmp_path) if make else str(folder / "lora-twos")
    directions = (str(folder / "lora-ones"), second)
    assert pair(folder, *args, "--out", tmp_path / "out", directions=directions) in (1, 2)
    err = capsys.readouterr().err
    assert words in err
    assert "Traceback" not in err


def test_a_missing_second_direction_is_not_taken_from_the_tasks(folder, capsys):
    tasks = [str(folder / f"{name}.jsonl") for name in NAMES]
    args = [str(folder / "lora-ones"), "--model", str(folder / "model"), "--tasks", *tasks]
    assert main(["pair", *args]) == 2
    assert "twos.jsonl, a data file; give both directions before" in capsys.readouterr().err


def test_one_task_is_no_pair(folder, tmp_path, capsys):
    assert pair(folder, "--out", tmp_path / "out", tasks=("ones",)) in (1, 2)
    assert "the files hold one task (ones), and a pair needs" in capsys.readouterr().err


def test_a_task_without_test_rows_is_refused(folder):
    loaded = frenet.load(folder / "model")
    tasks = []
    for name in NAMES:
        source = folder / f"{name}.jsonl"
        (task,) = frenet.text_tasks(source, loaded.tokenizer, max_length=64).values()
        tasks.append(task)
    tasks[1].examples["test"] = ()
    directions = (folder / "lora-ones", folder / "lora-twos")
    with pytest.raises(ValueError, match="task 'twos' has no test rows"):
        frenet.pair(loaded.model, *directions, tasks=tasks)
    with pytest.raises(ValueError, match="both directions have the task 'ones'"):
        frenet.pair(loaded.model, *directions, tasks=[tasks[0], tasks[0]])


def test_an_order_that_cannot_be_measured_is_said_and_why(folder, told, monkeypatch):
    """A gradient below its rounding error ends the question of the order, and no other part."""
    from frenet.measure import lie_bracket

    _, out = told
    monkeypatch.setattr(lie_bracket, "norm_over_rounding", lambda *_, **__: 3.0)
    run = read_run(out)
    config = Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in run.config.items()})
    load_subject.cache_clear()
    rows = list(rows_of(load_subject(config), "order", lambda _: None))
    (order,) = [a.sentence for a in answered(STUDY, rows)]
    assert order.startswith("not known: the gradient of task ones")
    assert "float64" in order


def test_every_measure_names_a_reference_that_is_there():
    for table, columns in PAIR.tables.items():
        roles = {column.name: column.role for column in columns}
        assert len(roles) == len(columns), table
        for column in columns:
            if column.role == "measure":
                assert roles[column.beside] in ("reference", "measure"), (table, column.name)
