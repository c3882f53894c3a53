"""Prompts and completions as tokens: the same for every tokenizer, and whoever asks."""

import json

import pytest
import torch
from models import byte_tokenizer, tiny_gpt2, tiny_llama, tiny_tokenizer
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as pieces
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from frenet.network.data.contrasts import contrasts
from frenet.network.data.files import RowError
from frenet.network.data.text import text_tasks
from frenet.network.data.tokens import Encoded, encode, join, of_one_prompt, text_ids
from frenet.network.limits import context_length

TEXTS = [
    "the cat sat: yes", "is it true? no", "Answer: (A)", "12 and 34\nunhappy", "aé bÉ",
    *(f"is it {i}? {i}" for i in range(10)),
] * 20  # fmt: skip
SPECIAL = ["<unk>", "<s>", "</s>", "<|turn|>"]
PAIRS = [
    ("is it true?", "yes"), ("is it true? ", "yes"), ("un", "happy"), ("the cat:\n", "12"),
    ("it ", "  no"), ("Answer:", "(A)"), ("ﬁ é", "É"), ("e", "\u0301 it"), ("a<|turn|>\n", "yes"),
]  # fmt: skip


def framed(tokenizer, lead, tail):
    """The tokenizer with what it writes before and behind a text."""
    used = [(token, tokenizer.token_to_id(token)) for token in {*lead, *tail}]
    if used:
        template = [*lead, "$A", *tail]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=used
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>",
        bos_token="<s>" if "<s>" in lead else None, additional_special_tokens=["<|turn|>"],
    )  # fmt: skip


