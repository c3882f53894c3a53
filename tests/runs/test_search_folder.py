"""A search in a folder: planned first, resumed with the same rows, never mixed with another."""

import dataclasses
import json
import re
import shutil

import pytest
import torch

from frenet.cli import main
from frenet.experiments.intervals import select
from frenet.experiments.search_command import SearchConfig
from frenet.experiments.search_command.setup import STEP, further_advice, load_subject
from frenet.geometry.loss_change import LossChange
from frenet.methods.local_model import Effort
from frenet.methods.search import here
from frenet.methods.search_result_files import load_winner
from frenet.network.checkpoints.load import load
from frenet.report import write_report
from frenet.runs import Interrupted, RunFolderError, read_run
from frenet.runs.header import read_header
from frenet.runs.search import run_search
from network.models import tiny_llama, tiny_tokenizer

LINES = [
    {"prompt": f"{a} plus {b} is", "completion": f" {a + b}"} for a in range(6) for b in range(6)
]


def save_tiny(folder, *, seed=0):
    tiny_llama(seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def quiet(text: str) -> None:
    """Progress that nobody reads."""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    save_tiny(folder / "model")
    text = "".join(json.dumps(line) + "\n" for line in LINES)
    (folder / "sums.jsonl").write_text(text, encoding="utf-8")
    return SearchConfig(
        model=str(folder / "model"),
        tasks=(str(folder / "sums.jsonl"),),
        sigma="0.1",
        budget=80,
        select_size=4,
        test_size=8,
        probes=2,
    )


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    return run_search(config, out, say=quiet)


def test_the_plan_comes_first_and_the_winner_comes_back(finished, config):
    candidates = [row for row in finished.rows if row["table"] == "candidate"]
    assert [row["index"] for row in candidates] == list(range(80))
    best = max(candidates, key=lambda row: (row["score"], -row["index"]))
    (winner,) = select(finished.rows, table="result", what="winner")
    assert winner["index"] == best["index"]
    assert winner["selected"] == pytest.approx(best["score"] - best["before"])
    subject = load_subject(config)
    delta = load_winner(subject.model, subject.space, finished.path / "winner")
    assert float(delta.std()) == pytest.approx(0.1, rel=0.1)
    # The adapter that others load holds the very same numbers.
    start = subject.space.read(subject.model)
    names = dict(load(config.model, adapter=finished.path / "winner").model.named_parameters())
    theirs = torch.cat([names[name].detach().flatten() for name in subject.space.names])
    assert torch.equal(theirs, start + delta)


def test_expectations_are_beside_what_was_found(config, tmp_path):
    """Of a search that was planned; the cost of the plan is said before."""
    said = []
    planned = dataclasses.replace(config, sigma="auto", probes=0, select_size=6)
    finished = run_search(planned, tmp_path / "planned", say=said.append, worth=1e-9)
    cost = re.match(r"planning 80 candidates, at about the cost of (\d+): ", said[0])
    assert int(cost[1]) == round(Effort.within(80).cost())
    assert any(row["table"] == "plan" for row in finished.rows)
    best = [row for row in finished.rows if row["table"] == "best"]
    assert [row["n"] for row in best] == [1, 2, 4, 8, 16, 32, 64, 80]
    assert all(row["low"] < row["predicted"] < row["high"] for row in best)
    gains = [row["gain"] for row in best]
    assert gains == sorted(gains)
    # The advice as it goes is that of the end, and changes no row.
    (winner,) = select(finished.rows, table="result", what="winner")
    made = json.loads((finished.path / "plan.json").read_text("utf-8"))
    improved = LossChange(*made["change"]).improvement(-winner["selected"], 100)
    assert winner["further"] == pytest.approx(made["carried"] * improved)
    advice = further_advice(winner["further"], 1e-9)
    assert said[-1] == advice
    # This winner gains more than the plan expects of any number of candidates.
    assert winner["selected"] > best[-1]["high"]
    assert advice.endswith("(stop: less than the 1e-09 asked for)")
    assert "(go on: at least the 0.1 asked for)" in further_advice(0.2, 0.1)
    (step,) = select(finished.rows, table="result", what=STEP)
    assert step["before"] == winner["before"]
    page = write_report([finished], finished.path / "report.html").read_text("utf-8")
    assert re.search(r"The best of \d+ gains -?[\d.]+ on the selection batch; ", page)
    assert "KeyError" not in page
    assert "frenet search --model" in re.sub("<[^>]*>", "", page)
    assert "frenet run search" not in page


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--sigma", "0.1"), "--worth needs what a plan expects, and with --sigma none is made"),
        (("--score", "exact"), "--worth is a loss in nats per token; leave out --score exact"),
        (("--worth", "0"), "worth=0.0; pass a finite number above 0"),
    ],
)
@pytest.mark.parametrize("plan", [(), ("--plan",)])
def test_a_worth_without_a_plan_of_the_loss_is_refused(
    config, tmp_path, capsys, options, why, plan
):
    args = ["--model", config.model, "--tasks", config.tasks[0], "--out", str(tmp_path / "run")]
    assert main(["search", *args, "--worth", "0.1", *options, *plan]) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_first_line_of_a_plan_says_whether_it_is_worth_it(config, capsys):
    args = ["--model", config.model, "--tasks", config.tasks[0], "--plan", "--budget", "4"]
    few = ["--select-size", "4", "--test-size", "4", "--quiet"]
    assert main(["search", *args, *few, "--worth", "1000"]) == 0
    assert capsys.readouterr().out.startswith("not worth it: ")
    assert main(["search", *args, *few, "--worth", "1e-9", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["worth"]) >= {"candidates", "held_out", "low", "high", "single", "further"}


def test_a_given_sigma_needs_no_plan(finished):
    assert not [row for row in finished.rows if row["table"] == "plan"]
    assert all(row["predicted"] is None for row in select(finished.rows, table="best"))
    assert json.loads((finished.path / "plan.json").read_text("utf-8"))["sigma"] == 0.1


def test_stopped_and_started_again_it_ends_with_the_same_rows(
    finished, config, tmp_path, monkeypatch
):
    scored = []

    def stops(model, evaluator, chunks):
        for chunk, scores in here(model, evaluator, chunks):
            if len(scored) == 2:
                raise KeyboardInterrupt
            scored.append(chunk)
            yield chunk, scores

    out = tmp_path / "run"
    with pytest.raises(Interrupted, match="2 chunks of candidates are scored and stored"):
        run_search(config, out, engine=stops, say=quiet)
    left = []

    def counts(model, evaluator, chunks):
        left.extend(chunks)
        return here(model, evaluator, chunks)

    said = []
    monkeypatch.setattr("frenet.runs.header.commit", lambda: "later")
    again = run_search(config, out, engine=counts, say=said.append)
    assert "resumes at commit later" in said[0]
    assert [chunk[0] for chunk in left] == [64]
    assert (again.path / "rows.jsonl").read_bytes() == (finished.path / "rows.jsonl").read_bytes()


@pytest.mark.parametrize("option", ["--workers", "--address"])
def test_options_of_a_cluster_need_one(config, capsys, option):
    args = ["search", "--model", "nowhere", "--tasks", config.tasks[0], option, "3"]
    assert main(args) == 2
    assert f"{option} " in (said := capsys.readouterr().err)
    assert "of a Ray cluster; pass --engine ray too" in said


def test_one_held_out_example_has_a_gain_and_no_interval(config, tmp_path, capsys):
    args = ["--model", config.model, "--tasks", config.tasks[0], "--sigma", "0.1", "--budget", "2"]
    few = ["--select-size", "4", "--test-size", "1", "--probes", "2", "--top", "1", "--quiet"]
    assert main(["search", *args, *few, "--out", str(tmp_path / "run")]) == 0
    (row,) = select(read_run(tmp_path / "run").rows, table="result", what="winner")
    assert (row["low"], row["high"]) == (None, None)
    assert f"gain {row['gain']:.4g}; {row['selected']:.4g} on" in capsys.readouterr().out


def test_a_search_has_the_threads_asked_for_and_keeps_them(config, tmp_path, monkeypatch):
    """Those that it began with, if it resumes on a machine with more processors."""
    args = ["--model", config.model, "--tasks", config.tasks[0], "--sigma", "0.1", "--budget", "2"]
    few = ["--select-size", "4", "--test-size", "4", "--quiet", "--out", str(tmp_path / "run")]
    before = torch.get_num_threads()
    assert main(["search", *args, *few, "--threads", "1"]) == 0
    assert read_header(tmp_path / "run").threads == 1
    (tmp_path / "run" / "manifest.json").unlink()
    monkeypatch.setattr("frenet.runs.machine.cpu_count", lambda: 2)
    monkeypatch.setattr("frenet.runs.search.cpu_count", lambda: 2)
    assert main(["search", *args, *few]) == 0
    assert main(["search", *args, *few[:-1], str(tmp_path / "new")]) == 0
    assert read_header(tmp_path / "new").threads == 2
    assert torch.get_num_threads() == before


def test_a_folder_of_another_search_is_refused(finished, config):
    with pytest.raises(RunFolderError, match="holds a run with budget=80, and this one has"):
        run_search(dataclasses.replace(config, budget=81), finished.path, say=quiet)


def test_a_folder_of_another_model_is_refused(config, tmp_path):
    save_tiny(tmp_path / "model", seed=0)
    own = dataclasses.replace(config, model=str(tmp_path / "model"), budget=4)
    run_search(own, tmp_path / "run", say=quiet)
    (tmp_path / "run" / "manifest.json").unlink()
    save_tiny(tmp_path / "model", seed=1)
    with pytest.raises(RunFolderError, match=r"holds a run with contents of .*model="):
        run_search(own, tmp_path / "run", say=quiet)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"budget": 0}, "budget=0 is below one candidate"),
        ({"top": 0}, "top=0 leaves no winner to report"),
        ({"sigma": "0"}, "sigma=0; pass a finite number above 0"),
        ({"sigma": "-1"}, "sigma=-1; pass a finite number above 0"),
        ({"sigma": "nan"}, "sigma=nan; pass a finite number above 0"),
        ({"sigma": "much"}, "sigma='much'; pass a number above 0, or auto"),
        ({"sigma": "auto", "relative": True}, "planned for independent absolute noise"),
        ({"only": "differences"}, "no task 'differences'; there are sums"),
        ({"where": "nothing"}, "where='nothing' names none"),
    ],
)
def test_what_cannot_be_searched_is_said_and_leaves_nothing(config, tmp_path, changes, match):
    with pytest.raises(ValueError, match=match):
        run_search(dataclasses.replace(config, **changes), tmp_path / "run", say=quiet)
    assert not (tmp_path / "run").exists()


