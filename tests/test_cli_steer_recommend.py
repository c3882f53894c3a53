"""`frenet steer recommend` as a person uses it, on a network with a planted direction."""

import contextlib
import copy
import io
import json
import string

import numpy as np
import pytest
import torch

import frenet
from frenet.cli import main
from frenet.experiments.steer_command import RECOMMEND, Config, command
from frenet.experiments.steer_command.trials import between, halved, spread
from frenet.geometry.rng import generator
from frenet.methods.steering_dose import shares
from frenet.methods.steering_effect import answer_differences, prompted, steered_differences
from frenet.methods.steering_vector import load_vector
from frenet.runs import read_run
from network.models import tiny_llama, tiny_tokenizer

YES, NO = " y", " n"
ROWS, DRAWS, DOSES = 16, 8, (0.1, 0.2, 0.4, 0.8)
FEW = (
    "--rows", ROWS, "--draws", DRAWS, "--doses", *DOSES, "--threads", "1", "--quiet",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network whose answer follows the direction between its letters; true and random labels.

    Blocks change nothing, so that the stream after them is the embedding of the last letter: noise,
    and half a direction more or less for the two halves of the alphabet.
    """
    path = tmp_path_factory.mktemp("recommend")
    tokenizer, model = tiny_tokenizer(YES, NO), tiny_llama(width=32)
    draw = generator(0, "planted")
    v = torch.randn(32, generator=draw)
    v /= v.norm()
    letters = [tokenizer.convert_tokens_to_ids(c) for c in string.ascii_lowercase]
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.randn(64, 32, generator=draw))
        for i, letter in enumerate(letters):
            model.model.embed_tokens.weight[letter] += (2 if i < 13 else -2) * v
        for word, sign in ((YES, 1), (NO, -1)):
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(word)] = sign * 0.5 * v
    model.save_pretrained(path / "model")
    tokenizer.save_pretrained(path / "model")
    coin = np.random.default_rng(0).integers(0, 2, 260)
    for name in ("planted", "random"):
        rows = [
            {"prompt": f"is it {i % 10}{i // 100}, {letter}",
             "label": "yn"[int(coin[i]) if name == "random" else int(letter > "m")]}
            for i, letter in ((i, string.ascii_lowercase[i % 26]) for i in range(260))
        ]  # fmt: skip
        save(path / f"{name}.jsonl", rows)
    save(
        path / "pairs.jsonl", [{"positive": f"i do {i}", "negative": f"not {i}"} for i in range(9)]
    )
    return path


def save(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def recommend(folder, name, *args):
    source = ("--model", folder / "model", "--tasks", folder / f"{name}.jsonl", "--positive", "y")
    return main(["steer", "recommend", *map(str, (*source, *FEW, *args))])


@pytest.fixture(scope="module")
def loaded(folder):
    return frenet.load(folder / "model")


def contrast_of(folder, loaded, name):
    return frenet.contrast(folder / f"{name}.jsonl", loaded.tokenizer, positive="y")


def advised(folder, loaded, name, **settings):
    """The advice from Python."""
    how = {"rows": ROWS, "draws": DRAWS, "doses": DOSES, **settings}
    contrast = contrast_of(folder, loaded, name)
    return frenet.steering_advice(
        loaded.model, contrast, loaded.tokenizer, fingerprint=loaded.fingerprint, **how
    )


@pytest.fixture(scope="module")
def told(folder, tmp_path_factory):
    """What the command prints as JSON of the planted contrast, and its folder."""
    out = tmp_path_factory.mktemp("planted") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert recommend(folder, "planted", "--out", out, "--json") == 0
    return json.loads(text.getvalue()), out


def test_a_planted_direction_has_a_dose_that_does_what_is_said(folder, loaded, told):
    """Every number of the advice again, from the vector that the command wrote."""
    printed, out = told
    (advice,) = printed["advice"]
    assert advice["reason"] == ""
    assert advice["lead_low"] > 0
    assert advice["cost"] <= advice["max_cost"] == 0.1
    vector = load_vector(out / "vector.safetensors")
    assert vector.advised == (advice["block"], advice["dose"])
    parts = contrast_of(folder, loaded, "planted").divided(3, seed=0, rows=ROWS)
    again = frenet.caa(loaded.model, parts[0])
    torch.testing.assert_close(vector.at(advice["block"]), again.at(advice["block"]))
    prompts, block = prompted(parts[2].items), advice["block"]
    added = vector.scale(block, advice["dose"]) * vector.at(block)
    odds = steered_differences(loaded.model, prompts, {block: added[None]}).double().numpy()
    assert shares(odds).mean() == pytest.approx(advice["share"], abs=1e-5)
    with vector.applied(loaded.model, position="all"):
        everywhere = answer_differences(loaded.model, prompts).double().numpy()
    assert shares(everywhere).mean() == pytest.approx(advice["served"], abs=1e-5)
    before = answer_differences(loaded.model, prompts).double().numpy()
    assert shares(before).mean() == pytest.approx(advice["before"], abs=1e-5)


def test_no_larger_dose_that_was_tried_stays_within_the_cost(told):
    """The chosen dose is the best of those whose cost is clearly below the limit."""
    printed, _ = told
    (advice,) = printed["advice"]
    within = [row for row in printed["tried"] if row["block"] == advice["block"]]
    assert max(row["share"] for row in within) == pytest.approx(
        next(row["share"] for row in within if row["dose"] == advice["dose"])
    )
    chosen = next(row for row in within if row["dose"] == advice["dose"])
    assert chosen["cost_high"] is None or chosen["cost_high"] <= 0.1
    doses = printed["dose"]
    assert [row["dose"] for row in doses if row["chosen"]] == [advice["dose"]]
    costs = [row["cost"] for row in sorted(doses, key=lambda row: row["dose"])]
    assert costs == sorted(costs)
    assert all(row["nulls"] == 32 for row in doses)


def test_an_effect_that_saturates_has_a_smaller_dose(folder, loaded):
    """With a large dose the answer is certain with a null vector, too, and the lead is 0."""
    model = copy.deepcopy(loaded.model)
    with torch.no_grad():
        model.lm_head.weight.mul_(100)
    contrast = contrast_of(folder, loaded, "planted")

    def advice(doses):
        return frenet.steering_advice(
            model, contrast, loaded.tokenizer,
            rows=78, draws=DRAWS, doses=doses, max_cost=1e6, blocks=(0,),
        )  # fmt: skip

    certain = advice((6.0,))
    assert "dose 6, does not clearly exceed every null vector" in certain.answers[0].sentence
    assert "-> 1.00" in certain.answers[0].sentence
    assert advice((0.5, 6.0)).vector.advised == (0, 0.5)


def test_random_labels_have_no_dose(folder, loaded):
    found = advised(folder, loaded, "random")
    sentence = found.answers[0].sentence
    assert sentence.startswith("no dose: the best of those tried, block ")
    assert "does not clearly exceed every null vector" in sentence
    assert "does not know the labels" in sentence
    assert found.vector.advised is None


def test_a_cost_that_no_dose_keeps_is_said_and_a_dose_at_the_edge_too(folder, loaded):
    dear = advised(folder, loaded, "planted", max_cost=1e-9).answers
    assert len(dear) == 1
    assert "no dose: at every block that was tried the smallest dose, 0.1, may cost" in str(dear[0])
    edge = advised(folder, loaded, "planted", doses=(0.1,), blocks=(0,)).answers
    assert "the advised dose is the largest that was tried" in str(edge[1])


def test_the_answer_comes_first_and_the_run_can_be_read_and_repeated(folder, told, capsys):
    _, out = told
    assert recommend(folder, "planted", "--out", out) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("planted: block ")
    assert "largest of 32 null vectors" in lines[0]
    assert "the model knows the labels (separation" in lines[0]
    assert (out / "report.html").exists()
    run = read_run(out)
    repeated = command(run.config)
    assert repeated.startswith("frenet steer recommend --max-cost") or f"--rows {ROWS}" in repeated
    for figure in RECOMMEND.figures:
        rows = [row for row in run.rows if row["table"] == figure.table]
        assert figure.chart(rows).to_dict()["$schema"]


def test_tables_name_a_reference_for_every_measure():
    for table, columns in RECOMMEND.tables.items():
        roles = {column.name: column.role for column in columns}
        for column in columns:
            if column.role == "measure":
                assert roles[column.beside] in ("reference", "measure"), (table, column.name)


def test_the_advice_is_the_default_of_apply_and_export(folder, told, tmp_path, capsys):
    printed, out = told
    (advice,) = printed["advice"]
    vector, model = out / "vector.safetensors", folder / "model"
    asked = ("--model", model, "--prompt", "is it 3", "--tokens", "2", "--json")
    assert main(["steer", "apply", *map(str, (vector, *asked))]) == 0
    applied = json.loads(capsys.readouterr().out)
    assert (applied["block"], applied["norm"]) == (advice["block"], advice["stream_norm"])
    dose = advice["dose"]
    assert set(applied["results"][0]["texts"]) == {str(-dose), "0.0", str(dose)}
    scale = dose * advice["stream_norm"] / advice["vector_norm"]
    for layout, suffix in (("hotwire", "pt"), ("vllm-lens", "json"), ("easysteer", "gguf")):
        file = tmp_path / f"v.{suffix}"
        args = ("steer", "export", vector, "--out", file, "--layout", layout)
        assert main([*map(str, args)]) == 0
        said = capsys.readouterr().out
        assert str(file) in said
        assert f"block {advice['block']}, dose {dose:g}: scale {scale:.4g}"[:-1] in said


def test_from_python(folder, loaded, told):
    """The same numbers as the command's, and the vector with its advice."""
    printed, _ = told
    found = advised(folder, loaded, "planted")
    (advice,) = printed["advice"]
    assert found.vector.advised == (advice["block"], advice["dose"])
    assert found.answers[0].sentence == printed["answers"][0]["sentence"]
    assert repr(found).startswith("<SteeringAdvice: planted: block ")


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("pairs", (), "have no answer to push towards"),
        ("planted", ("--only", "gone"), "no contrast 'gone'; there are planted"),
        ("planted", ("--max-cost", "0"), "max_cost=0.0 leaves no dose"),
        ("planted", ("--doses", "-0.3", "0.3"), "name the other label as --positive"),
        ("planted", ("--blocks", "7"), "there is no block 7; this model has blocks 0 to 1"),
        ("planted", ("--rows", "2"), "rows=2; pass at least 4"),
        ("planted", ("--words", "y", "y n"), "pass two other words as --words"),
    ],
)
def test_mistakes_are_one_line(folder, tmp_path, capsys, name, args, words):
    positive = () if name != "pairs" else ("--positive", "")
    code = recommend(folder, name, "--out", tmp_path / "x", *args, *positive)
    err = capsys.readouterr().err
    assert code == 2
    assert words in err
    assert len([line for line in err.splitlines() if line.startswith("frenet: error")]) == 1


def test_several_contrasts_need_a_name(folder, tmp_path):
    with pytest.raises(ValueError, match="pass --only with one of planted, random"):
        RECOMMEND.cells(
            Config(
                model="m",
                tasks=(str(folder / "planted.jsonl"), str(folder / "random.jsonl")),
            )
        )


def test_blocks_and_doses_that_are_looked_at():
    """Every block is within half a spacing of one that is tried first; doses fill a factor."""
    for count in range(1, 70):
        blocks, step = spread(range(count))
        assert len(blocks) <= 8
        assert blocks[-1] == count - 1
        assert blocks[0] < step
    assert between(0.2, 0.28) == [0.2, 0.218, 0.237, 0.257]
    assert halved((0.1, 0.2, 0.4), 0.1) == []
    assert halved((0.4, 0.1, 0.2), 0.8) == [0.4, 0.2, 0.1]
