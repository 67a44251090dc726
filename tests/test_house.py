"""The repository itself: lock of versions, what must not be committed."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_lock_holds_nothing_but_names_and_versions() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert lines
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[^\s;@]+", line)] == []


def test_every_dependency_is_locked() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(name for extra in optional for name in extra)]
    locked = {
        _normal(line.partition("==")[0])
        for line in (ROOT / "requirements.lock").read_text().splitlines()
    }
    names = {_normal(re.split(r"[\[<>=!~ ]", requirement)[0]) for requirement in wanted}
    assert names - locked == set()


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_embedded_weights_stay_under_ten_megabytes() -> None:
    files = (ROOT / "pipeline" / "embedded").rglob("*")
    assert sum(file.stat().st_size for file in files if file.is_file()) < 10 * 10**6


def test_tracked_files_do_not_name_the_place_of_the_checkout() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    here = re.compile(re.escape(str(ROOT)).encode() + rb"(/|\b)")
    named = [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    assert [name for name in named if here.search((ROOT / name).read_bytes())] == []
