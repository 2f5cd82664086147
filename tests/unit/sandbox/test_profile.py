from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from enclaved.sandbox.profile import ACCESS_RIGHTS, Grant, Profile, ProfileError, python_profile


def granted(profile: Profile) -> dict[str, str]:
    return {grant.path: grant.access for grant in profile.grants}


def profile_of(
    home: Path, *, prefix: Path, module_paths: list[Path] | None = None, packages: list[Path] | None = None
) -> Profile:
    return python_profile(
        "worker",
        private_folders=[str(home)],
        prefixes=[str(prefix)],
        module_paths=[str(path) for path in module_paths or []],
        package_folders=[str(path) for path in packages or []],
    )


def test_nothing_may_be_executed_created_removed_or_truncated() -> None:
    reading = {"read_file", "read_dir", "write_file", "ioctl_dev"}
    assert set().union(*ACCESS_RIGHTS.values()) == reading
    assert "write_file" not in ACCESS_RIGHTS["read+list"]


def test_only_the_null_device_is_writable() -> None:
    profile = python_profile("worker", private_folders=["/nonexistent/home"])
    assert [grant.path for grant in profile.grants if grant.access in ("read+write", "device")] == ["/dev/null"]


def test_the_interpreter_is_granted() -> None:
    paths = granted(python_profile("worker", private_folders=["/nonexistent/home"]))
    assert paths[sys.prefix] == "read+list"
    assert paths[sys.base_prefix] == "read+list"


def test_the_process_folder_is_not_granted_whole() -> None:
    paths = granted(python_profile("worker", private_folders=["/nonexistent/home"]))
    assert not {"/", "/proc", "/proc/self", "/proc/self/net", "/etc", "/dev", "/sys", "/tmp", "/home"} & set(paths)


def test_a_prefix_below_the_home_is_normal(tmp_path: Path) -> None:
    prefix = tmp_path / ".pyenv" / "versions" / "3"
    prefix.mkdir(parents=True)
    assert granted(profile_of(tmp_path, prefix=prefix))[str(prefix)] == "read+list"


def test_a_prefix_that_is_the_home_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="virtual environment of its own"):
        profile_of(tmp_path, prefix=tmp_path)


def test_a_prefix_above_the_home_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "people" / "ann"
    home.mkdir(parents=True)
    with pytest.raises(ProfileError, match="holds it"):
        profile_of(home, prefix=tmp_path)


def test_a_prefix_that_leads_to_the_home_by_a_link_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "ann"
    home.mkdir()
    (tmp_path / "python").symlink_to(home)
    with pytest.raises(ProfileError):
        profile_of(home, prefix=tmp_path / "python")


def test_a_home_reached_by_a_link_is_the_same_home(tmp_path: Path) -> None:
    (tmp_path / "disk" / "ann").mkdir(parents=True)
    (tmp_path / "home").symlink_to(tmp_path / "disk")
    with pytest.raises(ProfileError):
        profile_of(tmp_path / "home" / "ann", prefix=tmp_path / "disk")


def test_a_folder_that_only_starts_like_the_home_is_fine(tmp_path: Path) -> None:
    (tmp_path / "ann").mkdir()
    (tmp_path / "ann-tools").mkdir()
    profile_of(tmp_path / "ann", prefix=tmp_path / "ann-tools")


def test_a_home_at_the_root_refuses_only_the_root(tmp_path: Path) -> None:
    profile_of(Path("/"), prefix=tmp_path)
    with pytest.raises(ProfileError):
        profile_of(Path("/"), prefix=Path("/"))


def test_a_home_that_is_no_folder_keeps_nothing_back(tmp_path: Path) -> None:
    profile_of(Path("/dev/null"), prefix=tmp_path)


def test_a_private_folder_must_be_absolute(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="absolute"):
        profile_of(Path("home"), prefix=tmp_path)


def test_a_module_path_outside_the_prefixes_shows_only_names(tmp_path: Path) -> None:
    prefix, project = tmp_path / "python", tmp_path / "project"
    (project / "package").mkdir(parents=True)
    inside = prefix / "lib"
    inside.mkdir(parents=True)
    paths = granted(profile_of(tmp_path, prefix=prefix, module_paths=[inside, project], packages=[project / "package"]))
    assert paths[str(project)] == "list"
    assert paths[str(project / "package")] == "read+list"
    assert str(inside) not in paths


def test_a_module_path_that_is_the_home_is_refused(tmp_path: Path) -> None:
    (tmp_path / "python").mkdir()
    with pytest.raises(ProfileError):
        profile_of(tmp_path, prefix=tmp_path / "python", module_paths=[tmp_path])


def test_module_paths_that_are_missing_or_archives_are_taken_as_they_are(tmp_path: Path) -> None:
    prefix, archive = tmp_path / "python", tmp_path / "modules.zip"
    prefix.mkdir()
    archive.touch()
    paths = granted(profile_of(tmp_path, prefix=prefix, module_paths=[archive, tmp_path / "gone", Path()]))
    assert paths[str(archive)] == "read"
    assert str(tmp_path / "gone") not in paths


def test_what_a_backend_adds_is_held_to_the_same_rule(tmp_path: Path) -> None:
    with pytest.raises(ProfileError):
        python_profile("worker", private_folders=[str(tmp_path)], extra=[Grant(str(tmp_path.parent), "read")])
    added = Grant("/dev/nvidiactl", "device")
    assert added in python_profile("worker", private_folders=[str(tmp_path)], extra=[added], any_ioctl=True).grants


def test_an_inspector_gets_no_device_and_no_extra_call() -> None:
    for wrong in (
        {"grants": (Grant("/dev/nvidiactl", "device"),)},
        {"extra_calls": frozenset({"memfd_create"})},
        {"any_ioctl": True},
    ):
        with pytest.raises(ProfileError):
            Profile("inspector", **wrong)  # pyright: ignore[reportArgumentType]
    assert Profile("inspector", (Grant(os.sep, "list"),)).kind == "inspector"


def test_a_grant_must_be_absolute() -> None:
    with pytest.raises(ProfileError):
        Grant("models", "read")
