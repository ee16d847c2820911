"""A node for tests and the demo: it does to cgroups what kubelet and containerd do."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import stat
from pathlib import Path

from tests.testnode.api import Api
from tests.testnode.cgroup_tree import cgroup2_mount
from tests.testnode.naming import DRIVERS
from tests.testnode.node import Node
from tests.testnode.pod import Place
from tests.testnode.sweep import sweep


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form name=value")
    return name, value


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.testnode", description=__doc__)
    parser.add_argument("--name", required=True, help="the Node's name")
    parser.add_argument("--kubeconfig", required=True, type=Path)
    parser.add_argument(
        "--cgroup-parent", required=True,
        help="a path below the cgroup2 mount for this node alone; the node empties the path at its"
        " start, and removes it at its end",
    )  # fmt: skip
    parser.add_argument("--state-dir", required=True, type=Path, help="for volumes and bundles")
    parser.add_argument("--driver", choices=DRIVERS, default="systemd")
    parser.add_argument(
        "--capacity", type=_pair, action="extend", nargs="+", default=[], metavar="NAME=QUANTITY",
        help="e.g. hugepages-2Mi=256Mi; default: the pages in the machine's pools at the start",
    )  # fmt: skip
    parser.add_argument(
        "--label", type=_pair, action="extend", nargs="+", default=[], metavar="KEY=VALUE"
    )
    parser.add_argument(
        "--rsvd", action="store_true",
        help="write rsvd.max and max, as kubelet since 1.29; default: only max, as older kubelets",
    )  # fmt: skip
    return parser.parse_args()


async def _serve(arguments: argparse.Namespace, place: Place) -> None:
    ready = place.state_dir / "ready"
    ready.unlink(missing_ok=True)
    async with Api(arguments.kubeconfig) as api:
        node = Node(api, place, dict(arguments.capacity), dict(arguments.label))
        serving = asyncio.create_task(node.run(ready))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, serving.cancel)
        if stat.S_ISFIFO(os.fstat(0).st_mode):
            # The parent holds the other end of the pipe: the node ends with its parent.
            loop.add_reader(0, lambda: os.read(0, 4096) or serving.cancel())
        await asyncio.wait({serving})
        if not serving.cancelled():
            serving.result()


def main() -> None:
    """Run the node until SIGTERM, SIGINT or the end of standard input, if that is a pipe."""
    arguments = _arguments()
    logging.basicConfig(
        level=logging.INFO, format=f"%(asctime)s {arguments.name} %(levelname)s %(message)s"
    )
    state_dir: Path = arguments.state_dir.resolve()
    state_dir.mkdir(parents=True, exist_ok=True)
    root = cgroup2_mount()
    place = Place(
        root=root,
        parent=root / arguments.cgroup_parent.strip("/"),
        state_dir=state_dir,
        driver=arguments.driver,
        node_name=arguments.name,
        rsvd=arguments.rsvd,
    )
    # Remove what an earlier process left, as kubelet does; at the end, what this process leaves.
    sweep(arguments.cgroup_parent, state_dir)
    try:
        asyncio.run(_serve(arguments, place))
    finally:
        sweep(arguments.cgroup_parent, state_dir)


if __name__ == "__main__":
    main()
