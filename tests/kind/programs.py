"""Build kind and kubeadm from their Go modules, once."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.kube import build
from tests.vm.root import locked
from tests.vm.steps import StepFailed, run, step

KIND = "v0.33.0"


@dataclass(frozen=True)
class Programs:
    """The programs and files that make a kind node and the cluster."""

    kind: Path
    kubeadm: Path
    files: Path
    """The files that kind copies over Debian in the node's image."""


def built() -> Programs:
    """Return the programs; build them if they are missing. Raises StepFailed."""
    folder = build.cache() / "kind" / f"{KIND}-{build.kubernetes_version()}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock"):
        if not (folder / "kind").exists():
            with step(f"building kind {KIND}"):
                _kind(folder)
        if not (folder / "kubeadm").exists():
            with step("building kubeadm from the control plane's module"):
                _kubeadm(folder)
    files = Path(_go_env("GOMODCACHE"), f"sigs.k8s.io/kind@{KIND}", "images/base/files")
    if not files.is_dir():
        run(["go", "mod", "download", f"sigs.k8s.io/kind@{KIND}"], cwd=folder)
    return Programs(folder / "kind", folder / "kubeadm", files)


def _kind(folder: Path) -> None:
    making = folder / "making"
    environment = {**os.environ, "CGO_ENABLED": "0", "GOBIN": str(making)}
    run(["go", "install", f"sigs.k8s.io/kind@{KIND}"], cwd=folder, env=environment)
    (making / "kind").rename(folder / "kind")


def _kubeadm(folder: Path) -> None:
    """Build kubeadm with copies of go.mod and go.sum, which lack kubeadm's dependencies."""
    for name in ("go.mod", "go.sum"):
        shutil.copy2(build.MODULE / name, folder / name)
    making = folder / "kubeadm.making"
    run(
        [
            *("go", "build", "-mod=mod", f"-modfile={folder / 'go.mod'}", "-trimpath"),
            *("-buildvcs=false", "-ldflags", build.linker_flags(), "-o", making),
            "k8s.io/kubernetes/cmd/kubeadm",
        ],
        cwd=build.MODULE,
    )
    making.rename(folder / "kubeadm")


def _go_env(name: str) -> str:
    value = run(["go", "env", name]).strip()
    if not value:
        raise StepFailed(f"`go env {name}` says nothing")
    return value
