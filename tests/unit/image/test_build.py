"""The engine that builds the image, and the engine's arguments."""

from __future__ import annotations

from pathlib import Path

import pytest

from image import build


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def install(path: Path, name: str, *, status: int = 0) -> None:
    (path / name).write_text(f"#!/bin/sh\nexit {status}\n")
    (path / name).chmod(0o755)


def test_the_first_installed_engine_is_used(path: Path) -> None:
    install(path, "buildah")
    assert build.engine() == "buildah"
    install(path, "podman")
    assert build.engine() == "podman"
    install(path, "docker")
    assert build.engine() == "docker"
    assert build.engine("buildah") == "buildah"


def test_docker_without_its_daemon_is_skipped(path: Path) -> None:
    install(path, "docker", status=1)
    install(path, "buildah")
    assert build.engine() == "buildah"
    with pytest.raises(build.CannotBuildError, match="daemon does not answer"):
        build.engine("docker")


def test_a_missing_engine_is_reported(path: Path) -> None:
    with pytest.raises(build.CannotBuildError, match="Install one of docker, podman, buildah"):
        build.engine()
    with pytest.raises(build.CannotBuildError, match="ENGINE=kaniko is none of"):
        build.engine("kaniko")


def test_the_certificates_are_passed_only_as_a_secret(tmp_path: Path) -> None:
    authorities = tmp_path / "ca.pem"
    authorities.touch()
    words = build.command("buildah", {"CA": str(authorities)})
    assert [word for word in words if "ca.pem" in word] == [f"id=ca,src={authorities}"]
    assert "--secret" not in build.command("buildah", {})
    with pytest.raises(build.CannotBuildError, match=r"no file .*/other\.pem"):
        build.command("buildah", {"CA": str(tmp_path / "other.pem")})


def test_labels_name_version_revision_and_source() -> None:
    given = {"REVISION": "abc", "SOURCE": "https://example.com/quota"}
    words = build.command("podman", given)
    labels = dict(word.split("=", 1) for word in words if word.startswith(build.LABEL))
    assert labels == {
        "org.opencontainers.image.version": build.version(),
        "org.opencontainers.image.revision": "abc",
        "org.opencontainers.image.source": "https://example.com/quota",
    }


@pytest.mark.parametrize(
    ("remote", "label"),
    [
        ("https://user:secret@example.com:8443/quota.git", "https://example.com:8443/quota.git"),
        ("/srv/git/quota", ""),
        ("ssh://git@example.com/quota", ""),
        ("", ""),
    ],
)
def test_no_password_and_no_path_of_this_machine_becomes_a_label(remote: str, label: str) -> None:
    assert build._public(remote) == label


def test_the_base_is_pinned_by_digest() -> None:
    (base,) = (
        line for line in (build.TREE / "Dockerfile").read_text().splitlines() if "ARG BASE=" in line
    )
    assert len(base.partition("@sha256:")[2]) == 64
