"""What is installed is the wheel, complete and typed, and an sdist makes the same one."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY

import kvern

DIST = os.environ.get("KVERN_DIST", "")


@pytest.mark.skipif(not DIST, reason="run.sh builds the packages")
def test_the_wheel_is_what_runs() -> None:
    assert "site-packages" in str(Path(kvern.__file__))
    (wheel,) = Path(DIST).glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "kvern/py.typed" in names
    assert [name for name in names if name.endswith("dist-info/licenses/LICENSE")]
    protos = {"compression", "model", "pool", "server", "store", "types"}
    for suffix in ("py", "pyi"):
        assert {f"kvern/v1/{proto}_pb2.{suffix}" for proto in protos} <= set(names)
    assert not [name for name in names if "test" in name]


@pytest.mark.skipif(not DIST, reason="run.sh builds the packages")
def test_an_sdist_needs_no_protoc(tmp_path: Path) -> None:
    (sdist,) = Path(DIST).glob("*.tar.gz")
    (wheel,) = Path(DIST).glob("*.whl")
    subprocess.run(["tar", "xzf", str(sdist), "-C", str(tmp_path)], check=True)
    (unpacked,) = tmp_path.iterdir()
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    environment = os.environ | {"PROTOC": "/nonexistent"}
    subprocess.run(command, cwd=unpacked, env=environment, check=True, capture_output=True)
    (again,) = tmp_path.glob("*.whl")
    first, second = zipfile.ZipFile(wheel), zipfile.ZipFile(again)
    assert sorted(first.namelist()) == sorted(second.namelist())
    for name in first.namelist():
        assert first.read(name) == second.read(name), name


def test_the_license_is_the_repository_s() -> None:
    package = REPOSITORY / "client" / "python"
    assert (package / "LICENSE").read_bytes() == (REPOSITORY / "LICENSE").read_bytes()


def test_importing_it_imports_neither_torch_nor_ml_dtypes() -> None:
    code = (
        "import sys, kvern; kvern.Policy('small'); "
        "sys.exit(any(name.split('.')[0] in ('torch', 'ml_dtypes') for name in sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(kvern.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_every_public_name_exists_and_is_documented() -> None:
    for name in kvern.__all__:
        assert getattr(kvern, name).__doc__, name
