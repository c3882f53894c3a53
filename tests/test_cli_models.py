"""What every command that loads a model takes: dtype, device, LoRA targets, path of the blocks."""

import json
import re
from dataclasses import replace

import pytest
import torch

from frenet.cli import main
from frenet.experiments import EXPERIMENTS
from frenet.experiments.experiment import MADE, MODEL
from frenet.experiments.reproduce import PRESETS, parts
from frenet.experiments.search_command import SearchConfig
from frenet.experiments.search_command.setup import load_subject
from frenet.experiments.setup.contrasts import SteeringConfig, steered
from frenet.experiments.setup.networks import NetworkConfig, build
from frenet.experiments.step_vs_vector import Config as StepConfig
from frenet.methods.steering_vector import load_vector
from network.models import tiny_llama, tiny_tokenizer

LOADING = {
    **{f"run {name}": "dtype device tokenizer untie targets" for name in EXPERIMENTS},
    "run step-vs-vector": "dtype device tokenizer untie targets path",
    "run steering-effect": "dtype device tokenizer untie targets path",
    "run direction-scale": "dtype device tokenizer untie targets path",
    "probe": "dtype device tokenizer untie targets path",
    "search": "dtype device tokenizer untie targets",
    "reproduce": "dtype device tokenizer untie targets",
    "steer extract": "dtype device tokenizer untie path",
    "steer compare": "dtype device tokenizer untie path",
    "steer apply": "dtype device tokenizer untie path",
    "convert": "out",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of a family that PEFT has no list for, and of one that it has; a task; statements."""
    from transformers import Phi3Config, Phi3ForCausalLM

    path = tmp_path_factory.mktemp("models")
    size = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    torch.manual_seed(0)
    config = Phi3Config(**size, num_attention_heads=2, num_key_value_heads=2, pad_token_id=0)
    for name, model in (("phi3", Phi3ForCausalLM(config)), ("llama", tiny_llama())):
        model.eval().save_pretrained(path / name)
        tiny_tokenizer(" y", " n").save_pretrained(path / name)
    task = [{"prompt": f"what is {i}?", "completion": f" {i * 7 % 10}"} for i in range(120)]
    statements = [{"prompt": f"is it {i}?", "label": "yn"[i % 2]} for i in range(48)]
    for name, rows in (("task", task), ("statements", statements)):
        text = "\n".join(json.dumps(row) for row in rows)
        (path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return path


def test_a_preset_has_the_settings_of_the_kind_of_network_except_what_is_given(folder, monkeypatch):
    configs = []

    def keep(task, work):
        configs.append(task.config)
        raise KeyboardInterrupt

    monkeypatch.setattr("frenet.cli.commands.execute", keep)
    experiment = EXPERIMENTS["recovery-basis"]
    task = str(folder / "task.jsonl")
    for model, kind in ((str(folder / "llama"), MODEL), ("frenet:gpt2", MADE)):
        args = ["--preset", "demo", f"--model={model}", "--tasks", task, "--seeds", "7"]
        main(["run", "recovery-basis", *args])
        wanted = {"model": model, "tasks": (task,), "seeds": (7,)}
        assert configs.pop() == replace(experiment.settings("demo", kind), **wanted)
    main(["run", "recovery-basis", "--preset", "demo"])
    assert configs == [experiment.presets["demo"]]


@pytest.mark.parametrize("command", LOADING)
def test_every_command_that_loads_a_model_has_the_options(command, capsys):
    assert main([*command.split(), "--help"]) == 0
    told = capsys.readouterr().out
    assert [n for n in LOADING[command].split() if not re.search(f"--{n}[ ,]", told)] == []


def test_targets_say_where_a_fresh_adapter_goes(folder):
    config = {"model": str(folder / "phi3"), "tasks": (str(folder / "task.jsonl"),), "rank": 2}
    with pytest.raises(ValueError, match=r"'phi3'; .*--targets, .*qkv_proj.*down_proj"):
        load_subject(SearchConfig(**config))
    subject = load_subject(SearchConfig(**config, targets=("o_proj", "down_proj"), device="cpu"))
    assert subject.space.dim == 2 * 2 * ((16 + 16) + (24 + 16))
    network = build(
        NetworkConfig(**config, targets=("qkv_proj",), learn_steps=0), space="lora", seed=0
    )
    assert network.space.dim == 2 * 2 * (16 + 3 * 16)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_below_float32_adapters_stay_in_it_and_whole_models_do_not_move(folder, dtype):
    config = NetworkConfig(
        model=str(folder / "llama"), tasks=(str(folder / "task.jsonl"),), dtype=dtype,
        device="cpu", learn_steps=2,
    )  # fmt: skip
    network = build(config, space="lora", seed=0)
    moving = {p.dtype for p in network.space.parameters(network.model)}
    kept = {p.dtype for n, p in network.model.named_parameters() if "lora_" not in n}
    assert (moving, kept) == ({torch.float32}, {getattr(torch, dtype)})
    assert any(f"measured in torch.{dtype}" in note for note in network.notes)
    with pytest.raises(ValueError, match=r"--dtype float32.*--spaces lora"):
        build(config, space="full", seed=0)


def test_a_steering_vector_of_half_precision_is_nearly_that_of_float32(folder, tmp_path):
    source = ("--model", folder / "llama", "--tasks", folder / "statements.jsonl")
    vectors = {}
    for dtype in ("float32", "bfloat16", "float16"):
        out = tmp_path / f"{dtype}.safetensors"
        words = (
            "steer",
            "extract",
            *source,
            "--out",
            out,
            "--dtype",
            dtype,
            "--path",
            "model.layers",
        )
        assert main([*map(str, words)]) == 0
        vectors[dtype] = load_vector(out)
    whole = vectors["float32"]
    for dtype in ("bfloat16", "float16"):
        for block in whole.blocks:
            pair = whole.at(block).double(), vectors[dtype].at(block).double()
            assert 0.98 < float(torch.cosine_similarity(*pair, dim=0)) < 1
    again = tmp_path / "float32.safetensors"
    compared = ("steer", "compare", again, again, *source, "--dtype", "float32", "--device", "cpu")
    assert main([*map(str, compared)]) == 0
    applied = (
        "steer", "apply", tmp_path / "bfloat16.safetensors", "--model", folder / "llama",
        "--prompt", "is it", "--tokens", 2, "--dtype", "bfloat16",
    )  # fmt: skip
    assert main([*map(str, applied)]) == 0


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "mps:3"])
def test_a_device_that_is_not_there_is_a_mistake_with_a_remedy(folder, device, capsys):
    search = ("search", "--model", folder / "llama", "--tasks", folder / "task.jsonl", "--plan")
    assert main([*map(str, search), "--device", device]) == 2
    told = capsys.readouterr().err
    assert f"device={device!r} cannot be used here" in told
    assert "there is cpu" in told
    assert len(told.splitlines()) == 1


def test_the_path_of_the_blocks_reaches_the_experiments(folder):
    from frenet.experiments.experiment import Cell
    from frenet.experiments.step_vs_vector.measure import run

    source = {"model": str(folder / "llama"), "tasks": (str(folder / "statements.jsonl"),)}
    small = {"rows": 8, "seeds": (0,), "device": "cpu", "shuffles": 10}
    cell = Cell.of(seed=0, space="full", behaviour="statements", push="own")
    rows = [list(run(StepConfig(**source, **small, path=p), cell)) for p in ("", "model.layers")]
    assert rows[0] == rows[1]
    assert any(row["table"] != "notes" for row in rows[0])
    with pytest.raises(ValueError, match=r"model\.nowhere"):
        steered(SteeringConfig(**source, rows=8, path="model.nowhere"), cell)


def test_a_reproduction_hands_the_options_to_all_its_parts():
    from dataclasses import replace

    wanted = replace(
        PRESETS["smoke"], networks=("frenet:gpt2",), dtype="bfloat16", device="cpu",
        targets=("c_attn",),
    )  # fmt: skip
    for part in parts(wanted, "smoke"):
        found = part.config
        assert (found.dtype, found.device, found.targets) == ("bfloat16", "cpu", ("c_attn",))