def byte_level(lead=(), tail=()):
    """GPT-2's and Llama-3's kind; offsets leave the space before a word out, as GPT-2's do."""
    tokenizer = Tokenizer(pieces.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return framed(tokenizer, lead, tail)


def unigram(lead=("<s>",), tail=()):
    """Sentencepiece's kind: a mark for the space before a word, and a normaliser."""
    tokenizer = Tokenizer(pieces.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=80, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return framed(tokenizer, lead, tail)


def word_pieces():
    """BERT's kind: no case, no spaces, its own names for beginning and end."""
    tokenizer = Tokenizer(pieces.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=100, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return framed(tokenizer, ("<|turn|>",), ("</s>",))


class Slow:
    """A tokenizer without offsets."""

    def __init__(self, fast):
        self.fast, self.bos_token_id = fast, fast.bos_token_id
        self.all_special_ids = fast.all_special_ids

    def __call__(self, text, *, add_special_tokens, **_):
        return self.fast(text, add_special_tokens=add_special_tokens)


BOTH = ("<s>",), ("</s>",)
TOKENIZERS = {
    "characters": lambda: (tiny_tokenizer(), [], []),
    "characters, begun": lambda: (tiny_tokenizer(bos=True), ["<eos>"], []),
    "bytes": lambda: (byte_level(), [], []),
    "bytes, ended": lambda: (byte_level(tail=("</s>",)), [], ["</s>"]),
    "bytes, begun and ended": lambda: (byte_level(*BOTH), *map(list, BOTH)),
    "bytes, two tokens before": lambda: (byte_level(("<|turn|>", "<s>")), ["<|turn|>", "<s>"], []),
    "sentencepiece": lambda: (unigram(), ["<s>"], []),
    "sentencepiece, ended": lambda: (unigram(*BOTH), *map(list, BOTH)),
    "word pieces": lambda: (word_pieces(), ["<|turn|>"], ["</s>"]),
    "slow": lambda: (Slow(unigram()), ["<s>"], []),
    "slow, begun and ended": lambda: (Slow(byte_level(*BOTH)), *map(list, BOTH)),
    "ByT5": lambda: (ByT5Tokenizer(), [], ["</s>"]),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def framing(request):
    """A tokenizer, and the ids that it writes before and behind a text."""
    tokenizer, lead, tail = TOKENIZERS[request.param]()
    named = getattr(tokenizer, "fast", tokenizer)
    return tokenizer, *(named.convert_tokens_to_ids(list(part)) for part in (lead, tail))


def written(tokenizer, text):
    """What the tokenizer itself makes of a text."""
    return list(tokenizer(text, add_special_tokens=True)["input_ids"])


@pytest.mark.parametrize("pair", PAIRS)
def test_both_parts_are_the_whole_text_as_the_tokenizer_writes_it(framing, pair):
    tokenizer, lead, tail = framing
    (found,) = encode(tokenizer, [pair], max_length=99)
    (answer,) = encode(tokenizer, [pair], max_length=99, end=False)
    whole = written(tokenizer, join(*pair))
    assert found.context + found.target == whole
    assert answer.context + answer.target + tail == whole
    assert whole[: len(lead)] == found.context[: len(lead)] == lead
    assert answer.context == found.context


@pytest.mark.parametrize("pair", PAIRS)
def test_the_context_is_the_prompt_as_it_is_read_alone_unless_the_join_is_lost(framing, pair):
    tokenizer, _, tail = framing
    (found,) = encode(tokenizer, [pair], max_length=99)
    (prompt,) = text_ids(tokenizer, [pair[0]])
    assert prompt + tail == written(tokenizer, pair[0])
    start = (found.context + found.target)[: len(prompt)]
    assert found.spans_join == (start != prompt)
    if not found.spans_join:
        assert found.context == prompt
    else:
        # What both agree in is context; the token that holds the join is scored.
        agree = len(found.context)
        assert found.context == prompt[:agree]
        assert found.target[0] != prompt[agree]


def test_some_joins_are_lost_and_most_are_not():
    """So that neither branch above is empty: a byte-level word takes the space before it."""
    tokenizer = byte_level()
    (kept,), (lost,) = (encode(tokenizer, [pair], max_length=99) for pair in PAIRS[:2])
    assert (kept.spans_join, lost.spans_join) == (False, True)
    assert kept[:2] == lost[:2]


@pytest.mark.parametrize("spelled", ["<s>", "<s><s>", "<|turn|><s>"])
def test_a_beginning_that_the_text_spells_out_is_there_once(spelled):
    for tokenizer in (byte_level(("<s>",)), unigram(), Slow(byte_level(*BOTH)), byte_level()):
        if spelled == "<|turn|><s>":
            tokenizer = byte_level(("<|turn|>", "<s>"))
        (plain,) = text_ids(tokenizer, ["<s>it is"])
        (found,) = text_ids(tokenizer, [f"{spelled}it is"])
        (pair,) = encode(tokenizer, [(f"{spelled}it is", "yes")], max_length=99)
        begin = getattr(tokenizer, "fast", tokenizer).convert_tokens_to_ids("<s>")
        assert found.count(begin) == 1 or tokenizer.bos_token_id is None
        assert pair.context == found
        if tokenizer.bos_token_id is not None:
            assert found == plain


def test_an_end_that_the_completion_spells_out_is_there_once():
    for tokenizer in (byte_level(*BOTH), unigram(*BOTH), Slow(byte_level(*BOTH))):
        found, plain = (
            encode(tokenizer, [("is it?", answer)], max_length=99)[0]
            for answer in ("yes</s>", "yes")
        )
        assert found[:2] == plain[:2]
        end = getattr(tokenizer, "fast", tokenizer).eos_token_id
        assert found.target.count(end) == 1
        # An end within a prompt is the text's own.
        (shot,) = encode(tokenizer, [("a: b</s>", "c")], max_length=99)
        assert (shot.context.count(end), shot.target.count(end)) == (1, 1)


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_a_prompt_is_cut_behind_all_that_the_tokenizer_writes_before_it(cut):
    tokenizer = byte_level(("<|turn|>", "<s>"), ("</s>",))
    pair = ("xyz 123: the cat sat", "yes")
    (whole,) = encode(tokenizer, [pair], max_length=99)
    length = len(whole.context) + len(whole.target)
    (found,) = encode(tokenizer, [pair], max_length=length - cut)
    assert found.context == whole.context[:2] + whole.context[2 + cut :]
    assert (found.target, found.cut) == (whole.target, cut)


def test_completions_without_a_token_are_refused():
    for tokenizer in (byte_level(), unigram(*BOTH), word_pieces(), ByT5Tokenizer()):
        (empty,) = encode(tokenizer, [("is it?", "")], max_length=99)
        assert empty == "the completion has no tokens"
    assert isinstance(encode(word_pieces(), [("is it?", " ")], max_length=99)[0], str)
    # To this one a space is a token.
    (space,) = encode(byte_level(), [("is it?", " ")], max_length=99)
    assert byte_level().convert_ids_to_tokens(space.target) == ["Ġ"]


def test_completions_of_one_prompt_are_given_the_same_of_it():
    tokenizer = byte_level(*BOTH)
    pairs = [("xyz 123: the cat sat", answer) for answer in ("yes", "xyz")]
    whole, other = encode(tokenizer, pairs, max_length=99)
    room = len(whole.context) - 2 + len(other.target)
    short, long = of_one_prompt(encode(tokenizer, pairs, max_length=room))
    assert 0 < len(long.context) == len(short.context) < len(whole.context)
    assert short.context == long.context == whole.context[:1] + whole.context[1 + short.cut :]
    assert short.cut == long.cut == 2
    apart = [Encoded([1, 2, 3], [4]), Encoded([1, 3, 2, 9], [4])]
    assert of_one_prompt(apart) == apart


# Whoever asks


def save(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def labelled(n=8, prompt="is it {}?", labels=("yes", "no")):
    return [{"prompt": prompt.format(i), "label": labels[i % 2]} for i in range(n)]


@pytest.mark.parametrize("tokenizer", [byte_level(*BOTH), unigram(*BOTH), word_pieces()])
def test_tasks_label_scores_and_contrasts_read_a_prompt_alike(tmp_path, monkeypatch, tokenizer):
    path = save(tmp_path / "a.jsonl", labelled())
    task = text_tasks(path, tokenizer, max_length=64)["a"]
    contrast = contrasts(path, tokenizer, max_length=64)["a"]
    asked = []

    def look(model, items, **_):
        asked.extend(items)
        return torch.zeros(len(items))

    monkeypatch.setattr("frenet.network.data.text.continuation_log_probabilities", look)
    examples = [row for rows in task.examples.values() for row in rows]
    task.label_scores(torch.nn.Linear(1, 1), [row.prompt for row in examples])
    tail = [tokenizer.eos_token_id]
    for i, row in enumerate(examples):
        (prompt,) = text_ids(tokenizer, [row.prompt])
        (item,) = (item for item in contrast.items if item.line == row.line)
        scores = dict(zip(task.labels, asked[2 * i : 2 * i + 2], strict=True))
        assert prompt == row.encoded.context == item.context[: len(prompt)]
        # The token of a space before both answers is read with the prompt.
        first, second = item.both_answers()
        assert (item.context + first, item.context + second) == item.sides
        assert first[0] != second[0]
        assert {tuple(score.context) for score in scores.values()} == {tuple(prompt)}
        # As a training text the answer ends; as the place where an answer is read it does not.
        assert scores[row.completion].target == row.encoded.target
        side = item.sides[0 if row.completion == contrast.words[0] else 1]
        assert side + tail == row.encoded.context + row.encoded.target
        assert tail[0] not in side


def test_a_model_that_ends_its_texts_answers_with_one_token(tmp_path):
    """The end behind both answers is no answer."""
    path = save(tmp_path / "a.jsonl", labelled())
    tokenizer = byte_level(*BOTH)
    (found,) = contrasts(path, tokenizer, max_length=64).values()
    words = tokenizer.convert_tokens_to_ids(["Ġyes", "Ġno"])
    assert all(item.both_answers() == ([words[0]], [words[1]]) for item in found.items)
    pairs = save(tmp_path / "p.jsonl", [{"positive": "it is", "negative": f"no{i}"} for i in "12"])
    (found,) = contrasts(pairs, tokenizer, max_length=64).values()
    assert found.items[0].sides[0] == written(tokenizer, "it is")[:-1]


def test_label_scores_of_a_cut_prompt_by_hand(tmp_path):
    """Both labels after the same rest of the prompt, each to its end."""
    rows = labelled(labels=("a", "a b c"))
    tokenizer, model = tiny_tokenizer(bos=True), tiny_gpt2()
    task = text_tasks(save(tmp_path / "a.jsonl", rows), tokenizer, max_length=12)["a"]
    with pytest.warns(RuntimeWarning, match="1 of 2 prompts are too long for max_length=12"):
        found = task.label_scores(model, ["is it so or not?", "is"])
    prompt = tokenizer("is it so or not?")["input_ids"]
    for j, label in enumerate(("a", "a b c")):
        target = tokenizer(f" {label}", add_special_tokens=False)["input_ids"]
        # The longer label, of 6 tokens, leaves 6: the beginning and the prompt's last 5.
        ids = torch.tensor([prompt[:1] + prompt[-5:] + target])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        by_hand = logits.gather(1, ids[0, 1:, None])[-len(target) :].sum()
        assert float(found[0, j]) == pytest.approx(float(by_hand), abs=1e-5)


# What is said


def notes(tmp_path, rows, tokenizer):
    path = save(tmp_path / "a.jsonl", rows)
    task = text_tasks(path, tokenizer, max_length=64)["a"]
    return task.notes, contrasts(path, tokenizer, max_length=64)["a"].notes


def test_a_lost_join_is_said_with_an_example_though_offsets_hide_it(tmp_path):
    rows = labelled()
    assert not any("spans" in note for part in notes(tmp_path, rows, byte_level()) for note in part)
    rows[1]["prompt"] += " "
    tasks, contrast = notes(tmp_path, rows, byte_level())
    (said,) = [note for note in tasks if "spans" in note]
    assert "in 1 of" in said
    assert "'Ġno' in line 2" in said
    (said,) = [note for note in contrast if "spans" in note]
    assert said.startswith("a: in 1 of 8 prompts")
    assert "in line 2" in said


READ = ("columns read: prompt, label",)


def test_special_tokens_in_a_text_are_said_with_an_example(tmp_path):
    rows = labelled(prompt="<s>is it {}?")
    # The beginning is the tokenizer's own; nothing else is special.
    assert notes(tmp_path, rows, byte_level(*BOTH))[1] == READ
    rows[4]["prompt"] = "so<|turn|>\nis it?"
    tasks, contrast = notes(tmp_path, rows, byte_level(*BOTH))
    for part in (tasks, contrast):
        (said,) = [note for note in part if "special" in note]
        assert "in 1 of" in said
        assert "'<|turn|>' in line 5" in said
    # Characters that a tokenizer does not know are no special token.
    assert notes(tmp_path, labelled(prompt="is it 語 {}?"), unigram())[1] == READ


def test_answers_that_a_tokenizer_cannot_tell_apart_are_refused(tmp_path):
    """Without accents, or as two characters that are both unknown."""
    for tokenizer, labels in ((word_pieces(), ("Café", "cafe")), (unigram(), ("語", "文"))):
        path = save(tmp_path / "a.jsonl", labelled(labels=labels))
        with pytest.raises(ValueError, match=f"{labels[1]}.* are the same tokens"):
            text_tasks(path, tokenizer, max_length=64)
        with pytest.raises(RowError, match=r"line 1: .* are the same tokens"):
            contrasts(path, tokenizer, max_length=64)
        pair = {"positive": labels[0], "negative": labels[1]}
        path = save(tmp_path / "p.jsonl", [pair, {"positive": "a", "negative": "b"}])
        with pytest.raises(RowError, match=r"line 1: .* are the same tokens"):
            contrasts(path, tokenizer, max_length=64)


# Texts that are longer than the model reads


def test_the_context_length_is_that_of_the_text_model():
    model = tiny_llama()
    assert (context_length(tiny_gpt2()), context_length(model)) == (32, 64)

    class Both:
        """As of a model that also sees."""

        def get_text_config(self):
            return model.config

    assert context_length(type("Seeing", (), {"config": Both()})()) == 64
    assert context_length(torch.nn.Linear(1, 1)) is None


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_rows_that_are_longer_than_the_model_reads_are_refused(tmp_path, make):
    """Learned positions fail in torch; rotary ones give numbers for what was never trained."""
    model = make()
    room = context_length(model)
    rows = [{"prompt": c * room, "completion": "b" * (1 + i)} for i, c in enumerate("acd")]
    path = save(tmp_path / "a.jsonl", rows)
    fits = text_tasks(path, tiny_tokenizer(), max_length=room)["a"]
    assert any("rows cut" in note for note in fits.notes)
    assert fits.loss(model, next(fits.batches("train", 1, 0))).isfinite()
    longer = text_tasks(path, tiny_tokenizer(), max_length=2 * room)["a"]
    with pytest.raises(ValueError, match=f"longer than the {room} .*max_length={room} or less"):
        longer.loss(model, next(longer.batches("train", 1, 0)))


def test_a_word_and_the_space_before_it_are_one_token_to_gpt2():
    """The tokenizer of the other tests has the same offsets as this older one."""
    (found,) = encode(byte_tokenizer(), [("a: ", "yes")], max_length=32)
    assert found.spans_join
    assert byte_tokenizer().convert_ids_to_tokens(found.target) == ["Ġyes"]
