"""``python -m tests.kind``: make a cluster with kind, run tests/e2e on it, and delete it.

The arguments are pytest's. Environment: KEEP=1 keeps the cluster; KIND_NODE_IMAGE is the node's
image (by default kind's choice). The program needs Docker with its daemon, kind, kubectl, helm, and
huge pages of the host, which every kind node counts as its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from image.build import TREE, CannotBuildError, engine, image_name
from tests.vm.images import WORKLOAD
from tests.vm.machine import PAGES_2M as PAGES
from tests.vm.scenes import WORKLOAD_IMAGE

CLUSTER = "hugetlb-quota-e2e"
POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")


def lacking(pool: Path = POOL) -> list[str]:
    """Return a sentence for each missing thing that says what to do."""
    sentences = [
        f"{program} is not on PATH: install it."
        for program in ("kind", "kubectl", "helm")
        if shutil.which(program) is None
    ]
    try:
        engine("docker")
    except CannotBuildError as error:
        sentences.append(f"kind is run with Docker here. {error}")
    there = int(pool.read_text()) if pool.exists() else 0
    if there < PAGES:
        sentences.append(
            f"The host has {there} huge pages of 2 MiB and the scenes need {PAGES}: reserve them "
            f"before the cluster is made, with `sysctl vm.nr_hugepages={PAGES}`."
        )
    return sentences


def run(*words: str | Path, **environment: str) -> None:
    """Run a command with its output on the terminal. Raises CalledProcessError."""
    print("+", *words, file=sys.stderr, flush=True)
    subprocess.run(words, cwd=TREE, env={**os.environ, **environment}, check=True)


def build() -> list[str]:
    """Build the operator's and the scenes' images with docker; return their names."""
    run(sys.executable, TREE / "image" / "build.py", ENGINE="docker")
    run("docker", "build", "--tag", WORKLOAD_IMAGE, WORKLOAD)
    return [image_name(os.environ), WORKLOAD_IMAGE]


def create(kubeconfig: Path, images: list[str]) -> None:
    """Make the cluster, and load the images on its node."""
    node_image = os.environ.get("KIND_NODE_IMAGE")
    chosen = ["--image", node_image] if node_image else []
    named = ("--name", CLUSTER)
    run("kind", "create", "cluster", *named, "--kubeconfig", kubeconfig, "--wait", "5m", *chosen)
    for image in images:
        run("kind", "load", "docker-image", image, *named)


def main(arguments: list[str]) -> int:
    """Return pytest's exit status, or 1 if the cluster can't be made."""
    if sentences := lacking():
        print(*sentences, sep="\n", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        kubeconfig = Path(folder, "kubeconfig")
        try:
            images = build()
            create(kubeconfig, images)
            pytest = (sys.executable, "-m", "pytest", "-q", *(arguments or ["tests/e2e"]))
            run(
                *pytest,
                KUBECONFIG=str(kubeconfig),
                E2E_IMAGE=images[0],
                E2E_WORKLOAD_IMAGE=WORKLOAD_IMAGE,
            )
        except subprocess.CalledProcessError as error:
            print(error, file=sys.stderr)
            return 1
        finally:
            if os.environ.get("KEEP") == "1":
                print(f"Kept: `kind export kubeconfig --name {CLUSTER}`", file=sys.stderr)
            else:
                delete = ["kind", "delete", "cluster", "--name", CLUSTER]
                subprocess.run([*delete, "--kubeconfig", kubeconfig], check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
