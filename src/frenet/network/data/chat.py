"""Chat templates: conversations in the format of an instruct model's training."""

from collections.abc import Mapping, Sequence
from typing import Any

from frenet._errors import UsageError
from frenet.network.data.files import shown

Message = dict[str, str]
# Names of the roles in files of other tools.
_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}


def messages_of(value: Any) -> list[Message]:
    """A conversation in the form for chat templates.

    Args:
        value: a list of objects with role and content, or with from and value.

    Raises:
        ValueError: it is not such a list, or the content of a message is no text.
    """
    if not isinstance(value, list) or not value or not all(isinstance(m, dict) for m in value):
        raise UsageError(f"'messages' is {shown(value)}; pass a list of messages")
    messages = []
    for number, message in enumerate(value, start=1):
        role = message.get("role", message.get("from"))
        content = message.get("content", message.get("value"))
        if isinstance(content, list) and all(
            isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
        ):
            content = "".join(part["text"] for part in content)
        if not isinstance(role, str) or not isinstance(content, str):
            raise UsageError(
                f"message {number} has the role {shown(role)} and the content {shown(content)}; "
                "both have to be text"
            )
        role = _ROLES.get(role.strip().lower(), role.strip())
        messages.append({"role": role, "content": content})
    return messages


def turns(tokenizer: Any, messages: Sequence[Message], *, first: int = 0) -> list[tuple[str, str]]:
    """The text before each turn of the assistant, and the turn with its end.

    All texts start with the text before the first turn. Turns before the message ``first`` are
    context only.

    Raises:
        ValueError: there is no such turn, or the template changes its text.
    """
    places = [i for i, m in enumerate(messages) if m["role"] == "assistant" and i >= first]
    if not places:
        roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
        raise UsageError(f"no message has the role assistant, the only one scored; roles: {roles}")
    return [_turn(tokenizer, messages[:i], messages[i]["content"]) for i in places]


def asked(tokenizer: Any, prompt: str, system: str = "") -> str:
    """A prompt as the user's turn, up to the start of the assistant's turn."""
    return _written(tokenizer, _user(prompt, system), opened=True)


def opened(tokenizer: Any, prompt: str, system: str = "") -> str:
    """The same, with the white space that the template writes before the assistant's text."""
    start = asked(tokenizer, prompt, system)
    both = [*_user(prompt, system), {"role": "assistant", "content": "x"}]
    rest = _written(tokenizer, both).removeprefix(start)
    space = rest[: len(rest) - len(rest.lstrip())]
    return start + space if rest[len(space) :].startswith("x") else start


def answered(tokenizer: Any, prompt: str, completion: str, system: str = "") -> tuple[str, str]:
    """A prompt as the user's turn, and the completion as the assistant's turn with its end."""
    return _turn(tokenizer, _user(prompt, system), completion.strip())


def _user(prompt: str, system: str) -> list[Message]:
    before = [{"role": "system", "content": system}] if system.strip() else []
    return [*before, {"role": "user", "content": prompt}]


def _turn(tokenizer: Any, before: Sequence[Message], content: str) -> tuple[str, str]:
    """The text before a turn of the assistant, and the turn up to its end.

    The template writes both. White space after the end of the turn is left out, because the
    assistant does not generate it.
    """
    if not content.strip():
        raise UsageError("a message of the assistant is blank; there is nothing to score")
    whole = _written(tokenizer, [*before, {"role": "assistant", "content": content}])
    start = _written(tokenizer, before, opened=True) if before else ""
    if not (start and whole.startswith(start)):
        # Some templates open a turn differently if it is still to be generated.
        place = whole.rfind(content.strip())
        start = whole[: max(place, 0)]
    turn = whole[len(start) :]
    if content.strip() not in turn:
        raise UsageError(
            f"the chat template changes the message {shown(content)}, so its tokens cannot be "
            "identified"
        )
    ended = turn.rstrip()
    return start, turn if ended.endswith(content.strip()) else ended


def _written(tokenizer: Any, messages: Sequence[Message], *, opened: bool = False) -> str:
    """The text that the chat template writes.

    Raises:
        ValueError: there is no template, or it refuses the messages.
    """
    from jinja2 import TemplateError

    if getattr(tokenizer, "chat_template", None) is None:
        raise UsageError(
            "this model's tokenizer has no chat template, which --chat and rows of messages need; "
            "use an instruct model. Otherwise read rows of prompt and response with --columns "
            "prompt=prompt completion=response, omit --chat for other rows, and rewrite messages "
            "as a prompt and a completion"
        )
    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=opened
            )
        )
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise UsageError(f"the chat template refuses the messages: {error}") from None


def system_of(row: Mapping[str, Any]) -> str:
    """The system message of a row, or "".

    Raises:
        ValueError: it is no text.
    """
    value = row.get("system")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UsageError(f"'system' is {shown(value)}; pass text")
    return value
