"""``frenet steer``: which contrasts a model knows, and steering vectors as files."""

import math
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from frenet._errors import UsageError
from frenet._notebook import listed, one_line
from frenet.cli.codes import DONE, MISTAKE
from frenet.cli.execution import show_notes
from frenet.cli.options import named, parse, printing
from frenet.cli.steer_options import Apply, Compare, Export, Extract, Screen, Source
from frenet.cli.steer_recommend import recommend

if TYPE_CHECKING:
    from frenet.methods.steering_vector import SteeringVector
    from frenet.network.checkpoints.load import Loaded
    from frenet.network.data.contrast import Contrast

HELP = """\
usage: frenet steer COMMAND [options]

commands:
  screen    which contrasts of some files a model knows, from its own answers
  recommend block and dose for a contrast's vector, tested on held-out prompts, or "no dose"
  extract   a vector from a contrast: mean difference of activations, or a gradient step's shift
  compare   cosines of vectors, block by block, compared with chance
  apply     generate with and without a vector, several doses side by side
  export    for llama.cpp (GGUF) and for plugins of vLLM, and back from GGUF

frenet steer COMMAND --help explains the options.
"""

# Pairs of a number and the null that it has to exceed.
KNOWN, COMPARED = (("difference", "shuffled"), ("cosine", "null")), (("cosine", "chance (95%)"),)
EXTRACT_LEGEND = """\
difference: length of the mean difference of the two sides, divided by the stream's norm
shuffled: the same with shuffled labels (95% quantile)
halves: cosine of the mean differences of two random halves of the prompts; 1 without noise
"""
# Of the mean difference itself they say nothing.
COSINES = ("cosine", "null")
COSINE_LEGEND = """\
cosine: of the vector with the mean difference
null: the same with shuffled labels (95% quantile)
"""
COMPARE_LEGEND = """\
cosine: of the two vectors after this block
isotropic chance: 1 / sqrt(h), for random vectors without a preferred direction
chance (95%): random vectors with the covariance of this model's streams (95% quantile)
"""


SCREEN_LEGEND = """\
separation: AUC, the share of pairs of prompts, one of each class, that the answers put in order
in brackets: its 95% interval over prompts; for choices, that of the accuracy
"""


def steer(args: list[str]) -> int:
    """``frenet steer``."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return DONE if args else MISTAKE
    return named(args[0], COMMANDS, "command of steer")(args[1:])


def _extract(args: list[str]) -> int:
    options = parse(Extract, args, command="steer extract", about="Make a steering vector.")
    if options.out.suffix != ".safetensors":
        raise UsageError(
            f"{options.out} does not end in .safetensors; to write a GGUF file, extract to "
            ".safetensors first, then use frenet steer export"
        )
    with printing(options.json) as show:
        from frenet.methods.steering_vector import save_vector

        loaded, contrast = _source(options)
        vector, rows = _made(options, loaded, contrast)
        path = save_vector(vector, options.out)
        result = {"blocks": rows, "no_better": _no_better(rows, KNOWN)}
        result["notes"] = [*loaded.notes, *contrast.reading_notes]
        if options.json:
            show({"command": "steer extract", "out": str(path), **result})
            return DONE
        show(f"{vector.origin}, {len(contrast.items)} prompts: {path}")
        show(_reliable(rows))
        legend = EXTRACT_LEGEND
        if options.how == "mean":
            shown = [{k: v for k, v in row.items() if k not in COSINES} for row in rows]
            result |= {"blocks": shown}
        else:
            legend += COSINE_LEGEND
        _show_blocks(show, result, legend, "shuffled labels")
    return DONE


def _reliable(rows: list[dict[str, Any]]) -> str:
    """What the table of blocks says, in a sentence."""
    longer = sum(row["difference"] > row["shuffled"] for row in rows)
    best = max(rows, key=lambda row: row["halves"])
    least = min(row["halves"] for row in rows)
    return (
        f"The mean difference is longer than with shuffled labels (95% quantile) at {longer} of "
        f"{len(rows)} blocks; two halves of the prompts agree best at block {best['block']} "
        f"(cosine {best['halves']:.2f}, least {least:.2f}; 1 without noise). Which block and dose "
        "steer: frenet steer recommend."
    )


def _screen(args: list[str]) -> int:
    options = parse(
        Screen, args, command="steer screen", about="Which contrasts does a model know?"
    )
    with printing(options.json) as show:
        from frenet.experiments.setup.contrasts import contrasts_of

        loaded = options.load(options.model)
        contrasts = contrasts_of(options, loaded)
        if missing := [name for name in options.only if name not in contrasts]:
            raise UsageError(f"no contrast {missing[0]!r}; there are {listed(contrasts)}")
        chosen = [contrasts[name] for name in options.only or contrasts]
        found = [_known(options, loaded, contrast) for contrast in chosen]
        notes = [*loaded.notes, *(note for contrast in chosen for note in contrast.notes)]
        if options.json:
            show({"command": "steer screen", "contrasts": found, "notes": notes})
            return DONE
        for row in found:
            show(_screened(row))
        for line in SCREEN_LEGEND.splitlines():
            show(line)
        show_notes(show, notes)
    return DONE


def _known(options: Screen, loaded: "Loaded", contrast: "Contrast") -> dict[str, Any]:
    """What the model's own answers to one contrast say, or why there are none."""
    from frenet.experiments.setup.knowledge import knowledge, known_state
    from frenet.network.data.contrast import UnansweredError

    row: dict[str, Any] = {"contrast": contrast.name, "words": list(contrast.words)}
    if contrast.kind == "pairs":
        return row | {"refused": "pairs of texts have no answers"}
    (part,) = contrast.divided(1, seed=0, rows=options.rows)
    try:
        answers = part.items[0].both_answers()
        row |= knowledge(loaded.model, part)
    except UnansweredError as error:
        return row | {"refused": f"{error}; pass two other words as --words"}
    pieces = [loaded.tokenizer.convert_ids_to_tokens(answer) for answer in answers]
    return row | {"state": known_state(row), "tokens": pieces}