def begun_again(finished, tmp_path, name, change):
    """An unfinished copy of a search, with one of its files changed; rows of its end, and notes."""
    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(finished.path, run)
    for file in ("manifest.json", "rows.jsonl", "cells/part=result.jsonl"):
        (run / file).unlink()
    change(run / name)
    return run


def flip(path):
    """One digit of a file changed."""
    text = path.read_text()
    place = re.search(r'"(?:score|sigma)": ?\S*?(\d)(?=[,}\n])', text).start(1)
    path.write_text(text[:place] + str(9 - int(text[place])) + text[place + 1 :])


def cut(path):
    """The last rows of a file lost, or its end."""
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: len(lines) // 2]))


def swap(path):
    """The file of another chunk under this one's name."""
    shutil.copy(path.with_name("part=candidates,first=0.jsonl"), path)


CHUNK = "cells/part=candidates,first=32.jsonl"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (CHUNK, flip),
        (CHUNK, cut),
        (CHUNK, swap),
        ("cells/part=plan.jsonl", cut),
        ("plan.json", flip),
        ("plan.json", cut),
        ("winner/candidate.json", cut),
    ],
)
def test_a_damaged_part_is_made_again_and_the_rows_are_the_same(
    finished, config, tmp_path, name, change
):
    run, said = begun_again(finished, tmp_path, name, change), []
    again = run_search(config, run, say=said.append)
    assert (again.path / "rows.jsonl").read_bytes() == (finished.path / "rows.jsonl").read_bytes()
    if name.startswith("cells/"):
        assert name.partition("/")[2] in said[0]
        assert "this cell runs again" in said[0]
    for file in ("plan.json", *(f"winner/{f.name}" for f in (run / "winner").iterdir())):
        assert (run / file).read_bytes() == (finished.path / file).read_bytes()


