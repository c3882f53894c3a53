"""Declarations: what they hold, which runs they fit, and what a report says about them."""

from dataclasses import replace
from pathlib import Path

import pytest

from frenet import cli
from frenet.experiments import EXPERIMENTS
from frenet.experiments.reproduce import PRESETS, Reproduction, parts
from frenet.experiments.reproduce.registered import (
    Registered,
    declaration,
    declared_words,
    read_registered,
    rules_of,
)
from frenet.runs import read_run

SEEDS = (3, 4, 5, 6, 7)
STORIES = "frenet:gpt2"


def todo(**changes: object) -> list:
    base = Reproduction(networks=("synthetic", STORIES), seeds=SEEDS, **changes)
    return parts(base, "cpu")


@pytest.fixture
def declared(tmp_path: Path) -> Registered:
    file = tmp_path / "cpu.toml"
    file.write_text(declaration(todo(), "cpu"), encoding="utf-8")
    return read_registered(file)


def test_it_holds_the_rules_seeds_and_settings_of_every_part(declared: Registered) -> None:
    assert (declared.preset, declared.seeds) == ("cpu", SEEDS)
    assert declared.rules == {k: r for e in EXPERIMENTS.values() for k, r in rules_of(e).items()}
    assert set(declared.settings) == {"synthetic", "gpt2"}
    for settings in declared.settings.values():
        assert set(settings) == {part.experiment.name for part in todo()}
        assert all(one["seeds"] == list(SEEDS) for one in settings.values())
    assert declared.settings["synthetic"]["gradient-rank"]["n"] == 64
    assert declared.chosen(todo()) == todo()


def test_the_digest_is_of_the_content_and_not_of_its_layout(tmp_path: Path) -> None:
    text = declaration(todo(), "cpu")
    digests = []
    for i, one in enumerate((text, f"# a remark\n\n{text}", text.replace("6, 7]", "6, 8]"))):
        file = tmp_path / f"{i}.toml"
        file.write_text(one, encoding="utf-8")
        digests.append(read_registered(file).digest)
    assert digests[0] == digests[1] != digests[2]


def test_where_a_model_and_its_files_are_does_not_matter(tmp_path: Path) -> None:
    def text(folder: str) -> str:
        base = Reproduction(
            networks=(f"{folder}/Llama-1B.gguf",), tasks=(f"{folder}/words.jsonl",), seeds=SEEDS
        )
        return declaration(parts(base, "cpu"), "cpu")

    assert text("/data/models") == text("elsewhere")
    assert "/data" not in text("/data/models")


def test_a_part_of_the_networks_may_run_and_others_are_refused(declared: Registered) -> None:
    mine = [part for part in todo() if part.network == "synthetic"]
    assert declared.chosen(mine) == mine
    with pytest.raises(ValueError, match="none of these networks; it has synthetic, gpt2"):
        declared.chosen([part._replace(network="other") for part in mine])


def test_other_settings_and_other_rules_are_refused_by_name(declared: Registered) -> None:
    (part, *_) = todo()
    other = part._replace(config=replace(part.config, n=7))
    with pytest.raises(ValueError, match="gradient-rank on synthetic is declared with n=64"):
        declared.chosen([other])
    changed = declared._replace(rules=declared.rules | {"C1": "Supported if it is Monday"})
    with pytest.raises(ValueError, match="the rule of C1 is not the one that was declared"):
        changed.chosen([part])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("schema = 99\n", "schema 99"),
        ("preset = 'cpu'\n", "no schema"),
        ("schema = 1\npreset = 'cpu'\n", "not a whole declaration"),
        ("not toml", "not a declaration"),
    ],
)
def test_what_is_no_declaration_is_refused(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "x.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=why):
        read_registered(file)


def test_seeds_that_differ_cannot_be_declared() -> None:
    first, second, *_ = todo()
    other = second._replace(config=replace(second.config, seeds=(0,)))
    with pytest.raises(ValueError, match="different seeds"):
        declaration([first, other], "cpu")


def test_a_report_says_whether_a_run_was_declared_and_its_rules_have_changed() -> None:
    experiment = EXPERIMENTS["gradient-rank"]
    same = {"file": "ab" * 32, "rules": rules_of(experiment)}
    old = same | {"rules": {"C1": "another rule"}}
    assert "not declared" in declared_words(None, experiment)
    assert "ab" * 6 in declared_words(same, experiment)
    assert "changed" not in declared_words(same, experiment)
    assert "The rules of C1 have changed" in declared_words(old, experiment)


def test_a_declared_reproduction_from_the_command_line(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    networks = ["--networks", "synthetic", "--experiments", "step-vs-vector"]
    declare = ["reproduce", "--preset", "smoke", *networks, "--seeds", "3", "4"]
    assert cli.main([*declare, "--declare", "smoke.toml"]) == 0
    assert not (tmp_path / "out").exists()
    run = ["reproduce", *networks, "--registered", "smoke.toml", "--out", "out", "--quiet"]
    assert cli.main([*run, "--workers", "1", "--threads", "1"]) == 0
    stored = read_run(tmp_path / "out" / "synthetic-step-vs-vector")
    digest = read_registered(tmp_path / "smoke.toml").digest
    assert stored.manifest["declared"]["file"] == digest
    assert stored.config["seeds"] == [3, 4]
    assert digest[:12] in (tmp_path / "out" / "report.html").read_text("utf-8")
    capsys.readouterr()
    # The same folder does not go on as a run that was not declared.
    assert cli.main([*declare, "--out", "out", "--quiet", "--workers", "1", "--threads", "1"]) != 0
    assert "declaration" in capsys.readouterr().err
    assert PRESETS["smoke"].seeds == ()


def test_a_setting_that_is_newer_than_the_declaration_needs_its_default(
    declared: Registered,
) -> None:
    (part, *_) = todo()
    del declared.settings["synthetic"]["gradient-rank"]["untie"]
    assert declared.chosen([part]) == [part]
    with pytest.raises(ValueError, match="is declared with untie=False, and this run has True"):
        declared.chosen([part._replace(config=replace(part.config, untie=True))])
