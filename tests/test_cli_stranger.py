"""What someone who does not know frenet meets on the command line: notes, hints, ways out."""

import json
from dataclasses import replace

import pytest
import torch

from frenet import load
from frenet.cli import main
from frenet.cli.execution import show_runs
from frenet.experiments.direction_scale import EXPERIMENT, PROBE
from frenet.experiments.setup.reading import LoadingConfig
from frenet.methods.task_vectors import from_checkpoints
from frenet.methods.vector_files import vectors_from_disk
from frenet.network.adapters import attach_lora
from frenet.network.data.contrasts import contrasts
from frenet.network.data.files import read_rows
from frenet.runs import run_experiment
from frenet.runs.progress import Watch
from network.models import tiny_llama, tiny_qwen2, tiny_tokenizer

STEER = ("steer", "extract", "--model", "@model", "--tasks", "@statements.jsonl", "--only", "c")
PROBED = ("probe", "--model", "@model", "--tasks", "@task.jsonl", "--quiet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tied model, the same without a tokenizer, and one whose head has parted; data."""
    path = tmp_path_factory.mktemp("stranger")
    model = tiny_qwen2()
    for name in ("model", "bare"):
        model.save_pretrained(path / name)
    for name in ("model", "tokenizer"):
        tiny_tokenizer(" y", " n").save_pretrained(path / name)
    with torch.no_grad():
        head = model.lm_head.weight
        change = torch.randn(head.shape, generator=torch.Generator().manual_seed(0))
        model.lm_head.weight = torch.nn.Parameter(head + change / change.norm())
    model.config.tie_word_embeddings = False
    model.save_pretrained(path / "parted")
    # As a merge of a trained head leaves it.
    config = json.loads((path / "parted/config.json").read_text()) | {"tie_word_embeddings": True}
    (path / "parted/config.json").write_text(json.dumps(config))
    statements = [
        {"behavior": "cd"[i % 2], "prompt": f"it is {i}?", "label": "yn"[i // 2 % 2]}
        for i in range(40)
    ]
    save(path / "statements.jsonl", [*statements, statements[0]])
    task = [
        {"task": "ab"[i % 2], "prompt": f"is {i}?", "completion": f"{i % 7}"} for i in range(40)
    ]
    save(path / "task.jsonl", task)
    return path


def save(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(folder, *args):
    return main([str(arg).replace("@", f"{folder}/") for arg in args])


def answered(folder, capsys, *args):
    """The JSON answer of a command that succeeds."""
    capsys.readouterr()
    assert run(folder, *args, "--json") == 0
    return json.loads(capsys.readouterr().out)


def said(folder, capsys, *args):
    """The lines that a command prints for people."""
    capsys.readouterr()
    assert run(folder, *args) == 0
    return capsys.readouterr().out.splitlines()


def refused(folder, capsys, *args):
    """The one line of a command that is refused as a mistake."""
    capsys.readouterr()
    assert run(folder, *args) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("frenet: error: ")]
    return line


def test_steer_and_plans_show_notes_and_rows_to_people_and_machines(folder, capsys):
    """Of a file with a repeated row, and two tasks in it."""
    extract = (*STEER[:-1], "d", "--out", "@v.safetensors")
    compare = ("steer", "compare", "@v.safetensors", "@v.safetensors", *STEER[2:])
    plan = ("search", *PROBED[1:-1], "--only", "a", "--probes", "2", "--budget", "4", "--plan")
    for command, wanted in (
        (extract, "d: rows: 20 statements, positive: 10, negative: 10"),
        (compare, "c: 1 repeated rows dropped"),
        (plan, "a: rows: 14 train, 3 select, 3 test"),
    ):
        notes = answered(folder, capsys, *command)["notes"]
        assert wanted in notes
        assert {f"note: {note}" for note in notes} <= set(said(folder, capsys, *command))


def test_runs_show_their_notes_and_the_task_that_is_measured_of_several(folder, capsys, tmp_path):
    """Below float32 lines in the weights are left out, and the notes have the remedy."""
    config = replace(
        PROBE, model=f"{folder}/model", tasks=(f"{folder}/task.jsonl",), dtype="bfloat16",
        contrasts=f"{folder}/statements.jsonl", directions=("random", "prefix"), lags=(1, 2), k=1,
        n=2, batch_size=4, eval_size=4,
    )  # fmt: skip
    found = run_experiment(EXPERIMENT, config, tmp_path, workers=1, threads=1, quiet=True)
    told = []
    show_runs(told.append, [found], {}, as_json=True)
    show_runs(told.append, [found], {}, as_json=False, why=True)
    notes = told[0]["runs"][0]["notes"]
    assert notes == found.notes
    assert sorted(f"note: {note}" for note in notes) == sorted(told[1:])
    assert "a, b: rows: 14 train, 3 select, 3 test" in notes
    (chosen,) = [note for note in notes if note.startswith("measured: ")]
    assert chosen.startswith("measured: a, of 2 tasks (a, b); --only")
    assert {row["direction"] for row in found.rows if row["table"] == "lifetime"} == {"random"}
    hidden = [note for note in notes if "left out" in note or "distinguish from rounding" in note]
    assert {note.split()[0].strip(",") for note in hidden} == {"prefix", "random"}
    assert all(note.endswith("pass --dtype float32") for note in hidden)


def test_a_table_says_what_its_columns_are_and_where_it_says_nothing(folder, capsys):
    """The labels of the statements have nothing to do with their texts."""
    extract = (*STEER, "--out", "@w.safetensors", "--no-chat")
    answer = answered(folder, capsys, *extract)
    weak = [r["block"] for r in answer["blocks"] if r["difference"] <= r["shuffled"]]
    lines = said(folder, capsys, *extract)
    assert answer["no_better"] == weak
    assert any(line.startswith("no better than shuffled labels") for line in lines) == bool(weak)
    longer = len(answer["blocks"]) - len(weak)
    sentence = f"shuffled labels (95% quantile) at {longer} of {len(answer['blocks'])} blocks"
    assert sentence in lines[1]
    of_gradient = said(folder, capsys, *extract, "--how", "gradient", "--words", "yes", "no")
    columns = ("difference", "shuffled", "halves")
    # Of the mean difference itself its own cosine says nothing.
    for shown, told in ((columns, lines), ((*columns, "cosine", "null"), of_gradient)):
        legend = [line.partition(": ")[0] for line in told]
        assert [name for name in (*columns, "cosine", "null") if name in legend] == list(shown)


@pytest.mark.parametrize(
    ("row", "weak"),
    [
        ({"cosine": 0.5, "chance (95%)": 0.4}, []),
        ({"cosine": -0.5, "chance (95%)": 0.4}, []),
        ({"cosine": -0.4, "chance (95%)": 0.4}, [3]),
        ({"cosine": 0.4, "chance (95%)": None}, []),
    ],
)
def test_no_better_than_chance_is_at_most_chance_where_it_is_known(row, weak):
    from frenet.cli.steer import COMPARED, _no_better

    assert _no_better([{"block": 3, **row}], COMPARED) == weak


def test_an_answer_that_begins_the_other_is_refused_with_two_ways_out(folder, capsys):
    out = ("--out", "@g.safetensors")
    words = ("--words", "yes", "yes it is")
    line = refused(folder, capsys, *STEER, "--how", "gradient", *out, *words)
    assert "is the beginning of the other" in line
    assert line.endswith("; pass two other words as --words, or --how mean")
    assert run(folder, *STEER, "--how", "gradient", *out, "--words", "yes", "no") == 0
    assert run(folder, *STEER, "--how", "mean", *out, *words) == 0


@pytest.mark.reads(
    kind="folders",
    given="a merged model with a separate head and a base with a tied one, as a direction",
    outcome="refused",
    says="pass --untie",
)
def test_a_head_that_has_parted_is_a_direction_of_the_untied_model(folder, says):
    """The refusal names the way, which works; its length is that of the head's change."""
    tied, untied = (LoadingConfig(untie=on).load(str(folder / "model")) for on in (False, True))
    parted = [str(folder / "parted")]
    with pytest.raises(ValueError, match=says):
        list(vectors_from_disk(tied.model, parted))
    (vector,) = vectors_from_disk(untied.model, parted)
    assert vector.norm() == pytest.approx(1, rel=1e-5)
    files = from_checkpoints(folder / "model", folder / "parted")
    assert files.norm() == pytest.approx(1, rel=1e-5)
    assert files.space(untied.model).dim == sum(p.numel() for p in untied.model.parameters())
    with pytest.raises(ValueError, match=says):
        files.space(tied.model)
    # The same network, with one weight more.
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(untied.model(ids).logits, tied.model(ids).logits)
    assert untied.fingerprint == tied.fingerprint
    with pytest.raises(ValueError, match=rf"2 of 2 vectors .* equals the model.*; .*{says}"):
        list(vectors_from_disk(tied.model, [str(folder / "model"), *parted]))


@pytest.mark.reads(
    kind="data",
    given="rows of `chosen` and `rejected`, or of `positive` and `negative`, read as a task",
    outcome="refused",
    says="are pairs of texts",
)
@pytest.mark.parametrize(
    ("command", "rows", "words"),
    [
        (
            "steer extract",
            {"prompt": "q", "chosen": "a", "rejected": "b"},
            "--columns positive=chosen negative=rejected",
        ),
        (
            "probe",
            {"prompt": "q", "Chosen": "a", "Rejected": "b"},
            "--columns completion=Chosen ignore=Rejected",
        ),
        ("probe", {"positive": "a", "negative": "b"}, "frenet steer extract takes"),
        ("search --plan", {"prompt": "q", "positive": "a", "negative": "b"}, "frenet steer"),
    ],
)
def test_pairs_of_texts_say_where_they_go(folder, capsys, tmp_path, command, rows, words, says):
    """And the columns that are named for them are read."""
    data = [{key: f"{value} {i}" for key, value in rows.items()} for i in range(9)]
    file = save(tmp_path / "rows.jsonl", data)
    line = refused(folder, capsys, *command.split(), "--model", "@model", "--tasks", file)
    assert words in line
    assert says in line
    if command == "steer extract":
        tokenizer, columns = load(folder / "model").tokenizer, words.split()[1:]
        found = contrasts(file, tokenizer, max_length=64, columns=columns)["rows"]
        assert (found.kind, found.reading_notes[-1]) == ("pairs", "rows: rows: 9 pairs")


@pytest.mark.reads(
    kind="data",
    given="a JSON file with one object and the rows in its only list of objects",
    outcome="note",
    says="the rows are the list 'data' of the file",
)
def test_the_rows_of_a_json_file_may_stand_in_an_object(tmp_path, says):
    rows = [{"text": f"t {i}", "label": "a"} for i in range(3)]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps({"version": 1, "data": rows}, indent=1))
    found = read_rows(file)
    assert found.values == tuple(rows)
    assert found.notes == (f"{says}; not read: version",)
    for value, words in (
        ({"train": rows, "test": rows}, "holds the lists 'train', 'test'"),
        ({"text": ["a", "b"], "label": ["c", "d"]}, "one object of columns"),
    ):
        file.write_text(json.dumps(value))
        with pytest.raises(ValueError, match=words):
            read_rows(file)
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    file.write_text(json.dumps(chat, indent=1))
    assert read_rows(file).values == (chat,)
    save(file, rows)
    assert (read_rows(file).values, read_rows(file).notes) == (tuple(rows), ())


def test_every_bad_vector_is_named_once_and_before_anything_is_loaded(
    folder, capsys, tmp_path, monkeypatch
):
    assert run(folder, *STEER, "--out", "@s.safetensors") == 0
    monkeypatch.setattr("frenet.network.checkpoints.load.load", None)
    (tmp_path / "v.gguf").write_bytes(b"GGUF")
    attach_lora(tiny_llama(), rank=2).save_pretrained(tmp_path / "foreign")
    wrong = ("nowhere", "@s.safetensors", tmp_path / "v.gguf", tmp_path / "foreign")
    line = refused(folder, capsys, *PROBED, "--vectors", *wrong, "@model", "--out", tmp_path / "o")
    assert "4 of 5 vectors cannot be used" in line
    for name in (
        "nowhere", "s.safetensors is a steering vector", "v.gguf is a GGUF file",
        "foreign is incomplete, or belongs to another base",
    ):  # fmt: skip
        assert line.count(name) == 1
    assert not (tmp_path / "o").exists()
    assert line.count("--steering FILE") == 2
    half = refused(folder, capsys, *PROBED, "--vectors", "@parted", "--dtype", "bfloat16")
    assert "pass --dtype float32" in half


@pytest.mark.parametrize(("cells", "shown"), [(1, 0), (2, 1)])
def test_what_ends_a_run_of_one_cell_is_said_once(capsys, cells, shown):
    """By the command; of several cells each error is said when it comes."""
    with Watch("title", total=cells, done=0) as watch:
        watch.failed("cell", "the cause")
    told = capsys.readouterr().err
    assert (told.count("cell FAILED"), told.count("the cause")) == (1, shown)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--lags", "1", "3"), "pass --k 2 or less, or a last lag above 10"),
        (("--lags", "1"), "pass --directions without prefix, or a last lag above 10"),
        (("--device", "cuda:77"), "there is cpu"),
    ],
)
def test_remedies_are_those_that_work(folder, capsys, tmp_path, flags, words):
    assert words in refused(folder, capsys, *PROBED, "--out", tmp_path, *flags)


