"""Any text to any terminal, pipe and code page: nothing is obeyed, and nothing is lost."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from frenet._notebook import LONGEST_MESSAGE, one_line, shortened
from frenet.cli import explain, main
from frenet.cli.codes import DONE, MISTAKE, NO_RESULT, TERMINATED
from frenet.cli.options import printing
from frenet.cli.steer import _texts
from frenet.cli.streams import OutputLostError, Stream, Tamed, standard_streams
from frenet.network.data.text import task_names

# A title of the window, a bell, a colour, a NUL, line ends, right-to-left, C1 codes and line
# separators; after each a sign that stays.
HOSTILE = (
    "a\x1b]0;t\x07b\x1b[31mc\x00d\nfrenet: error: forged\re\u202ef\x9b2Jg\u2028h\u200fi\ud800j\x7fk"
)
OBEYED = set("\x1b\x07\x00\r\u202e\x9b\u2028\u200f\ud800\x7f")
ROOT = Path(__file__).resolve().parents[1]


def said(*args):
    """Exit code and all that a command prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        code = main(list(args))
    return code, text.getvalue()


def test_whatever_a_terminal_obeys_is_written_out():
    line = one_line(HOSTILE)
    assert line == (
        "a\\x1b]0;t\\x07b\\x1b[31mc\\x00d\\nfrenet: error: forged\\re\\u202ef\\x9b2Jg\\u2028h"
        "\\u200fi\\ud800j\\x7fk"
    )
    for plain in (
        "caf\u00e9 \u6a21\u578b",
        "\U0001f469\u200d\U0001f4bb",
        "\u0645\u0647\u0645\u0629",
        "a\\b",
    ):
        assert one_line(plain) == plain


def test_long_texts_that_differ_stay_different():
    texts = ["x" * 10**6, "x" * 5000 + "y" + "x" * (10**6 - 5001), "x" * 999_999]
    found = [shortened(text) for text in texts]
    assert len(set(found)) == 3
    assert all(len(text) < LONGEST_MESSAGE for text in found)
    assert "(1,000,000 characters, " in found[0]


def task_file(folder, name, count=12):
    path = folder / "tasks.jsonl"
    rows = ({"task": f"{name}{i % 2}", "input": f"x{i}", "output": "y"} for i in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    "args",
    [
        (HOSTILE,),
        ("run", HOSTILE),
        ("run", "gradient-rank", "--preset", HOSTILE),
        ("run", "gradient-rank", f"--{HOSTILE}"),
        ("search", "--seed", HOSTILE),
        ("report", HOSTILE),
        ("steer", HOSTILE),
        ("steer", "compare", HOSTILE.replace("\ud800", ""), "b"),
        ("convert", HOSTILE.replace("\ud800", "") + ".gguf"),
    ],
)
def test_messages_show_hostile_text_and_obey_none_of_it(args):
    code, text = said(*args)
    assert code == MISTAKE
    assert not OBEYED & set(text)
    assert "\nfrenet: error: forged" not in text
    assert "\\x1b" in text or "--help" in text


def test_names_of_a_file_are_text_in_the_message_that_lists_them(tmp_path, shared):
    model = shared / "models" / "stories260K"
    name = HOSTILE.replace("\ud800", "")
    code, text = said(
        "search", "--model", str(model), "--tasks", task_file(tmp_path, name), "--plan"
    )
    assert code == MISTAKE
    assert "pass --only with one of a\\x1b]0;t" in text
    assert not OBEYED & set(text)
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("run", "gradient-rank", "--out", "a\0b"), "a\\x00b holds a NUL character"),
        (("run", "gradient-rank", "--out", "x" * 10**6), "name too long"),
        (("report", "y" * 10**6), "name too long"),
        (("search", "--model", "m" * 10**6, "--tasks", "t.jsonl"), "name too long"),
    ],
)
def test_paths_that_cannot_exist_are_the_users_mistake_and_named(args, words):
    code, text = said(*args)
    assert code == MISTAKE
    assert words in text
    assert len(text) < 2 * LONGEST_MESSAGE


