"""Tiny networks and tokenizers with random weights, built in code: no download, no files."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from frenet.methods.task_vectors import TaskVector
from frenet.network.checkpoints.tensor_files import digest
from frenet.network.space import ParamSpace

CHARACTERS = "abcdefghijklmnopqrstuvwxyzA0123456789 .,:?!-'\n()"
VOCABULARY = 64
EOS = VOCABULARY - 1


def tiny_gpt2(seed: int = 0) -> GPT2LMHeadModel:
    """GPT-2 with 11,408 parameters: 3 blocks of width 16, 32 positions, tied head, dropout 0.1."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=32,
        n_embd=16,
        n_layer=3,
        n_head=2,
        resid_pdrop=0.1,
        embd_pdrop=0.1,
        attn_pdrop=0.1,
        initializer_range=0.2,
        bos_token_id=EOS,
        eos_token_id=EOS,
    )
    return _seeded(GPT2LMHeadModel, config, seed)


def tiny_qwen2(seed: int = 0) -> Qwen2ForCausalLM:
    """Qwen2 with grouped keys and values and a tied head: 3 blocks of width 16."""
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=EOS,
        eos_token_id=EOS,
    )
    return _seeded(Qwen2ForCausalLM, config, seed)


def tiny_llama(seed: int = 0, *, vocabulary: int = VOCABULARY, width: int = 16) -> LlamaForCausalLM:
    """Llama with an untied head: 2 blocks."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
    )
    return _seeded(LlamaForCausalLM, config, seed)


def tiny_bloom(seed: int = 0) -> BloomForCausalLM:
    """Positions as biases of the attention (ALiBi), a row for each row and head: 2 blocks."""
    config = BloomConfig(
        vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2, initializer_range=0.2
    )
    return _seeded(BloomForCausalLM, config, seed)


def tiny_mamba(seed: int = 0) -> MambaForCausalLM:
    """Recurrent, with a state in place of keys and values: 2 blocks."""
    config = MambaConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4,
        initializer_range=0.2, eos_token_id=EOS,
    )  # fmt: skip
    return _seeded(MambaForCausalLM, config, seed)


def tiny_lfm2(seed: int = 0) -> Lfm2ForCausalLM:
    """A short convolution, whose state is kept, and a block of attention."""
    config = Lfm2Config(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, layer_types=["conv", "full_attention"],
        initializer_range=0.2,
    )  # fmt: skip
    return _seeded(Lfm2ForCausalLM, config, seed)


def tiny_gemma2(seed: int = 0) -> Gemma2ForCausalLM:
    """A window of 3 tokens in the first of 2 blocks, and capped logits."""
    config = Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, sliding_window=3,
        layer_types=["sliding_attention", "full_attention"], initializer_range=0.2,
    )  # fmt: skip
    return _seeded(Gemma2ForCausalLM, config, seed)


def tiny_mistral(seed: int = 0) -> MistralForCausalLM:
    """A window of 3 tokens in both blocks."""
    config = MistralConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, sliding_window=3, initializer_range=0.2,
    )  # fmt: skip
    return _seeded(MistralForCausalLM, config, seed)


def tiny_mixtral(seed: int = 0) -> MixtralForCausalLM:
    """A mixture of 4 experts, of which every token has 2: 2 blocks."""
    config = MixtralConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2,
        initializer_range=0.2,
    )  # fmt: skip
    return _seeded(MixtralForCausalLM, config, seed)


def tiny_falcon(seed: int = 0) -> FalconForCausalLM:
    """Positions as biases that are added to the mask (ALiBi): 2 blocks."""
    config = FalconConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        alibi=True, initializer_range=0.2,
        bos_token_id=EOS, eos_token_id=EOS,
    )  # fmt: skip
    return _seeded(FalconForCausalLM, config, seed)


# What these keep of the past, or hand to their blocks, is more than keys and values.
OTHERS = {"bloom": tiny_bloom, "mamba": tiny_mamba, "lfm2": tiny_lfm2, "gemma2": tiny_gemma2}


def tiny_tokenizer(*merges: str, bos: bool = False) -> PreTrainedTokenizerFast:
    """A token for each character, and for each merge of two of them; 64 tokens, no pad token.

    Merges may cross spaces. With ``bos`` the last token is put before every text.
    """
    pieces = ["<unk>", *CHARACTERS, *merges]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    pairs = [(merge[:-1], merge[-1]) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    filler = [f"<unused{i}>" for i in range(len(pieces), EOS)]
    tokenizer.add_tokens(filler)
    tokenizer.add_special_tokens(["<eos>"])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<eos> $A", special_tokens=[("<eos>", EOS)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<eos>", eos_token="<eos>"
    )


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, as GPT-2's: offsets leave the leading space of a token out."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate([*alphabet, "Ġy", "Ġye", "Ġyes"])}
    merges = [("Ġ", "y"), ("Ġy", "e"), ("Ġye", "s")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def _seeded(kind, config, seed):
    """The model with the weights of ``seed``; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config).eval()


def difference(base, tuned):
    """The task vector from one model in memory to another."""
    space = ParamSpace.select(base, lambda _, p: p.is_floating_point())
    parts = space.unflatten(space.read(tuned) - space.read(base))
    shapes = dict(zip(space.names, space.shapes, strict=True))
    own = dict(base.named_parameters())
    return TaskVector(shapes, parts.__getitem__, "difference", digest(shapes, own.__getitem__))