def test_without_a_prefix_a_training_may_be_as_short_as_k(folder):
    config = replace(
        PROBE, model=f"{folder}/model", tasks=(f"{folder}/task.jsonl",), lags=(1, 3),
        directions=("random",),
    )  # fmt: skip
    assert len(EXPERIMENT.cells(config)) == 1


def test_vectors_of_two_dtypes_say_why_they_cannot_be_compared(folder, capsys):
    for dtype in ("float32", "bfloat16"):
        assert run(folder, *STEER, "--dtype", dtype, "--out", f"@{dtype}.safetensors") == 0
    both = ("@float32.safetensors", "@bfloat16.safetensors")
    assert "with the same --dtype" in refused(folder, capsys, "steer", "compare", *both)


def test_two_files_with_one_name_are_refused_by_every_command(folder, capsys):
    """Before, the second one took the place of the first."""
    for command in (("steer", "extract"), ("search", "--plan")):
        name = "statements" if command[0] == "steer" else "task"
        twice = ("--tasks", f"@{name}.jsonl", f"@{name}.jsonl")
        line = refused(folder, capsys, *command, "--model", "@model", *twice)
        assert "is also a name in another file" in line


def test_a_model_without_a_tokenizer_takes_that_of_another_folder(folder, capsys):
    bare = ("@bare" if arg == "@model" else arg for arg in STEER)
    command = (*bare, "--out", "@b.safetensors")
    assert "pass --tokenizer" in refused(folder, capsys, *command)
    lent = answered(folder, capsys, *command, "--tokenizer", "@tokenizer")
    assert "c: rows: 20 statements, positive: 10, negative: 10" in lent["notes"]


def test_help_keeps_its_sentences_together(capsys):
    """A docstring's further lines are no paragraphs of their own."""
    assert main(["steer", "extract", "--help"]) == 0
    lines = [line.strip("│ ") for line in capsys.readouterr().out.splitlines()]
    start = next(i for i, line in enumerate(lines) if line.startswith("Roles of the columns"))
    assert min(len(line) for line in lines[start : start + 4]) > 45, lines[start : start + 4]
