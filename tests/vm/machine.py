"""A virtual machine for a node: QEMU with an emulated processor, and a shell by SSH."""

from __future__ import annotations

import io
import subprocess
import tarfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.kube.process import Child
from tests.vm.network import HOST, Address
from tests.vm.qemu import Qemu
from tests.vm.root import Disk
from tests.vm.steps import StepFailed

CPU = "Haswell-noTSX,pdpe1gb=on,smap=off,smep=off"
"""The model "max", with five-level page tables, SMAP and wide vectors, is a sixth slower."""
MEMORY_MIB = 4608
PAGES_1G = 1
PAGES_2M = 256
KERNEL_LINE = (
    "console=ttyS0 root=/dev/vda rw net.ifnames=0 mitigations=off nokaslr quiet audit=0"
    f" systemd.show_status=0 hugepagesz=1G hugepages={PAGES_1G} hugepagesz=2M hugepages={PAGES_2M}"
)


def variables(name: str, address: Address, **more: str) -> bytes:
    """Return the file `env` of a seed, with the variables of the machine's setup script."""
    env = {"NAME": name, "ADDRESS": address.ip, "GATEWAY": HOST, **more}
    return "".join(f"{each}={value}\n" for each, value in env.items()).encode()


class Machine:
    """A running machine. A reboot keeps changes of the disk; `stop` discards them.

    `directory`: the machine's folder for the seed, the SSH key and the logs.
    `seed`: the files, by name, that the machine unpacks to /run/node at each boot.
    `kernel`: more kernel parameters.
    """

    def __init__(
        self,
        name: str,
        address: Address,
        disk: Disk,
        directory: Path,
        seed: Mapping[str, bytes],
        *,
        qemu: Qemu,
        memory_mib: int = MEMORY_MIB,
        kernel: str = "",
    ) -> None:
        self.name = name
        self.address = address
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._key = directory / "ssh.key"
        if not self._key.exists():
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._key],
                check=True,
                timeout=60,
            )
        self.reseed(seed)
        command = self._command(disk, qemu, memory_mib, f"{KERNEL_LINE} {kernel}".strip())
        self._qemu = Child("qemu", command, directory / "qemu.log")

    def reseed(self, seed: Mapping[str, bytes]) -> None:
        """Write the files that the machine unpacks at its next boot."""
        files = {**seed, "authorized_keys": self._key.with_suffix(".key.pub").read_bytes()}
        # Overwrite the file in place, because QEMU has it open.
        with (self._directory / "seed.tar").open("wb") as raw:
            with tarfile.open(fileobj=raw, mode="w") as tar:
                for name, content in files.items():
                    entry = tarfile.TarInfo(name)
                    entry.size, entry.mode = len(content), 0o600
                    tar.addfile(entry, io.BytesIO(content))
            raw.truncate(1 << 20)

    def _command(self, disk: Disk, qemu: Qemu, memory_mib: int, line: str) -> list[str]:
        drive = "format=raw,if=virtio"
        return [
            *qemu.command,
            *("-accel", f"tcg,thread={qemu.threads}", "-cpu", CPU, "-smp", "2"),
            *("-m", str(memory_mib)),
            *("-kernel", str(disk.kernel), "-initrd", str(disk.initrd), "-append", line),
            *("-drive", f"file={disk.image},{drive},cache=unsafe,snapshot=on"),
            *("-drive", f"file={self._directory / 'seed.tar'},{drive},readonly=on"),
            *("-netdev", f"tap,id=net,ifname={self.address.tap},script=no,downscript=no"),
            *("-device", f"virtio-net-pci,netdev=net,mac={self.address.mac}"),
            *("-device", "virtio-rng-pci"),
            *("-nodefaults", "-vga", "none", "-display", "none", "-monitor", "none"),
            *("-serial", f"file:{self._directory / 'console.log'}"),
        ]

    def ssh_command(self) -> list[str]:
        """The command for a shell on the machine; run it in the cluster's network namespace."""
        options = (
            *("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"),
            *("ConnectTimeout=10",),
        )
        flags = [word for option in options for word in ("-o", option)]
        return ["ssh", "-i", str(self._key), *flags, f"root@{self.address.ip}"]

    def shell(self, script: str, timeout: float = 120.0) -> str:
        """Run a shell script on the machine; return its output. Raises StepFailed."""
        try:
            done = subprocess.run(
                [*self.ssh_command(), script],
                capture_output=True,
                text=True,
                timeout=timeout,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired as error:
            raise StepFailed(f"{self.name}: `{script}` took more than {timeout:.0f} s") from error
        if done.returncode:
            raise StepFailed(f"{self.name}: `{script}`: {done.stdout}{done.stderr}")
        return done.stdout

    def check_alive(self) -> None:
        """Raise StepFailed if QEMU has ended."""
        if self._qemu.exit_status is not None:
            raise StepFailed(
                f"{self.name}: QEMU ended with status {self._qemu.exit_status}:\n"
                f"{self._qemu.tail()}\n{self.console_tail()}"
            )

    def wait_until(self, done: Callable[[], bool], what: str, deadline: float) -> None:
        """Wait until `done` is true. Raises StepFailed with the end of the machine's logs.

        `what`: what the machine does then. `deadline`: by the clock `time.monotonic`.
        """
        while not done():
            self.check_alive()
            if time.monotonic() > deadline:
                raise StepFailed(f"waited in vain for {self.name} to {what}:\n{self.diagnose()}")
            time.sleep(0.5)

    def console_tail(self, lines: int = 30) -> str:
        """The last lines of the machine's serial console."""
        log = self._directory / "console.log"
        text = log.read_text(errors="replace") if log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def diagnose(self) -> str:
        """The end of the console and, if the shell works, of the services' logs."""
        try:
            units = self.shell(
                "systemctl --failed --no-pager; journalctl --no-pager -n 60 -u node-setup"
                " -u machine-setup -u docker -u containerd -u kubelet -u kube-proxy",
                timeout=60,
            )
        except StepFailed as error:
            units = str(error)
        return f"{self.console_tail()}\n{units}"

    def stop(self) -> None:
        """Kill QEMU; nothing needs a shutdown, because the disk is discarded."""
        self._qemu.kill9()
