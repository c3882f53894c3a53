"""What is shipped: the archives' content, and the command line of an installed wheel."""

import email
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from frenet._version import __version__

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "frenet"
Command = Callable[..., subprocess.CompletedProcess[str]]


def call(command: Sequence[str], **how: object) -> subprocess.CompletedProcess[str]:
    """The command without a network, its output as text; an error shows what it said."""
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    how = {"capture_output": True, "text": True, "env": environment} | how
    done = subprocess.run(command, **how)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive, and the wheel that is built from it."""
    pytest.importorskip("build", reason="the package build is not installed")
    pytest.importorskip("hatchling", reason="the package hatchling is not installed")
    out = tmp_path_factory.mktemp("dist")
    call([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)])
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """``python -m frenet`` of the wheel, from a folder that has nothing to do with it."""
    target, elsewhere = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("elsewhere")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target)]
    call([*pip, str(wheel)])
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("FRENET_")},
        "PYTHONPATH": str(target),
        "FRENET_CACHE": str(elsewhere / "cache"),
    }

    def run(*args: str, code: Sequence[str] = ("-m", "frenet")) -> subprocess.CompletedProcess[str]:
        return call([sys.executable, *code, *args], cwd=elsewhere, env=environment)

    where = run(code=("-c", "import frenet; print(frenet.__file__)")).stdout
    assert Path(where.strip()) == target / "frenet" / "__init__.py"
    return run


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    own = {
        file.relative_to(ROOT / "src").as_posix()
        for file in PACKAGE.rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }
    about = f"frenet-{__version__}.dist-info/"
    assert {name for name in names if not name.startswith(about)} == own
    assert {"frenet/py.typed", "frenet/report/page.css", "frenet/report/page.js"} <= own
    assert {name.removeprefix(about) for name in names if name.startswith(about)} == {
        *("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
    }
    assert wheel.name == f"frenet-{__version__}-py3-none-any.whl"
    assert wheel.stat().st_size < 1_000_000


def test_the_metadata_say_what_an_index_shows(wheel: Path) -> None:
    about = f"frenet-{__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        told = email.message_from_bytes(archive.read(f"{about}/METADATA"))
        entry = archive.read(f"{about}/entry_points.txt").decode()
        licence = archive.read(f"{about}/licenses/LICENSE").decode()
    assert told["Name"] == "frenet"
    assert told["Version"] == __version__
    assert told["License-Expression"] == "Apache-2.0"
    assert told["Requires-Python"] == ">=3.11"
    assert told["Description-Content-Type"] == "text/markdown"
    assert told.get_payload().startswith("# frenet")
    assert {"ray", "trl"} <= set(told.get_all("Provides-Extra"))
    needed = told.get_all("Requires-Dist")
    assert any(line.startswith("torch") and "extra" not in line for line in needed)
    # Nobody who uses the library is asked for what only its developers need.
    assert all("extra" in line for line in needed if line.startswith(("pytest", "playwright")))
    assert "frenet = frenet.cli:main" in entry
    assert "Apache License" in licence


def test_the_version_is_stated_once() -> None:
    stated = [
        file.relative_to(ROOT).as_posix()
        for file in [ROOT / "pyproject.toml", *PACKAGE.rglob("*.py")]
        if f'"{__version__}"' in file.read_text(encoding="utf-8")
    ]
    assert stated == ["src/frenet/_version.py"]


def test_the_source_archive_can_be_tested_and_holds_nothing_stray(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        sizes = {item.name.split("/", 1)[1]: item.size for item in opened if item.isfile()}
    names = list(sizes)
    tops = {name.split("/")[0] for name in names}
    expected = {"src", "tests", "docs", "benchmarks", "examples", ".ci", ".gitignore"}
    expected |= {"Makefile", "constraints.txt", "pyproject.toml", "PKG-INFO", "LICENSE"}
    expected |= {file.name for kind in ("*.md", "*.yml") for file in ROOT.glob(kind)}
    assert tops == expected
    for name in ("tests/conftest.py", "tests/report/test_browser.py", "docs/theory.md"):
        assert name in names
    assert not [name for name in names if name.endswith((".pyc", ".safetensors", ".gguf"))]
    # Results grow with what was measured, the rest with what is written by hand.
    measured = ("docs/results/", "docs/pilot/")
    results = sum(size for name, size in sizes.items() if name.startswith(measured))
    assert sum(sizes.values()) - results < 6_000_000
    assert results < 9_000_000


def test_an_installed_wheel_answers(installed: Command) -> None:
    assert installed("--version").stdout == f"frenet {__version__}\n"
    assert "gradient-rank" in installed("list").stdout
    told = json.loads(installed("doctor", "--json").stdout)
    assert told["versions"]["frenet"] == __version__
    # The commit of the folder that it happens to be started in would mean nothing.
    assert told["versions"]["commit"] is None


@pytest.mark.slow
def test_an_installed_wheel_runs_the_demo(installed: Command, tmp_path: Path) -> None:
    told = installed("demo", "--preset", "smoke", "--out", str(tmp_path / "demo"), "--json")
    page = Path(json.loads(told.stdout)["report"]).read_text(encoding="utf-8")
    assert page.count('-rows">') > 10
    assert page.count('-spec">') > 10
    # The library that draws the figures is inside, and nothing is asked of the network.
    assert 'id="engine"' in page
    assert len(page) > 500_000
    assert not re.search(r"""<(?:script|link|img)[^>]*\s(?:src|href)=["']https?:""", page)
