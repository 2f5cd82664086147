"""What each distribution's archives hold: its own package, and nothing else of the repository."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from enclave_setup.app import workspace

ROOT = Path(__file__).parents[2]
PACKAGES = {".": "enclaved", "clients/python": "enclave"} | {
    str(folder.relative_to(ROOT)): f"enclave_{folder.name}"
    for folder in workspace()
    if folder not in {ROOT, ROOT / "clients/python"}
}


@pytest.mark.parametrize("folder", sorted(PACKAGES))
def test_an_archive_holds_its_own_package_only(folder: str, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", str(tmp_path)],
        cwd=ROOT / folder,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {PACKAGES[folder]}
    assert f"{PACKAGES[folder]}/py.typed" in names
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2].split("/")[0] for name in archive.getnames()}
    allowed = {"pyproject.toml", "PKG-INFO", ".gitignore", "LICENSE", "README.md"}
    assert inside - allowed == {PACKAGES[folder]}
