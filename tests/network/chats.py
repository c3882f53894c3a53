"""Tiny tokenizers with the chat templates of real families, and what they write."""

from tokenizers import Tokenizer, decoders, models, processors
from transformers import PreTrainedTokenizerFast

# Shortened, not changed in what they write around a message.
TEMPLATES = {
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|stop|>\n\n"
        "{{ m.content | trim }}<|eot|>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant<|stop|>\n\n{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
        "{{ raise_exception('only user and assistant') }}{% elif m.role == 'user' %}"
        "[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
    ),
    # No space behind the prompt, and a beginning of the turn that only generation has.
    "thinking": (
        "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}{% else %}"
        "<|bot|>{{ m.content }}</s>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|bot|><think>{% endif %}"
    ),
}
SPECIAL = (
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|stop|>", "<|eot|>", "[INST]",
    "[/INST]", "<|user|>", "<|bot|>", "<think>",
)  # fmt: skip


def chat_tokenizer(template: str | None, *, begins: bool = True) -> PreTrainedTokenizerFast:
    """One token a character, and one for each special text; writes <s> before a text."""
    signs = [*SPECIAL, "<unk>", *(chr(i) for i in range(32, 127)), "\n"]
    made = Tokenizer(
        models.BPE(vocab={s: i for i, s in enumerate(signs)}, merges=[], unk_token="<unk>")
    )
    made.decoder = decoders.Fuse()
    if begins:
        made.post_processor = processors.TemplateProcessing(
            single=["<s>", "$A"], special_tokens=[("<s>", 0)]
        )
    found = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=list(SPECIAL[2:]),
    )  # fmt: skip
    found.chat_template = template and TEMPLATES[template]
    return found
