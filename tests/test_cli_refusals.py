"""What the command line refuses: exit code 2, one line, and the words that it begins with."""

import json

import pytest

from frenet.cli import main
from network.models import tiny_llama, tiny_tokenizer

MODEL = ("--model", "@model")
TASK = (*MODEL, "--tasks", "@rows.jsonl")
# A command, and how its message begins. Nothing of this may train or measure before it is refused.
REFUSED = [
    (("nonsense",), "no command 'nonsense'; there are: "),
    (("run", "nonsense"), "no experiment 'nonsense'; "),
    (("run", "--preset", "smoke"), "give the experiment before --preset"),
    (("run", "gradient-rank", "--preset", "nonsense"), "no preset of gradient-rank 'nonsense'"),
    (("run", "gradient-rank", "--tasks", "nonsense"), "no synthetic task 'nonsense'"),
    (("run", "gradient-rank", "--only", "nonsense"), "no task 'nonsense'; there are "),
    (("run", "gradient-rank", *MODEL), "model @model needs tasks"),
    (("run", "gradient-rank", *MODEL, "--tasks", "@nowhere.jsonl"), "there is no file"),
    (("run", "gradient-rank", *MODEL, "--tasks", "@empty.jsonl"), "@empty.jsonl is empty"),
    (("run", "gradient-rank", *MODEL, "--tasks", "@broken.jsonl"), "@broken.jsonl, line 1"),
    (("run", "gradient-rank", *MODEL, "--tasks", "@odd.jsonl"), "@odd.jsonl"),
    (("run", "gradient-rank", "--workers", "0"), "workers=0 is not possible"),
    (("run", "gradient-rank", "--address", "auto"), "--address is of a Ray cluster"),
    (("run", "gradient-rank", "--seeds", "0", "0"), "gradient-rank has two cells "),
    (("run", "gradient-rank", "--columns", "prompt=a"), "the synthetic network reads no files"),
    (("run", "recovery-basis", "--ks"), "--ks got no value"),
    (("run", "subspace-training", "--ks", "0", "5"), "--ks got 0 5"),
    (("run", "direction-scale", "--lags"), "--lags got no value"),
    (("run", "gradient-rank", "--batch-sizes", "0"), "--batch-sizes got 0"),
    (("run", "gradient-rank", "--max-tasks", "-1"), "max_tasks=-1; pass 0 for all"),
    (("run", "recovery-basis", "--ks", "500"), "k=500 is above 0.35 of the "),
    (("run", "subspace-training", "--bases", "nonsense"), "no basis 'nonsense'; there are "),
    (("run", "steering-effect", "--pushes", "nonsense"), "no push 'nonsense'; there are "),
    (("run", "steering-effect", *MODEL), "model @model needs contrasts"),
    (("run", "direction-scale", "--directions", "nonsense"), "no direction 'nonsense'; there are "),
    (("run", "direction-scale", "--k", "500"), "a prefix of k=500 steps is all of a training"),
    (("probe", *TASK, "--directions", "nonsense"), "no direction 'nonsense'; there are "),
    (("probe", *TASK, "--vectors", "@nowhere"), "there is no adapter, checkpoint or task vector"),
    (("probe", *TASK, "--steering", "@nowhere"), "there is no file or folder @nowhere"),
    (("search", *TASK, "--budget", "0"), "budget=0 is below one candidate"),
    (("search", *TASK, "--top", "0"), "top=0 leaves no winner"),
    (("search", *TASK, "--sigma", "nonsense"), "sigma='nonsense'; pass a number above 0"),
    (("search", *TASK, "--sigma", "-1"), "sigma=-1; pass a finite number above 0"),
    (("search", *TASK, "--where", "("), "where='(' is no regular expression"),
    (("search", *TASK, "--where", "nonsense"), "where='nonsense' names none of the "),
    (("search", *TASK, "--only", "nonsense"), "no task 'nonsense'; there are rows"),
    (("search", *TASK, "--workers", "2"), "--workers are those of a Ray cluster"),
    (("search", *TASK, "--threads", "0"), "threads=0 is not possible; give 1 or more"),
    (("steer", "nonsense"), "no command of steer 'nonsense'; there are: "),
    (("steer", "extract", *TASK, "--out", "x.txt"), "x.txt does not end in .safetensors"),
    (("steer", "extract", *TASK, "--out", "x.safetensors"), "contrast 'rows' has 12 labels"),
    (("steer", "compare", "@words.txt", "@words.txt"), "@words.txt is no steering vector"),
    (("steer", "apply", "@words.txt", *MODEL, "--prompt", "a", "--tokens", "0"), "tokens=0 leaves"),
    (("steer", "export", "@words.txt", "--out", "x.txt"), "@words.txt is no steering vector"),
    (("report",), "give the runs to report"),
    (("report", "@nowhere"), "@nowhere does not exist"),
    (("report", "@nothing"), "@nothing is not a run folder"),
    (("report", "@words.txt"), "@words.txt is not a run folder"),
    (("report", "@nothing", "--export", "@words.txt"), "@words.txt is a file; name a folder"),
    (("report", "@nothing", "--results", "@words.txt"), "@words.txt is a file; name a folder"),
    (("report", "@nothing", "--site", "@words.txt"), "@words.txt is a file; name a folder"),
    (("reproduce", "--networks", "synthetic", "synthetic"), "--networks names synthetic twice"),
    (("reproduce", "--experiments", "nonsense"), "no experiment 'nonsense'; there are "),
    (("reproduce", "--only", "nonsense"), "no task or statements 'nonsense'; there are "),
    (("reproduce", "--preset", "nonsense"), "no preset of reproduce 'nonsense'; there are: "),
    (("demo", "--experiments", "nonsense"), "no experiment 'nonsense'; there are"),
    (("demo", "--preset", "nonsense"), "no preset of "),
    (("convert", "@nowhere.gguf"), "there is no file @nowhere.gguf"),
    (("convert", "@words.txt"), "@words.txt is not a GGUF file"),
]
# What the parser of arguments refuses, in words of its own.
UNREAD = [
    ("run", "gradient-rank", "--nonsense"),
    ("run", "gradient-rank", "--seeds", "x"),
    ("probe", "--model"),
    ("search",),
    ("steer", "extract"),
    ("convert",),
    ("demo", "--nonsense"),
    ("doctor", "--nonsense"),
    ("list", "--nonsense"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder, rows of a task, and files that are neither."""
    path = tmp_path_factory.mktemp("refused")
    tiny_llama(width=16).save_pretrained(path / "model")
    tiny_tokenizer(" y", " n").save_pretrained(path / "model")
    rows = [{"prompt": f"add {i}", "completion": f" {i + 1}"} for i in range(12)]
    text = "\n".join(map(json.dumps, rows))
    files = {"rows.jsonl": text, "broken.jsonl": '{"prompt": "x"\n', "empty.jsonl": ""}
    for name, held in (files | {"odd.jsonl": '{"q": 1}\n', "words.txt": "hello"}).items():
        (path / name).write_text(held, encoding="utf-8")
    (path / "nothing").mkdir()
    return path


@pytest.mark.parametrize(("args", "begins"), REFUSED, ids=[" ".join(args) for args, _ in REFUSED])
def test_a_refusal_is_one_line_with_exit_code_2(
    folder, capsys, tmp_path, monkeypatch, args, begins
):
    monkeypatch.chdir(tmp_path)
    here = f"{folder}/"
    assert main([arg.replace("@", here) for arg in args]) == 2
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith(f"frenet: error: {begins}".replace("@", here))
    # Nothing is left behind but the message.
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("args", UNREAD, ids=map(" ".join, UNREAD))
def test_arguments_that_cannot_be_read_end_with_exit_code_2(capsys, args):
    assert main(list(args)) == 2
    assert "--help" in capsys.readouterr().err
