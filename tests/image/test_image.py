"""The image as its programs see it: another user, a read-only root, no installers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import preflight
from tests.vm import image

pytestmark = pytest.mark.timeout(1500)  # the first build makes the base

PROGRAMS = ("admission", "controller", "agent")
ENVIRONMENT_MIB = 76
"""The largest virtual environment; cryptography takes 16 MiB, uvloop 13, the reader 1.4."""
INSTALLERS = ("pip", "setuptools", "wheel", "pkg_resources", "ensurepip", "_distutils_hack")

EVERY_MODULE_IS_COMPILED = """
import importlib, os, sys
for program in sys.argv[1:]:
    importlib.import_module(f"hugetlb_quota.{program}.__main__")
files = {getattr(module, "__cached__", None) for module in sys.modules.values()} - {None}
print(len(files), *(file for file in files if not os.path.exists(file)))
"""

LEASE_IS_MADE_READ_AND_RENEWED = """
import asyncio
from aiohttp import web
from hugetlb_quota.kube.lease import _TimedLeaseLock
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord

kept = {}

async def get(request):
    refusal = {"kind": "Status", "apiVersion": "v1", "code": 404, "details": {"causes": []}}
    return web.json_response(kept, status=200) if kept else web.json_response(refusal, status=404)

async def put(request):
    kept.update(await request.json())
    kept["metadata"]["resourceVersion"] = "7"
    kept["metadata"]["managedFields"] = [{"manager": "x", "time": "2026-01-01T00:00:00Z"}]
    return web.json_response(kept)

async def main():
    app = web.Application()
    leases = "/apis/coordination.k8s.io/v1/namespaces/n/leases"
    one = leases + "/l"
    app.add_routes([web.get(one, get), web.post(leases, put), web.put(one, put)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    async with ApiClient(Configuration(host=f"http://127.0.0.1:{port}")) as client:
        lock = _TimedLeaseLock("l", "n", "me", client)
        there, answer = await lock.get("l", "n")
        now = "2026-01-01 00:00:00.000001"
        record = LeaderElectionRecord("me", "20", now, now)
        print(there, answer.status, await lock.create("l", "n", record))
        there, read = await lock.get("l", "n")
        print(there, read.holder_identity, read.renew_time, await lock.update("l", "n", record))
    await runner.cleanup()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def built() -> image.Image:
    if preflight._root() is not None:
        pytest.skip("root is needed to make the base of the image and to mount")
    for program in ("buildah", "debootstrap"):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program} to build the image with: install it")
    return image.built()


@pytest.fixture(scope="module")
def root(built: image.Image) -> Iterator[Path]:
    with image.unpacked(built) as folder:
        yield folder


def run(root: Path, built: image.Image, *command: str, text: str = "") -> str:
    """Run a command as the chart does, with the image's environment; return the output."""
    done = subprocess.run(
        ["chroot", "--userspec=65532:65532", "--groups=", root, *command],
        env=dict(each.split("=", 1) for each in image.configuration(built)["Env"]),
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_each_program_starts_as_the_charts_user(
    program: str, root: Path, built: image.Image
) -> None:
    help_text = run(root, built, "python", "-m", f"hugetlb_quota.{program}", "--help")
    assert help_text.startswith("usage: ")


def test_the_root_is_read_only_and_all_modules_are_compiled(root: Path, built: image.Image) -> None:
    with pytest.raises(OSError, match="Read-only"):
        (root / "opt/x").touch()
    count, *missing = run(root, built, "python", "-c", EVERY_MODULE_IS_COMPILED, *PROGRAMS).split()
    assert int(count) > 500
    assert missing == []


def test_the_reader_of_the_charge_list_runs_and_its_source_is_absent(
    root: Path, built: image.Image
) -> None:
    [folder] = root.glob("opt/hugetlb-quota/lib/python3*/site-packages/hugetlb_quota/node/reader")
    assert [path.name for path in folder.iterdir()] == ["charge-reader"]
    program = folder / "charge-reader"
    done = subprocess.run(
        ["chroot", root, f"/{program.relative_to(root)}"],
        input=b"",
        capture_output=True,
        timeout=60,
    )
    # This root has no BTF of the kernel: the reader says so in its protocol, and ends.
    assert (done.returncode, done.stderr) == (1, b"")
    assert done.stdout.startswith(b"HQCL")
    assert b"has no BTF at /sys/kernel/btf/vmlinux" in done.stdout


def test_the_pruned_client_makes_reads_and_renews_a_lease(root: Path, built: image.Image) -> None:
    assert run(root, built, "python", "-", text=LEASE_IS_MADE_READ_AND_RENEWED).splitlines() == [
        "False 404 True",
        "True me 2026-01-01 00:00:00.000001 True",
    ]


def test_no_installer_is_left(root: Path) -> None:
    left = [
        path
        for path in root.rglob("*")
        if path.name in INSTALLERS
        or (path.name.split("-")[0] in INSTALLERS and path.suffix in (".dist-info", ".whl"))
        or (path.parent.name == "bin" and path.name.startswith("pip"))
    ]
    assert left == []


def test_no_link_is_broken(root: Path) -> None:
    done = subprocess.run(
        ["chroot", root, "find", "/", "-xdev", "-xtype", "l", "-not", "-lname", "/proc/*"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout == ""


def test_labels_and_user(built: image.Image) -> None:
    configuration = image.configuration(built)
    labels = {
        name.removeprefix("org.opencontainers.image."): value
        for name, value in configuration["Labels"].items()
    }
    assert labels["title"] == "hugetlb-quota"
    assert labels["licenses"] == "Apache-2.0"
    assert labels["version"] == built.name.partition(":")[2]
    assert labels["revision"].startswith("content-")
    assert labels["base.name"] == image._base_name()
    assert configuration["User"] == "65532:65532"


def test_no_certificate_of_the_builder_is_left(root: Path, built: image.Image) -> None:
    assert not any("CERT" in each for each in image.configuration(built)["Env"])
    assert not (root / "run/secrets").exists()
    given = [os.environ[name] for name in ("CA", "PIP_CERT", "SSL_CERT_FILE") if name in os.environ]
    if not given:
        return
    secret = Path(given[0]).read_bytes()
    same = [
        path
        for path in root.rglob("*")
        # A link could lead out of the root.
        if path.is_file()
        and not path.is_symlink()
        and path.stat().st_size == len(secret)
        and path.read_bytes() == secret
    ]
    assert same == []


def test_lists_of_installed_files_name_only_existing_files(root: Path) -> None:
    records = [*root.glob("opt/hugetlb-quota/lib/python3*/site-packages/*.dist-info/RECORD")]
    assert len(records) > 30
    for record in records:
        for line in record.read_text().splitlines():
            assert (record.parent.parent / line.rsplit(",", 2)[0]).exists(), f"{record}: {line}"


def test_the_size_does_not_creep(root: Path) -> None:
    environment = root / "opt/hugetlb-quota"
    size = sum(path.lstat().st_size for path in environment.rglob("*") if not path.is_dir())
    print(f"{size / 2**20:.1f} MiB", file=sys.stderr)
    assert size < ENVIRONMENT_MIB * 2**20
