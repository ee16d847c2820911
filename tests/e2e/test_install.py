"""After `helm install` the programs run, a controller leads, and quotas limit the agent too."""

from __future__ import annotations

from collections.abc import Callable

from tests.e2e import operator
from tests.e2e.host import Host
from tests.e2e.kubectl import apply, delete, items, wait
from tests.e2e.pods import condition, quota, wait_used
from tests.e2e.test_limits import wait_limits

Seen = Callable[[str], None]


def holder() -> str:
    """The leading controller; "" before the first election. A controller is Ready before it."""
    holders = {
        each["metadata"]["name"]: each["spec"].get("holderIdentity")
        for each in items("leases", operator.NAMESPACE)
    }
    return holders.get("hugetlb-quota-controller") or ""


def test_every_program_runs_and_none_was_restarted(installed: Host, seen: Seen) -> None:
    leader = wait("the controller to lead", holder)
    restarts = operator.restarts()
    assert len(restarts) >= 3, f"only {sorted(restarts)} run"
    assert not any(restarts.values()), f"programs were restarted: {restarts}"
    seen(f"{len(restarts)} pods, 0 restarts; {leader} leads")


def test_a_quota_over_the_agents_own_namespace_is_enforced(installed: Host, seen: Seen) -> None:
    """The limit of the agent's pod also limits the agent's container.

    The agent can't write the limits of its own container, the root of its cgroup namespace.
    """
    name = "own"
    apply(quota(operator.NAMESPACE, name, "8Mi"))
    try:
        wait_used(operator.NAMESPACE, name, "0")
        (agent,) = operator.pods("agent", installed.node)
        uid = agent["metadata"]["uid"]
        wait_limits(installed, uid, 0, containers=0)
        status, reason, message = condition(operator.node_report(installed.node), "Ready")
        assert status == "True", f"{reason}: {message}"
        seen(f"the agent's own pod is held to 0; Ready: {message}")
    finally:
        delete("hugetlbquota", name, operator.NAMESPACE)
