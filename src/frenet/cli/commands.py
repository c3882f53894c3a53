"""What each command does."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frenet._errors import UsageError
from frenet.cli.codes import DONE, MISTAKE, NO_RESULT
from frenet.cli.execution import (
    Planned,
    execute,
    kind_asked,
    path_text,
    preset_of,
    refuse_unused,
    show_runs,
)
from frenet.cli.options import (
    RUN_HELP,
    Convert,
    List,
    Report,
    Work,
    named,
    parse,
    parse_both,
    printing,
    wrapped,
)
from frenet.experiments.experiment import Later

if TYPE_CHECKING:
    from frenet.experiments import Experiment


def _chosen(names: Sequence[str]) -> "list[Experiment]":
    """The experiments of these names, or all."""
    from frenet.experiments import EXPERIMENTS

    return [named(name, EXPERIMENTS, "experiment") for name in names or EXPERIMENTS]


def _list(args: list[str]) -> int:
    """``frenet list``."""
    options = parse(List, args, command="list", about="The experiments and their questions.")
    with printing(options.json) as show:
        experiments = _chosen(())
        if options.json:
            from frenet.runs import config_dict

            show({"experiments": [_described(e, config_dict) for e in experiments]})
            return DONE
        for experiment in experiments:
            show(experiment.name)
            show(f"  {experiment.question}")
            for claim in experiment.claims:
                show(f"  {claim.id}: {claim.statement}")
            show("")
        presets = dict.fromkeys(name for e in experiments for name in e.presets)
        show(f"presets: {', '.join(presets)}")
    return DONE


def _described(experiment: "Experiment", as_dict: Callable[[Any], Any]) -> dict[str, Any]:
    """An experiment as JSON values."""
    fields = ("id", "statement", "paper", "rule")
    return {
        "name": experiment.name,
        "question": experiment.question,
        "claims": [{key: getattr(claim, key) for key in fields} for claim in experiment.claims],
        "presets": {name: as_dict(config) for name, config in experiment.presets.items()},
    }


def _run(args: list[str]) -> int:
    """``frenet run``."""
    if not args or args[0] in ("-h", "--help"):
        width = max(len(e.name) for e in _chosen(())) + 4
        lines = [wrapped(f"  {e.name:{width - 2}}{e.question}", width) for e in _chosen(())]
        print(RUN_HELP + "\n".join(lines), file=sys.stdout if args else sys.stderr)
        return DONE if args else MISTAKE
    if args[0].startswith("-"):
        raise UsageError(f"give the experiment before {args[0]}: frenet run EXPERIMENT [options]")
    (experiment,) = _chosen(args[:1])
    title = experiment.name.replace("-", "_")
    preset = experiment.settings(preset_of(args[1:], experiment), kind_asked(args[1:]))
    about = f"{experiment.question} Presets: {', '.join(experiment.presets)}."
    command = f"run {experiment.name}"
    work, config = parse_both(
        Work, preset, args[1:], command=command, about=about, titles=("running", title)
    )
    refuse_unused(work.address, work.engine)
    with printing(work.json) as show:
        from frenet.report import write_report
        from frenet.runs import default_out

        out = work.out or default_out(experiment, config)
        run = execute(Planned(experiment, config, out), work)
        report = write_report([run], out / "report.html")
        facts = {"command": "run", "report": str(report)}
        show_runs(show, [run], facts, as_json=work.json, why=work.why)
        if not work.json:
            show(f"results: {out}")
            show(f"report: {report}")
    return NO_RESULT if run.failures else DONE


def _demo(args: list[str]) -> int:
    """``frenet demo``: a reproduction on the synthetic transformer alone."""
    from frenet.cli.reproduce import reproduce

    return reproduce(args, command="demo", networks=("synthetic",))


def _report(args: list[str]) -> int:
    """``frenet report``."""
    options = parse(
        Report, args, command="report", about="Turn runs into one HTML file, or into several pages."
    )
    if not options.runs:
        raise UsageError("give the runs to report: frenet report FOLDER [FOLDER ...]")
    with printing(options.json) as show:
        from frenet.report import export, pooled_lines, write_report, write_results, write_site
        from frenet.report.figures import undrawable
        from frenet.runs import find_runs, read_run
        from frenet.runs.files import require_folder

        for folder in filter(None, (options.export, options.results, options.site)):
            require_folder(folder)
        paths = find_runs(options.runs)
        runs = [read_run(path, partial=options.partial) for path in paths]
        out = options.out or _common_folder(paths) / "report.html"
        report = write_report(runs, out, static=options.static)
        if options.export is not None:
            export(runs, options.export)
        if options.results is not None:
            write_results(runs, options.results)
        site = [] if options.site is None else write_site(runs, options.site, static=options.static)
        facts: dict[str, Any] = {"command": "report", "report": str(report)}
        facts |= {"export": path_text(options.export), "results": path_text(options.results)}
        facts["site"] = list(map(str, site))
        if options.json:
            show_runs(show, runs, facts | {"networks": pooled_lines(runs)}, as_json=True)
        else:
            if len({str(run.config.get("model", "")) for run in runs}) == 1:
                show_runs(show, runs, {}, as_json=False, why=options.why, noted=options.why)
            show(f"report: {report}")
            if why := undrawable():
                show(f"no figures: {why}")
            if options.export is not None:
                show(f"figures and tables: {options.export}")
            if options.results is not None:
                show(f"results: {options.results / 'index.md'}")
            if site:
                show(f"site: {site[0]}")
    return DONE


def _common_folder(paths: Sequence[Path]) -> Path:
    """The deepest folder that holds all runs, relative to the current folder if it is in there."""
    folders = [path if path.is_dir() else path.parent for path in paths]
    if len(folders) == 1:
        return folders[0]
    # commonpath refuses a mixture of absolute and relative paths.
    common, here = Path(os.path.commonpath([f.resolve() for f in folders])), Path.cwd()
    return common.relative_to(here) if common.is_relative_to(here) else common


def _convert(args: list[str]) -> int:
    """``frenet convert``."""
    options = parse(Convert, args, command="convert", about="Turn a GGUF file into a folder.")
    from frenet.network.checkpoints.load import convert_gguf

    with printing(False) as show:
        show(convert_gguf(options.file, out=options.out))
    return DONE


# Most are imported when they are asked for, so that help and lists are instant.
COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "demo": _demo,
    "list": _list,
    "run": _run,
    "report": _report,
    "convert": _convert,
    "search": Later("frenet.cli.search:search"),
    "steer": Later("frenet.cli.steer:steer"),
    "probe": Later("frenet.cli.probe:probe"),
    "pair": Later("frenet.cli.pair:pair"),
    "reproduce": Later("frenet.cli.reproduce:reproduce"),
    "doctor": Later("frenet.cli.doctor:doctor"),
}