def test_a_task_name_that_is_no_name_is_refused_with_its_line(tmp_path):
    path = task_file(tmp_path, "t" * 2**20)
    with pytest.raises(ValueError, match="1,048,577 characters long") as refused:
        task_names(path)
    assert str(refused.value).startswith(f"{path}, line 1: 'task' is 'ttt")
    assert len(str(refused.value)) < LONGEST_MESSAGE
    assert explain(refused.value)[0] == MISTAKE


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "cp437", "utf-8", "utf-16"])
def test_text_without_a_place_in_the_encoding_is_written_as_an_escape(encoding, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    text = "caf\u00e9 \u6a21\u578b \U0001f600 \u2212"
    with standard_streams():
        _texts(text, {"0.0": text, "0.3": f"{text}\x1b[2J\n{text}"})
        with printing(False) as show:
            show(text)
    found = raw.getvalue().decode(encoding)
    # In a table, after the last line, too.
    assert found.splitlines()[-1] == text.encode(encoding, "backslashreplace").decode(encoding)
    assert "0.3" in found
    assert "\x1b" not in found
    assert sys.stdout.errors == "strict"


class Broken(io.StringIO):
    """A stream that is lost at the second write."""

    def __init__(self, number):
        super().__init__()
        self.number, self.count = number, 0

    def write(self, text):
        self.count += 1
        if self.count > 1:
            raise OSError(self.number, os.strerror(self.number))
        return super().write(text)


def test_a_reader_of_progress_that_goes_away_stops_nothing():
    stream = Stream(Broken(32), needed=False)
    for _ in range(3):
        assert stream.write("line") == 4
    stream.flush()


def test_a_result_that_cannot_be_written_is_an_error_once():
    stream = Stream(Broken(28), needed=True)
    stream.write("first")
    with pytest.raises(OutputLostError, match="standard output cannot be written: No space left"):
        stream.write("second")
    stream.write("third")


def test_a_stream_that_was_never_there_takes_everything():
    assert Stream(None, needed=True).write("text") == 4


def test_a_library_keeps_its_colours_on_a_terminal_only():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, expected in (
        (Terminal(), "\x1b[31mred\x1b[0m \\x1b]0;t\n"),
        (io.StringIO(), "\\x1b[31mred\\x1b[0m \\x1b]0;t\n"),
    ):
        Tamed(stream).write("\x1b[31mred\x1b[0m \x1b]0;t\n")
        assert stream.getvalue() == expected


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("{frenet} list | head -1; exit ${{PIPESTATUS[0]}}", DONE),
        ("{frenet} run gradient-rank --help | true; exit ${{PIPESTATUS[0]}}", DONE),
        ("{frenet} list > /dev/full", NO_RESULT),
        ("{frenet} nosuch 2> /dev/full", MISTAKE),
        ("{frenet} nosuch 2>&-", MISTAKE),
        ("{frenet} list >&-", DONE),
    ],
)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has /dev/full")
def test_closed_and_full_outputs_end_with_the_right_code(command, code):
    program = f"{sys.executable} -m frenet"
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        ["bash", "-c", command.format(frenet=program)], capture_output=True, text=True, env=env
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.stderr.count("\n") <= 1


def test_sigterm_stops_with_a_line_like_ctrl_c(tmp_path):
    toy = ROOT / "tests" / "runs" / "toy_experiment.py"
    env = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{toy.parent}"}
    process = subprocess.Popen(
        [sys.executable, toy, "run", "toy-sums", "--workers", "1", "--seconds", "2",
         "--out", tmp_path / "run"],
        stderr=subprocess.PIPE, text=True, env=env,
    )  # fmt: skip
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("[1/"):
            process.terminate()
    process.stderr.close()
    assert process.wait() == TERMINATED
    assert "1 of 6 cells are finished and stored in" in lines[-1]