def _screened(row: dict[str, Any]) -> str:
    """One line on a contrast."""
    from frenet.experiments.setup.knowledge import known_text

    if "refused" in row:
        return f"{row['contrast']}: {row['refused']}"
    tokens = " / ".join(" ".join(pieces) for pieces in row["tokens"])
    return (
        f"{row['contrast']}: the model {row['state']} ({known_text(row)}; accuracy "
        f"{row['accuracy']:.2f}, {row['prompts']} prompts; answers {' / '.join(row['words'])}, "
        f"tokens {tokens})"
    )


def _source(options: "Source | Extract") -> "tuple[Loaded, Contrast]":
    """Model and the one contrast."""
    from frenet.experiments.setup.contrasts import contrasts_of

    loaded = options.load(options.model)
    contrasts = contrasts_of(options, loaded)
    if options.only and options.only not in contrasts:
        raise UsageError(f"no contrast {options.only!r}; there are {listed(contrasts)}")
    if not options.only and len(contrasts) != 1:
        raise UsageError(f"a vector has one contrast; pass --only with one of {listed(contrasts)}")
    return loaded, contrasts[options.only or next(iter(contrasts))]


def _made(options: Extract, loaded: "Loaded", contrast: "Contrast") -> tuple[Any, list[Any]]:
    """The vector, and its reliability for each block."""
    from frenet.methods import steering
    from frenet.methods.vector_reliability import known
    from frenet.network.blocks import residual_blocks
    from frenet.network.data.contrast import UnansweredError
    from frenet.network.space import ParamSpace

    model, path = loaded.model, options.path or None
    form = None if options.form == "auto" else options.form
    blocks = options.blocks or tuple(range(len(residual_blocks(model, path)[1])))
    name = loaded.fingerprint
    if options.how == "gradient":
        # Step, shifted prompts and null need separate prompts: the null shuffles labels.
        try:
            contrast.require_answers()
        except UnansweredError as error:
            raise UsageError(f"{error}; pass two other words as --words, or --how mean") from None
        push, moved, contrast = contrast.divided(3, seed=0)
        rows = steering.shifted_prompts(moved)
        space = ParamSpace.select(model, lambda _, p: p.is_floating_point())
        vector = steering.gradient_shift(
            model, push, rows, space=space, blocks=blocks, fingerprint=name, path=path
        )
    else:
        aggregates = {
            "mean": steering.mean_difference,
            "principal": steering.principal_difference,
        }
        vector = steering.caa(
            model, contrast, blocks=blocks, form=form, aggregate=aggregates[options.how],
            fingerprint=name, path=path,
        )  # fmt: skip
    streams = steering.contrast_streams(model, contrast, blocks, form=form, path=path)
    return vector, [row._asdict() for row in known(vector, streams, blocks)]


