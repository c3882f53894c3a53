"""Chat templates: conversations as the text that an instruct model was trained on."""

from collections.abc import Mapping, Sequence
from typing import Any

from frenet._errors import UsageError
from frenet.network.data.files import shown

Message = dict[str, str]
# Names of the roles in rows of other tools.
_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}


def messages_of(value: Any) -> list[Message]:
    """A conversation as chat templates take it.

    Args:
        value: a list of objects with role and content, or with from and value.

    Raises:
        ValueError: it is none, or the content of a message is no text.
    """
    if not isinstance(value, list) or not value or not all(isinstance(m, dict) for m in value):
        raise UsageError(f"'messages' is {shown(value)}; a list of messages is needed")
    found = []
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
        found.append({"role": _ROLES.get(role.strip().lower(), role.strip()), "content": content})
    return found


def turns(tokenizer: Any, messages: Sequence[Message], *, first: int = 0) -> list[tuple[str, str]]:
    """What stands before each turn of the assistant, and the turn with its end.

    The text before the first one is the beginning of every other. Turns before the message
    ``first`` are only read.

    Raises:
        ValueError: there is no such turn, or the template does not write it as it is.
    """
    places = [i for i, m in enumerate(messages) if m["role"] == "assistant" and i >= first]
    if not places:
        roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
        raise UsageError(f"no message has the role assistant, which is scored; roles are {roles}")
    return [_turn(tokenizer, messages[:i], messages[i]["content"]) for i in places]


def asked(tokenizer: Any, prompt: str, system: str = "") -> str:
    """A prompt as the user's turn, up to where the assistant begins."""
    return _written(tokenizer, _user(prompt, system), opened=True)


def opened(tokenizer: Any, prompt: str, system: str = "") -> str:
    """The same, with the white space that the template writes before what the assistant says."""
    start = asked(tokenizer, prompt, system)
    said = [*_user(prompt, system), {"role": "assistant", "content": "x"}]
    rest = _written(tokenizer, said).removeprefix(start)
    space = rest[: len(rest) - len(rest.lstrip())]
    return start + space if rest[len(space) :].startswith("x") else start


def answered(tokenizer: Any, prompt: str, completion: str, system: str = "") -> tuple[str, str]:
    """A prompt as the user's turn, and the completion as the assistant's with its end."""
    return _turn(tokenizer, _user(prompt, system), completion.strip())


def _user(prompt: str, system: str) -> list[Message]:
    before = [{"role": "system", "content": system}] if system.strip() else []
    return [*before, {"role": "user", "content": prompt}]


def _turn(tokenizer: Any, before: Sequence[Message], content: str) -> tuple[str, str]:
    """The text before a turn of the assistant, and the turn up to its end.

    The template writes the whole. White space behind the end of the turn, which the assistant does
    not say, is left out.
    """
    if not content.strip():
        raise UsageError("a message of the assistant is blank, so that there is nothing to score")
    whole = _written(tokenizer, [*before, {"role": "assistant", "content": content}])
    start = _written(tokenizer, before, opened=True) if before else ""
    if not (start and whole.startswith(start)):
        # Some templates open a turn that is to be generated otherwise than one that is there.
        place = whole.rfind(content.strip())
        start = whole[: max(place, 0)]
    said = whole[len(start) :]
    if content.strip() not in said:
        raise UsageError(
            f"the chat template does not write the message {shown(content)} as it is, so that its "
            "tokens cannot be told from the others"
        )
    ended = said.rstrip()
    return start, said if ended.endswith(content.strip()) else ended


def _written(tokenizer: Any, messages: Sequence[Message], *, opened: bool = False) -> str:
    """What the chat template writes.

    Raises:
        ValueError: there is none, or it refuses the messages.
    """
    from jinja2 import TemplateError

    if getattr(tokenizer, "chat_template", None) is None:
        raise UsageError(
            "this model's tokenizer has no chat template, which --chat and rows of messages need; "
            "use an instruct model. Without one, rows of prompt and response are read with "
            "--columns prompt=prompt completion=response, others without --chat; messages have "
            "to be written as a prompt and a completion first"
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
    """The system message of a row, or nothing.

    Raises:
        ValueError: it is no text.
    """
    value = row.get("system")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UsageError(f"'system' is {shown(value)}; text is needed")
    return value