def test_a_chunk_of_an_early_build_that_lost_rows_is_made_again(finished, config, tmp_path):
    run = begun_again(finished, tmp_path, CHUNK, cut)
    for cell in (run / "cells").iterdir():
        first, *rows = cell.read_text().splitlines(keepends=True)
        kept = {k: v for k, v in json.loads(first).items() if k in ("cell", "seconds", "peak_mib")}
        cell.write_text("".join([json.dumps(kept) + "\n", *rows]))
    again = run_search(config, run, say=quiet)
    assert (again.path / "rows.jsonl").read_bytes() == (finished.path / "rows.jsonl").read_bytes()


def test_the_damaged_plan_of_an_early_build_is_refused_by_name(finished, config, tmp_path):
    """Its sigma stood in that file alone: with another one, scores would be mixed."""
    run = begun_again(finished, tmp_path, "plan.json", cut)
    cell = run / "cells" / "part=plan.jsonl"
    first, *rows = cell.read_text().splitlines(keepends=True)
    kept = {k: v for k, v in json.loads(first).items() if k in ("cell", "seconds", "peak_mib")}
    cell.write_text("".join([json.dumps(kept) + "\n", *rows]))
    with pytest.raises(RunFolderError, match=r"plan\.json is damaged: it is not JSON"):
        run_search(config, run, say=quiet)