def _no_better(rows: list[dict[str, Any]], pairs: tuple[tuple[str, str], ...]) -> list[int]:
    """Blocks at which some number does not exceed its null."""
    return [
        row["block"]
        for row in rows
        if any(row[null] is not None and abs(row[name]) <= row[null] for name, null in pairs)
    ]


def _show_blocks(
    show: Callable[[Any], None], result: dict[str, Any], legend: str, chance: str
) -> None:
    """Print a table of blocks with its legend, the blocks at chance level, and the notes."""
    rows, weak = result["blocks"], result["no_better"]
    _table(rows)
    for line in legend.splitlines():
        show(line)
    if weak:
        where = "any block" if len(weak) == len(rows) else f"block {', '.join(map(str, weak))}"
        show(f"no better than {chance} at {where}")
    show_notes(show, result["notes"])


def _compare(args: list[str]) -> int:
    options = parse(Compare, args, command="steer compare", about="Compare two steering vectors.")
    with printing(options.json) as show:
        from frenet.methods.steering_vector import load_vector

        vectors = load_vector(options.first), load_vector(options.second)
        if bool(options.model) != bool(options.tasks):
            raise UsageError("chance needs both --model and --tasks")
        nulls: dict[int, float] = {}
        notes: list[str] = []
        if options.model:
            shared = {f.name for f in fields(Source)} & {f.name for f in fields(options)}
            source = Source(**{name: getattr(options, name) for name in shared})
            loaded, contrast = _source(source)
            notes = [*loaded.notes, *contrast.reading_notes]
            nulls = _nulls(loaded, contrast, *vectors, path=options.path or None)
        rows = [
            {
                "block": block,
                "cosine": value,
                "isotropic chance": vectors[0].width ** -0.5,
                "chance (95%)": nulls.get(block),
            }
            for block, value in vectors[0].cosine(vectors[1]).items()
        ]
        result = {"blocks": rows, "no_better": _no_better(rows, COMPARED), "notes": notes}
        if options.json:
            show({"command": "steer compare", **result})
            return DONE
        _show_blocks(show, result, COMPARE_LEGEND, "random vectors of the stream's covariance")
        if not nulls:
            show(
                "The isotropic chance 1 / sqrt(h) is 2 to 6 times too low for a residual stream; "
                "pass --model and --tasks to get the chance of this model's streams."
            )
    return DONE


def _nulls(
    loaded: "Loaded",
    contrast: "Contrast",
    first: "SteeringVector",
    second: "SteeringVector",
    *,
    path: str | None,
) -> dict[int, float]:
    """95% quantile of the cosine of a random vector of the stream's covariance, by block."""
    import torch

    from frenet.geometry import rng
    from frenet.geometry.alignment import matched_cosines
    from frenet.methods.steering import contrast_streams

    for vector in (first, second):
        vector.require_fits(loaded.model, loaded.fingerprint, path=path)
    blocks = list(first.cosine(second))
    streams = contrast_streams(loaded.model, contrast, blocks, path=path)
    draw = rng.generator(0, "steer", "compare")
    nulls = {}
    for i, block in enumerate(blocks):
        rows = streams.at(i).rows
        null = matched_cosines(rows, first.at(block), draws=1000, generator=draw)
        nulls[block] = float(torch.quantile(null.abs(), 0.95))
    return nulls


