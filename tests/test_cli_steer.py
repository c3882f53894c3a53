"""`frenet steer` as a person uses it, on a tiny model."""

import json

import pytest
from tokenizers import processors

from frenet.cli import main
from frenet.cli.steer import _table
from frenet.methods import steering
from frenet.methods.steering_vector import load_vector
from frenet.network.data.tokens import encode
from network.models import EOS, tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder, statements and pairs."""
    path = tmp_path_factory.mktemp("steer")
    tiny_llama(width=16).save_pretrained(path / "model")
    tiny_tokenizer(" y", " n").save_pretrained(path / "model")
    statements = [{"prompt": f"is it {i}?", "label": "yn"[i % 2]} for i in range(16)]
    pairs = [{"positive": f"i do {i}", "negative": f"i do not {i}"} for i in range(6)]
    for name, rows in (("statements", statements), ("pairs", pairs)):
        text = "\n".join(json.dumps(row) for row in rows)
        (path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return path


def steer(folder, *args):
    return main(["steer", *(str(arg).replace("@", f"{folder}/") for arg in args)])


def asked(capsys, folder, *args):
    """The JSON answer of a command that succeeds."""
    capsys.readouterr()
    assert steer(folder, *args, "--json") == 0
    return json.loads(capsys.readouterr().out)


SOURCE = ("--model", "@model", "--tasks", "@statements.jsonl")


def test_extract_compare_apply_export(folder, capsys):
    for how in ("mean", "gradient"):
        found = asked(
            capsys, folder, "extract", *SOURCE, "--positive", "y",
            "--how", how, "--out", f"@{how}.safetensors",
        )  # fmt: skip
        assert [row["block"] for row in found["blocks"]] == [0, 1]
        assert {"difference", "shuffled", "cosine", "null", "halves"} <= set(found["blocks"][0])
    vector = load_vector(folder / "mean.safetensors")
    gradient = load_vector(folder / "gradient.safetensors")
    both = ("compare", "@mean.safetensors", "@gradient.safetensors")
    plain = asked(capsys, folder, *both)["blocks"]
    known = asked(capsys, folder, *both, *SOURCE)["blocks"]
    for row, with_null in zip(plain, known, strict=True):
        assert row["cosine"] == pytest.approx(vector.cosine(gradient)[row["block"]])
        assert row["chance (95%)"] is None
        assert 0 < with_null["chance (95%)"] <= 1
    assert steer(folder, "export", "@mean.safetensors", "--out", "@v.gguf") == 0
    assert "block 0 is left out" in capsys.readouterr().out
    assert load_vector(folder / "v.gguf").blocks == (1,)
    assert steer(folder, "export", "@v.gguf", "--out", "@back.safetensors") == 0
    found = asked(
        capsys, folder, "apply", "@back.safetensors", "--model", "@model",
        "--prompt", "is it", "it is", "--doses", "-5", "5", "--tokens", "4",
    )  # fmt: skip
    assert found["block"] == 1
    assert [result["prompt"] for result in found["results"]] == ["is it", "it is"]
    assert all(set(result["texts"]) == {"-5.0", "0.0", "5.0"} for result in found["results"])


def test_screen_says_which_contrasts_a_model_knows(folder, capsys):
    """A network of random weights knows none; one line each, and why a contrast has no answers."""
    found = asked(capsys, folder, "screen", *SOURCE, "@pairs.jsonl", "--positive", "y")
    statements, pairs = found["contrasts"]
    assert (statements["contrast"], statements["words"]) == ("statements", ["y", "n"])
    assert (statements["prompts"], statements["chance"]) == (16, 0.5)
    assert statements["known_low"] <= statements["separation"] <= statements["known_high"]
    assert [len(pieces) for pieces in statements["tokens"]] == [1, 1]
    assert pairs["refused"] == "pairs of texts have no answers"
    assert steer(folder, "screen", *SOURCE, "--positive", "y", "--rows", "8") == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("statements: the model ")
    assert "8 prompts; answers y / n" in line
    nested = asked(capsys, folder, "screen", *SOURCE, "--words", "y", "y n")["contrasts"][0]
    assert nested["refused"].endswith("pass two other words as --words")
    assert steer(folder, "screen", *SOURCE, "--only", "gone") == 2
    assert "no contrast 'gone'; there are statements" in capsys.readouterr().err


def test_a_gradient_vector_is_held_against_prompts_that_it_has_not_seen(folder, monkeypatch):
    """Else its labels could not be shuffled, and the null would be none."""
    seen = []

    def watch(name, prompts):
        plain = getattr(steering, name)

        def watched(*args, **kwargs):
            seen.append(prompts(*args))
            return plain(*args, **kwargs)

        monkeypatch.setattr(steering, name, watched)

    def contexts(_, contrast, *rest):
        return {tuple(item.context) for item in contrast.items}

    watch("gradient_shift", contexts)
    watch("gradient_shift", lambda _, push, rows: {tuple(row) for row in rows})
    watch("contrast_streams", contexts)
    args = (*SOURCE, "--positive", "y", "--how", "gradient", "--out", "@apart.safetensors")
    assert steer(folder, "extract", *args) == 0
    assert len(seen) == 3
    assert all(seen)
    assert sum(map(len, seen)) == len(set.union(*seen))


def test_tables_for_people(folder, capsys):
    assert steer(folder, "extract", "--model", "@model", "--tasks", "@pairs.jsonl",
                 "--how", "principal", "--out", "@pairs.safetensors") == 0  # fmt: skip
    out = capsys.readouterr().out
    assert "halves" in out
    assert "principal difference of pairs, 6 prompts" in out
    assert steer(folder, "compare", "@pairs.safetensors", "@pairs.safetensors") == 0
    assert "times too low for a residual stream" in capsys.readouterr().out
    assert (
        steer(folder, "apply", "@pairs.safetensors", "--model", "@model", "--prompt", "i do") == 0
    )
    assert "dose 0 is the model without" in capsys.readouterr().out


def test_text_in_brackets_is_shown_as_it_is(capsys):
    _table([{"name": "pairs[v2]", "p": 0.25}])
    assert "pairs[v2]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (("extract", *SOURCE, "--only", "x", "--out", "@x.safetensors"), "no contrast 'x'; there"),
        (("extract", *SOURCE, "--blocks", "7", "--out", "@x.safetensors"), "blocks 0 to 1"),
        (
            ("extract", "--model", "@model", "--tasks", "@pairs.jsonl", "--how", "gradient"),
            "have no answer to push towards",
        ),
        (
            ("extract", "--model", "@model", "--tasks", "@pairs.jsonl", "--form", "class"),
            "have no class",
        ),
        (
            ("extract", "--model", "@no", "--tasks", "@no", "--out", "@v.gguf"),
            "frenet steer export",
        ),
        (
            ("apply", "@no.safetensors", "--model", "@no", "--prompt", "a", "--tokens", "0"),
            "least 1",
        ),
        (
            ("apply", "@no.safetensors", "--model", "@no", "--prompt", "a", "--doses", "1", "nan"),
            "dose nan is not finite",
        ),
        (("compare", "@no.safetensors", "@no.safetensors"), "there is no file"),
        (("export", "@statements.jsonl", "--out", "@x.gguf"), "is no steering vector"),
        (("steal",), "no command of steer 'steal'"),
    ],
)
def test_mistakes_are_one_line(folder, capsys, args, match):
    assert steer(folder, *args) == 2
    err = capsys.readouterr().err
    assert match in err
    assert len(err.strip().splitlines()) == 1
    assert not (folder / "x.safetensors").exists()


def test_a_vector_of_another_model(folder, capsys):
    assert steer(folder, "extract", *SOURCE, "--positive", "y", "--out", "@own.safetensors") == 0
    other = tiny_llama(seed=3)
    other.save_pretrained(folder / "other")
    tiny_tokenizer(" y", " n").save_pretrained(folder / "other")
    capsys.readouterr()
    prompt = ("--prompt", "is it")
    assert steer(folder, "apply", "@own.safetensors", "--model", "@other", *prompt) == 2
    assert "was made for the model" in capsys.readouterr().err
    missing = ("--block", "9")
    assert steer(folder, "apply", "@own.safetensors", "--model", "@model", *prompt, *missing) == 2
    assert "no direction for block 9; it has 0, 1" in capsys.readouterr().err


def test_prompts_to_go_on_with_have_one_beginning_and_no_end(folder, monkeypatch, capsys):
    """They are the context of a task's example, which the tokenizer itself would end."""
    tokenizer = tiny_tokenizer(" y", " n")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<eos> $A <eos>", special_tokens=[("<eos>", EOS)]
    )
    tiny_llama(width=16).save_pretrained(folder / "ended")
    tokenizer.save_pretrained(folder / "ended")
    ended = ("--model", "@ended", "--tasks", "@statements.jsonl", "--positive", "y")
    assert steer(folder, "extract", *ended, "--out", "@ended.safetensors") == 0
    given = []

    def generate(model, ids, added, **_):
        given.append(ids)
        return [[]] * len(added)

    monkeypatch.setattr("frenet.methods.steered_generation.generate_steered", generate)
    prompts = ("is it 3?", "<eos>is it 3?")
    found = ("apply", "@ended.safetensors", "--model", "@ended", "--prompt", *prompts)
    assert steer(folder, *found) == 0
    (row,) = encode(tokenizer, [("is it 3?", "n")], max_length=64)
    assert given == [row.context, row.context]
    assert (row.context[0], row.context.count(EOS), row.target[-1]) == (EOS, 1, EOS)


def test_help(folder, capsys):
    assert steer(folder, "--help") == 0
    assert steer(folder) == 2
    assert "extract" in capsys.readouterr().out
