"""Write the contrasts of the declared runs on pretrained models, from a folder of sample data.

    python docs/contrasts.py DATA contrasts.jsonl

DATA has sentiment_uci, tatoeba_en_fr, truth_statements and boolq_400 as JSON lines. Every row of
the result has task, prompt and label, so that one file holds contrasts with prompts of their own.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

YES_NO = ("No", "Yes")


def rows(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Task, prompt and label of every row."""
    for row in _read(folder, "sentiment_uci"):
        yield "sentiment", f"Review: {row['text']}\nSentiment:", row["label"]
    # Every other sentence in each language, so that no sentence comes with its translation.
    for i, row in enumerate(_read(folder, "tatoeba_en_fr")):
        code, language = (("fr", "French"), ("en", "English"))[i % 2]
        yield "language", f"Sentence: {row[code]}\nLanguage:", language
    for row in _read(folder, "truth_statements"):
        prompt = f"Question: Is the following statement true? {row['statement']}\nAnswer:"
        yield row["dataset"], prompt, YES_NO[row["label"]]
    for row in _read(folder, "boolq_400"):
        prompt = f"{row['passage']}\nQuestion: {row['question']}\nAnswer:"
        yield "boolq", prompt, YES_NO[row["answer"]]


def _read(folder: Path, name: str) -> Iterator[dict[str, object]]:
    with (folder / f"{name}.jsonl").open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


if __name__ == "__main__":
    data, out = map(Path, sys.argv[1:])
    made = (dict(zip(("task", "prompt", "label"), row, strict=True)) for row in rows(data))
    text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in made)
    out.write_text(text, encoding="utf-8", newline="\n")
