"""Reproductions that are declared beforehand: rules, settings and seeds in a file.

The digest of the file is stored in every run that is made under it. It decides whether a run was
declared; when the file was committed can be looked up.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from frenet._errors import UsageError
from frenet._files import canonical
from frenet.experiments.experiment import Study, claim_order
from frenet.experiments.reproduce import Part, short_name

SCHEMA = 1
# Where things are on a machine, and what does not change a number beyond rounding.
_PLACES = frozenset(("model", "tokenizer", "device"))
_FILES = frozenset(("tasks", "contrasts"))


class Registered(NamedTuple):
    """A declaration that was read.

    Attributes:
        preset: name of the preset.
        seeds: of all experiments.
        rules: by the id of the claim.
        settings: by network and experiment, without places.
        digest: of all of this.
    """

    preset: str
    seeds: tuple[int, ...]
    rules: dict[str, str]
    settings: dict[str, dict[str, dict[str, Any]]]
    digest: str

    def chosen(self, todo: Sequence[Part]) -> list[Part]:
        """The parts that are declared.

        Raises:
            ValueError: none is, or rules or settings are not those of the declaration.
        """
        mine = [
            part
            for part in todo
            if part.experiment.name in self.settings.get(short_name(part.network), {})
        ]
        if not mine:
            named = ", ".join(self.settings)
            raise UsageError(
                f"the declaration has none of these networks; it has {named}. Pass --networks with "
                "these, or with folders and files of these names"
            )
        for part in mine:
            self._compare(part)
        return mine

    def _compare(self, part: Part) -> None:
        name = short_name(part.network)
        for key, rule in rules_of(part.experiment).items():
            if self.rules.get(key) != rule:
                raise UsageError(
                    f"the rule of {key} is not the one that was declared; this version says "
                    f"{rule!r}, the declaration {self.rules.get(key)!r}. Use the version that it "
                    "was declared with, or declare again"
                )
        now = _settings(part.config)
        # A setting that is newer than the declaration has its default, which changes nothing.
        wanted = _settings(type(part.config)()) | self.settings[name][part.experiment.name]
        for field in dict.fromkeys([*wanted, *now]):
            if wanted.get(field) != now.get(field):
                raise UsageError(
                    f"{part.experiment.name} on {name} is declared with {field}="
                    f"{wanted.get(field)!r}, and this run has {now.get(field)!r}; give the option "
                    "(for tasks of contrasts, --statements) its declared value, or declare again"
                )

    def of(self, experiment: Study) -> dict[str, Any]:
        """What a run of an experiment stores: the digest, and the rules of its claims."""
        return {"file": self.digest, "rules": rules_of(experiment)}


def rules_of(experiment: Study) -> dict[str, str]:
    """The rules of an experiment's claims, by id."""
    return {claim.id: claim.rule for claim in experiment.claims}


def declaration(todo: Sequence[Part], preset: str) -> str:
    """The declaration of a reproduction, as TOML.

    Raises:
        ValueError: the parts have different seeds.
    """
    seeds = {tuple(part.config.seeds) for part in todo}
    if len(seeds) > 1:
        raise UsageError("the experiments have different seeds; pass --seeds, such as 3 4 5 6 7")
    claims = {claim.id: claim for part in todo for claim in part.experiment.claims}
    lines = [
        "# Declared before these seeds are run.",
        f"schema = {SCHEMA}",
        f"preset = {_toml(preset)}",
        f"seeds = {_toml(list(seeds.pop()))}",
    ]
    for key, claim in sorted(claims.items(), key=lambda item: claim_order(item[0])):
        lines += ["", f"[rules.{_key(key)}]", f"statement = {_toml(claim.statement)}"]
        lines += [f"rule = {_toml(claim.rule)}"]
    for part in todo:
        table = f"settings.{_key(short_name(part.network))}.{_key(part.experiment.name)}"
        lines += ["", f"[{table}]"]
        lines += [f"{name} = {_toml(value)}" for name, value in _settings(part.config).items()]
    return "\n".join(lines) + "\n"


def read_registered(path: Path) -> Registered:
    """Read a declaration.

    Raises:
        ValueError: it is not one, or of a newer version.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not a declaration: {error}") from error
    schema = content.get("schema")
    if not isinstance(schema, int) or schema < 1:
        raise UsageError(
            f"{path} is not a declaration: it has no schema; frenet reproduce --declare FILE "
            "writes one"
        )
    if schema > SCHEMA:
        raise UsageError(
            f"{path} has schema {schema}, and this version of frenet reads up to {SCHEMA}; install "
            "a newer one"
        )
    try:
        return Registered(
            content["preset"],
            tuple(content["seeds"]),
            {key: entry["rule"] for key, entry in content["rules"].items()},
            content["settings"],
            hashlib.sha256(canonical(content).encode()).hexdigest(),
        )
    except (KeyError, TypeError, AttributeError) as error:
        lacking = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise UsageError(
            f"{path} is not a whole declaration: {lacking}; frenet reproduce --declare FILE writes "
            "one"
        ) from error


def declared_words(declared: Mapping[str, Any] | None, experiment: Study) -> str:
    """Whether a run was declared, and whether the rules are still those."""
    if declared is None:
        return "This run was not declared beforehand."
    words = f"Declared beforehand; digest of the declaration: {declared['file'][:12]}."
    changed = [
        key for key, rule in rules_of(experiment).items() if declared["rules"].get(key) != rule
    ]
    if changed:
        words += (
            f" The rules of {', '.join(changed)} have changed since: the verdicts are by rules "
            "that were not declared."
        )
    return words


def _settings(config: Any) -> dict[str, Any]:
    """The fields of a configuration that are the same on every machine."""
    from dataclasses import asdict

    values: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    for name in _FILES & set(values):
        names = values[name]
        values[name] = (
            _base(names) if isinstance(names, str) else [_base(source) for source in names]
        )
    return {k: v for k, v in values.items() if k not in _PLACES and v is not None}


def _base(source: str) -> str:
    """The name of a file without its folders."""
    return PurePosixPath(source.replace("\\", "/")).name or source


def _key(name: str) -> str:
    return name if name.replace("-", "").replace("_", "").isalnum() else _toml(name)


def _toml(value: Any) -> str:
    """A value of JSON as TOML, which writes texts, numbers, truth values and lists alike."""
    return json.dumps(value, ensure_ascii=False)
