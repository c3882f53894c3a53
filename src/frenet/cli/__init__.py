"""The command line: ``frenet demo | list | run | search | steer | probe | report | ...``.

The commands import slow modules themselves, so that help is instant.
"""

import contextlib
import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from frenet._notebook import one_line
from frenet._version import __version__
from frenet.cli.codes import DONE, FAULT, MISTAKE, NO_RESULT, STOPPED, TERMINATED
from frenet.cli.streams import OutputLostError, standard_streams

HELP = """\
usage: frenet COMMAND [options]

How far, and for how long, can a direction in a neural network be trusted?

start:
  demo       the experiments on a small network trained here, and their report
  list       the experiments, their questions and claims
  doctor     what a bug report needs: versions, machine, memory, cache

ask about your model:
  probe      how far, and for how long, an adapter or checkpoint can be followed
  pair       whether two directions compose, and how to merge them
  steer      steering vectors: which block and dose, extract, compare, apply
  search     try Gaussian perturbations of a model's weights, and keep the best

test the claims of the paper:
  reproduce  all experiments on several networks
  run        one experiment: frenet run EXPERIMENT [options]

results and files:
  report     turn run folders into one HTML file, or into several pages
  convert    turn a GGUF file into a folder that loads fast

frenet COMMAND --help explains the options of a command, frenet run EXPERIMENT
--help those of an experiment. frenet --version prints the version.

examples:
  frenet demo
  frenet probe --model ./model --tasks tasks.jsonl --vectors ./adapter
  frenet pair ./adapter ./other --model ./model --tasks one.jsonl other.jsonl
  frenet search --model ./model --tasks tasks.jsonl --only my-task --plan
  frenet run gradient-rank --preset smoke
  frenet run recovery-basis --model ./model --tasks tasks.jsonl --ks 20
  frenet report runs/recovery-basis-1a2b3c4d --export figures

To resume a stopped run, repeat the command.
exit codes: 0 done; 1 a cell failed, or there is no result; 2 a mistake in the
arguments or files; 130 stopped by Ctrl-C, 143 by SIGTERM; 70 a bug in frenet
(FRENET_TRACEBACK=1 shows where)
"""


# Errors of a disk outside frenet's writers: full, over quota, read-only, broken.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        with standard_streams(), _stopping() as stopped:
            return _ended(args, stopped)
    except OutputLostError as error:
        # A reader such as head may close the pipe early; a full disk is an error.
        if error.errno == errno.EPIPE:
            return DONE
        print(f"frenet: error: {error.strerror}", file=sys.stderr)
        return NO_RESULT


def _ended(args: list[str], stopped: list[int]) -> int:
    """Run a command; turn whatever ends it into an exit code and one line."""
    try:
        return _dispatch(args)
    except SystemExit as error:  # tyro ends so, after help or an error message
        return error.code if isinstance(error.code, int) else MISTAKE
    except KeyboardInterrupt as error:
        print(f"\nfrenet: {one_line(str(error) or 'stopped')}", file=sys.stderr)
        return TERMINATED if stopped else STOPPED
    except OutputLostError:
        raise
    except Exception as error:
        code, message = explain(error)
        if os.environ.get("FRENET_TRACEBACK", "0") not in ("", "0"):
            traceback.print_exception(error)
        print(f"frenet: error: {one_line(message)}", file=sys.stderr)
        return code


@contextlib.contextmanager
def _stopping() -> Iterator[list[int]]:
    """Let SIGTERM, which schedulers send, stop a command like Ctrl-C; the list records it."""
    stopped: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(number: int, frame: Any) -> None:
        stopped.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def explain(error: Exception) -> tuple[int, str]:
    """The exit code and the one message for an exception."""
    from frenet._files import NotWrittenError
    from frenet.runs import RunFailedError
    from frenet.runs.worker import is_user_mistake, message_of

    message = message_of(error)
    if isinstance(error, NotWrittenError):
        return NO_RESULT, message
    if isinstance(error, RunFailedError):
        return (MISTAKE if error.user_mistake else NO_RESULT), message
    if isinstance(error, MemoryError):
        return NO_RESULT, f"out of memory: {message}"
    if is_user_mistake(error):
        return MISTAKE, message
    if isinstance(error, FloatingPointError):  # a measured number is not finite; it says which
        return NO_RESULT, message
    if isinstance(error, OSError) and error.errno in DISK:
        where = f"{error.filename}: " if error.filename else ""
        return NO_RESULT, f"{where}{error.strerror}; free some space, or choose another folder"
    kind = type(error).__name__
    return FAULT, f"unexpected {kind}: {message} (FRENET_TRACEBACK=1 shows where)"


def _dispatch(args: list[str]) -> int:
    """Find the command and run it."""
    if not args:
        print(HELP, end="", file=sys.stderr)
        return MISTAKE
    if args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return DONE
    if args[0] == "--version":
        print(f"frenet {__version__}")
        return DONE
    from frenet.cli.commands import COMMANDS
    from frenet.cli.options import named

    return named(args[0], COMMANDS, "command")(args[1:])
