"""Every command that reads data takes columns, templates and chat."""

import json
import re

import pytest
import torch

import frenet
from frenet.cli import main
from frenet.experiments import EXPERIMENTS
from frenet.experiments.reproduce import PRESETS, settings
from frenet.experiments.search_command import SearchConfig
from frenet.experiments.search_command.setup import load_subject
from frenet.experiments.setup.contrasts import SteeringConfig, behaviours
from frenet.experiments.setup.networks import NetworkConfig, task_names
from network.chats import chat_tokenizer
from network.models import tiny_llama

ROWS = [
    {"ask": f"is {i} good?", "extra": f"n{i}", "say": ("1", "0")[i % 2], "context": "c"}
    for i in range(24)
]
COLUMNS = ("prompt=ask,extra", "label=say", "ignore=context")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with a chat template, and a file whose columns no schema has."""
    folder = tmp_path_factory.mktemp("reading")
    torch.manual_seed(0)
    tokenizer = chat_tokenizer("chatml")
    model = tiny_llama(vocabulary=len(tokenizer))
    model.config.max_position_embeddings = 256
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def test_the_columns_of_a_search(folder):
    config = SearchConfig(
        model=str(folder / "model"), tasks=(str(folder / "rows.jsonl"),), columns=COLUMNS,
        words=("0=no", "1=yes"), chat=True, space="full", budget=2,
    )  # fmt: skip
    task = load_subject(config).task
    assert task.labels == ("no", "yes")
    example = next(e for e in task.examples["train"] if e.line % 2)
    assert example.completion == "yes"
    assert example.prompt == (
        f"<|im_start|>user\nis {example.line - 1} good?\n\nn{example.line - 1}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_the_columns_of_experiments(folder):
    path = str(folder / "rows.jsonl")
    with pytest.raises(ValueError, match="no known schema fits the keys ask, extra, say, context"):
        task_names(NetworkConfig(model="m", tasks=(path,)))
    assert task_names(NetworkConfig(model="m", tasks=(path,), columns=COLUMNS)) == ("rows",)
    assert behaviours(SteeringConfig(model="m", tasks=(path,), columns=COLUMNS)) == ("rows",)
    for kind, names in ((NetworkConfig, task_names), (SteeringConfig, behaviours)):
        with pytest.raises(ValueError, match="the synthetic network reads no files"):
            names(kind(chat=True))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_reproduction_hands_columns_on(name):
    from dataclasses import replace

    wanted = replace(
        PRESETS["smoke"], columns=COLUMNS, words=("0=no",), chat=True, prompt="{ask}",
        statement_columns=("label=truth",), statement_prompt="{claim}?",
    )  # fmt: skip
    config = settings(EXPERIMENTS[name], "some-model", wanted, preset="smoke")
    assert config.chat
    if isinstance(config, SteeringConfig):
        assert (config.columns, config.prompt) == (("label=truth",), "{claim}?")
    else:
        assert (config.columns, config.prompt, config.words) == (COLUMNS, "{ask}", ("0=no",))
    if hasattr(config, "contrasts"):
        assert config.contrast_columns == ("label=truth",)
        assert config.contrast_prompt == "{claim}?"


def test_a_vector_in_the_chat_template_is_that_of_python(folder, capsys):
    out = folder / "v.safetensors"
    code = main([
        "steer", "extract", "--model", str(folder / "model"), "--tasks", str(folder / "rows.jsonl"),
        "--columns", *COLUMNS, "--chat", "--out", str(out), "--json",
    ])  # fmt: skip
    assert code == 0, capsys.readouterr().err
    loaded = frenet.load(folder / "model")
    contrast = frenet.contrasts(
        folder / "rows.jsonl", loaded.tokenizer, max_length=256, columns=COLUMNS, chat=True
    )["rows"]
    assert contrast.items[0].text.startswith("<|im_start|>user\nis 0 good?")
    want = frenet.caa(loaded.model, contrast)
    found = frenet.load_vector(out)
    for block in want.blocks:
        torch.testing.assert_close(found.at(block), want.at(block))
    capsys.readouterr()
    code = main([
        "steer", "apply", str(out), "--model", str(folder / "model"), "--prompt", "hi", "--chat",
        "--doses", "0.5", "--tokens", "3", "--json",
    ])  # fmt: skip
    told = json.loads(capsys.readouterr().out)
    assert code == 0
    ids = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_dict=False
    )
    with torch.no_grad():
        made = loaded.model.generate(
            torch.tensor([ids]), max_new_tokens=3, do_sample=False,
            pad_token_id=loaded.tokenizer.eos_token_id,
        )  # fmt: skip
    assert told["results"][0]["texts"]["0.0"] == loaded.tokenizer.decode(made[0, len(ids) :])


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (["search"], "columns prompt completion words chat"),
        (["probe"], "columns prompt completion words chat contrast-columns contrast-prompt"),
        (["reproduce"], "columns prompt completion words chat statement-columns statement-prompt"),
        (["run", "gradient-rank"], "columns prompt completion words chat"),
        (["run", "step-vs-vector"], "columns prompt completion words chat"),
        (["steer", "extract"], "columns prompt completion words chat"),
        (["steer", "compare"], "columns prompt completion chat"),
        (["steer", "apply"], "chat"),
    ],
)
def test_every_command_that_reads_data_has_them(command, flags, capsys):
    assert main([*command, "--help"]) == 0
    told = capsys.readouterr().out
    for flag in flags.split():
        assert re.search(rf"--{flag}[ ,]", told), flag


@pytest.mark.parametrize(
    "command",
    ["search", "probe", "reproduce", "run gradient-rank", "run step-vs-vector", "steer extract",
     "steer compare"],
)  # fmt: skip
def test_every_command_cuts_texts_at_the_same_length(command, capsys):
    assert main([*command.split(), "--help"]) == 0
    told = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    assert re.findall(r"--max-length INT [^(]*\(default: (\d+)\)", told) == ["256"]


LONG = [
    {"prompt": f"{'very ' * (20 if i < 6 else 1)}big {i}", "label": ("yes", "no")[i % 2]}
    for i in range(24)
]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["search", "--budget", "2", "--sigma", "1e-3", "--select-size", "2", "--test-size", "2"],
         r"(\d+) of \d+ rows cut, \d+ tokens"),
        (["probe", "--directions", "random", "--eval-size", "2", "--n", "1", "--batch-size", "2",
          "--threads", "1"], r"(\d+) of \d+ rows cut, \d+ tokens"),
        (["steer", "extract"], r"(\d+) of 24 prompts lost their beginning"),
    ],
)  # fmt: skip
def test_every_command_counts_the_prompts_that_lose_their_beginning(
    folder, tmp_path, capsys, command, says
):
    """Six of 24 are longer than 64 tokens."""
    file, out = tmp_path / "long.jsonl", tmp_path / "out.safetensors"
    file.write_text("".join(json.dumps(row) + "\n" for row in LONG))
    given = ["--model", str(folder / "model"), "--tasks", str(file), "--max-length", "64"]
    code = main([*command, *given, "--out", str(out), "--json"])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    notes = " ".join(json.loads(shown.out)["notes"])
    assert sum(map(int, re.findall(says, notes))) == 6


def test_a_wrong_column_is_one_line(folder, capsys):
    code = main([
        "steer", "extract", "--model", str(folder / "model"), "--tasks", str(folder / "rows.jsonl"),
        "--columns", "prompt=nothing", "label=say",
    ])  # fmt: skip
    assert code == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "no row has the column 'nothing'; columns are ask, extra, say, context" in told