def _apply(args: list[str]) -> int:
    options = parse(Apply, args, command="steer apply", about="Generate with a steering vector.")
    if options.tokens < 1:
        raise UsageError(f"tokens={options.tokens} leaves nothing to generate; pass at least 1")
    infinite = [dose for dose in options.doses if not math.isfinite(dose)]
    if infinite:
        raise UsageError(f"dose {infinite[0]} is not finite; pass numbers, such as -0.3 0.3")
    with printing(options.json) as show:
        import torch

        from frenet.methods.steered_generation import generate_steered, stream_norm
        from frenet.methods.steering_vector import load_vector
        from frenet.network.data.chat import asked
        from frenet.network.data.tokens import text_ids

        vector, loaded = load_vector(options.vector), options.load(options.model)
        path = options.path or None
        vector.require_fits(loaded.model, loaded.fingerprint, path=path)
        block, asked_doses = _where(options, vector)
        direction = vector.at(block)
        texts = [asked(loaded.tokenizer, p) if options.chat else p for p in options.prompt]
        prompts = text_ids(loaded.tokenizer, texts, chat=options.chat)
        norm = vector.norms.get(block) or stream_norm(loaded.model, prompts, block, path=path)
        doses = sorted({0.0, *asked_doses})
        added = torch.stack([dose * norm * direction / direction.norm() for dose in doses])
        results: list[dict[str, Any]] = []
        for text, ids in zip(options.prompt, prompts, strict=True):
            generated = generate_steered(
                loaded.model, ids, added, block=block, position=options.position,
                new_tokens=options.tokens, path=path,
            )  # fmt: skip
            words = [loaded.tokenizer.decode(new) for new in generated]
            results.append(
                {"prompt": text, "texts": dict(zip(map(str, doses), words, strict=True))}
            )
        if options.json:
            show({"command": "steer apply", "block": block, "norm": norm, "results": results})
            return DONE
        show(f"block {block}, stream norm {norm:.3g}; dose 0 is the model without a vector")
        for result in results:
            _texts(result["prompt"], result["texts"])
    return DONE


def _where(options: Apply, vector: "SteeringVector") -> tuple[int, tuple[float, ...]]:
    """Block and doses: those asked for, else the advised ones, else the middle block and 0.3."""
    advised = vector.advised
    block = options.block
    if block is None:
        block = advised.block if advised else vector.blocks[len(vector.blocks) // 2]
    dose = advised.dose if advised and advised.block == block else 0.3
    return block, options.doses or (-dose, dose)


def _export(args: list[str]) -> int:
    options = parse(
        Export, args, command="steer export", about="Write a vector for other programs."
    )
    from frenet.methods.steering_vector import load_vector, save_control_vector, save_vector

    vector, suffix = load_vector(options.vector), options.out.suffix
    if not options.layout and suffix not in (".gguf", ".safetensors"):
        raise UsageError(
            f"{options.out} ends in neither .gguf nor .safetensors; for a server's file pass "
            "--layout hotwire (.pt) or vllm-lens (.json)"
        )
    with printing(False) as show:
        if not options.layout and suffix == ".safetensors":
            show(save_vector(vector, options.out))
            return DONE
        if not options.layout and vector.advised is None and options.dose is None:
            show(save_control_vector(vector, options.out, architecture=options.architecture))
            show(
                "No dose is known, so that the scale for llama.cpp is open; pass --block and "
                "--dose, or export the vector of frenet steer recommend."
            )
        else:
            _serve(show, vector, options)
        if options.layout in ("", "llama.cpp") and 0 in vector.blocks:
            show("block 0 is left out: a GGUF control vector cannot hold it")
    return DONE


def _serve(show: Callable[[Any], None], vector: "SteeringVector", options: Export) -> None:
    """Write the files of a serving program, and print how it is told to use them."""
    from frenet.methods.serving_layouts import save_served, served, usage

    layout = options.layout or "llama.cpp"
    what = served(
        vector, block=options.block, dose=options.dose, position=options.position,
        architecture=options.architecture,
    )  # fmt: skip
    lines = usage(what, options.out, layout)
    for path in save_served(what, options.out, layout):
        show(path)
    show(
        f"block {what.block}, dose {what.dose:g}: scale {what.scale:.6g} of the stored vector "
        f"(dose x stream norm {vector.norms[what.block]:.4g} / vector norm "
        f"{float(what.direction.norm()):.4g})"
    )
    for line in lines:
        show(line)


def _table(rows: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(Text(one_line(_cell(value))) for value in row.values()))
    Console().print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _texts(prompt: str, texts: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    print(f"prompt: {one_line(prompt)}")
    table = Table("dose", "text", show_lines=True)
    for dose, text in texts.items():
        table.add_row(dose, Text(_lines(text) if text.strip() else f"{text!r} (nothing to see)"))
    Console().print(table)


def _lines(text: str) -> str:
    """A text of several lines, without control characters."""
    return "\n".join(one_line(line, sys.maxsize) for line in text.split("\n"))


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "screen": _screen,
    "recommend": recommend,
    "extract": _extract,
    "compare": _compare,
    "apply": _apply,
    "export": _export,
}
