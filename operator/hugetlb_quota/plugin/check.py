"""``check``: all parts of hugetlb-quota must be installed, running and of one version."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Final

from hugetlb_quota.kube.controller_lease import HOOK, LEASE
from hugetlb_quota.plugin import check_nodes, check_webhooks
from hugetlb_quota.plugin.facts import COMPONENTS, CRDS, Facts, Json
from hugetlb_quota.plugin.findings import Finding, Level, unseen
from hugetlb_quota.plugin.table import age
from hugetlb_quota.plugin.world import words
from hugetlb_quota.plural import number_of

_SERVED: Final = "HugeTLBQuota and HugeTLBNode are served."
_VERSION: Final = "app.kubernetes.io/version"


def check(facts: Facts) -> list[Finding]:
    """All findings. A part comes after the parts that it needs."""
    parts = (
        ("CRDs", facts.crds, _crds),
        ("webhooks", facts.webhooks, check_webhooks.check),
        ("programs", facts.workloads, _programs),
        ("leader", facts.leases, _leader),
        ("nodes", facts.reports, check_nodes.check),
        ("quotas", facts.quotas, _quotas),
        ("versions", facts.workloads, _versions),
    )
    findings: list[Finding] = []
    for topic, read, part in parts:
        if topic == "CRDs" and read is None and None not in (facts.quotas, facts.reports):
            # Objects of both kinds were listed just now, so the CRDs exist.
            findings.append(Finding(Level.OK, topic, _SERVED))
        elif read is None:
            why = facts.unread.get(topic, "you have no right to read it")
            findings.append(unseen(topic, why))
        else:
            findings += part(facts)
    findings += [unseen("quotas", quotas) for quotas in facts.partly]
    return findings


def _crds(facts: Facts) -> Iterator[Finding]:
    assert facts.crds is not None
    for name in CRDS:
        crd = facts.crds.get(name)
        if crd is None:
            yield Finding(
                Level.ERROR,
                "CRDs",
                f"CustomResourceDefinition {name} does not exist.",
                "Install the chart with crds.install=true, or apply the files in crds/.",
            )
        elif not _is_established(crd):
            yield Finding(
                Level.ERROR,
                "CRDs",
                f"CustomResourceDefinition {name} is not established: {_why_not(crd)}",
                f"See kubectl describe crd {name}.",
            )
    if all(_is_established(facts.crds.get(name) or {}) for name in CRDS):
        yield Finding(Level.OK, "CRDs", _SERVED)


def _programs(facts: Facts) -> Iterator[Finding]:
    assert facts.workloads is not None
    for component in COMPONENTS:
        workloads = facts.workloads.get(component) or ()
        if not workloads:
            kind = "DaemonSet" if component == "agent" else "Deployment"
            yield Finding(
                Level.ERROR,
                component,
                f"There is no {kind} of {component}.",
                "Install the chart, or see kubectl get deployments,daemonsets -A.",
            )
        for workload in workloads:
            yield _workload(component, workload)


def _workload(component: str, raw: Json) -> Finding:
    metadata, status = raw["metadata"], raw.get("status") or {}
    name = f"{metadata['namespace']}/{metadata['name']}"
    if component == "agent":
        wanted = int(status.get("desiredNumberScheduled") or 0)
        available = int(status.get("numberAvailable") or 0)
        updated = int(status.get("updatedNumberScheduled") or 0)
        kind = "DaemonSet"
    else:
        wanted = int((raw.get("spec") or {}).get("replicas", 1))
        available = int(status.get("availableReplicas") or 0)
        updated = int(status.get("updatedReplicas") or 0)
        kind = "Deployment"
    see = f"See kubectl -n {metadata['namespace']} describe {kind.lower()} {metadata['name']}."
    if wanted and not available:
        message = (
            f"{kind} {name} has none of its {wanted} pods available."
            if wanted > 1
            else f"The pod of {kind} {name} is not available."
        )
        return Finding(Level.ERROR, component, message, see)
    if not wanted:
        message = f"{kind} {name} wants no pods."
        remedy = see if component == "agent" else f"Scale it up, to 2. {see}"
        return Finding(Level.ERROR, component, message, remedy)
    if available < wanted:
        message = f"{kind} {name} has {available} of {wanted} pods available."
        return Finding(Level.WARNING, component, message, see)
    if updated < wanted:
        new = f"{updated} of {wanted} pods are new" if wanted > 1 else "its pod is not new"
        message = f"{kind} {name} is being updated: {new}."
        return Finding(Level.WARNING, component, message, see)
    return Finding(Level.OK, component, f"{kind} {name}: {number_of(available, 'pod')} available.")


def _leader(facts: Facts) -> Iterator[Finding]:
    leases = facts.leases or ()
    if not leases:
        yield Finding(
            Level.ERROR,
            "leader",
            f"There is no Lease {LEASE}: no controller has ever led, and no controller counts.",
            "See the log of the controller.",
        )
    for lease in leases:
        yield _lease(lease, facts.now)


def _lease(lease: Json, now: datetime) -> Finding:
    spec, namespace = lease.get("spec") or {}, lease["metadata"]["namespace"]
    name = f"Lease {namespace}/{lease['metadata']['name']}"
    holder = spec.get("holderIdentity")
    renewed = _time(spec.get("renewTime"))
    duration = timedelta(seconds=int(spec.get("leaseDurationSeconds") or 0))
    if holder == HOOK:
        return Finding(
            Level.ERROR,
            "leader",
            f"{name} is held by {HOOK}: the operator was uninstalled; quotas hold nothing.",
            "Install the chart. Directly after an install, wait half a minute, and check again.",
        )
    if not holder:
        message = f"{name} has no holder: no controller counts."
    elif renewed is None or now > renewed + duration:
        message = (
            f"{name} was last renewed {age(renewed, now)} ago, by {holder}: no controller counts."
        )
    else:
        return Finding(Level.OK, "leader", f"{name} is held by {holder}.")
    see = f"See kubectl -n {namespace} get pods, and the logs of these pods."
    return Finding(Level.ERROR, "leader", message, see)


def _quotas(facts: Facts) -> Iterator[Finding]:
    quotas = facts.quotas or ()
    is_well = True
    for quota in quotas:
        for word in words(quota):
            is_well = False
            message = next(
                (each.message for each in quota.conditions if each.reason == word),
                quota.invalid or "the controller has not counted the quota since its last change.",
            )
            yield Finding(
                Level.ERROR if word in ("Invalid", "NotCounted") else Level.WARNING,
                "quotas",
                f"{quota.key} is {word}: {message}",
                f"See kubectl -n {quota.key.namespace} describe htq {quota.key.name}.",
            )
    if is_well:
        each = "" if len(quotas) == 1 else "all of them "
        message = f"{number_of(len(quotas), 'quota')}, {each}counted and in order."
        yield Finding(Level.OK, "quotas", message)


def _versions(facts: Facts) -> Iterator[Finding]:
    assert facts.workloads is not None
    versions = {
        component: str((workload["metadata"].get("labels") or {}).get(_VERSION) or "unknown")
        for component, workloads in facts.workloads.items()
        for workload in workloads
    }
    images = {
        container.get("image")
        for workloads in facts.workloads.values()
        for workload in workloads
        for container in workload["spec"]["template"]["spec"]["containers"]
    }
    if not versions:
        return
    listed = ", ".join(f"{component} {version}" for component, version in versions.items())
    if len(set(versions.values())) > 1 or len(images) > 1:
        yield Finding(
            Level.WARNING,
            "versions",
            f"The programs have different versions: {listed};"
            f" images {', '.join(sorted(map(str, images)))}.",
            "Upgrade the release as a whole.",
        )
    elif facts.version not in versions.values():
        yield Finding(
            Level.WARNING,
            "versions",
            f"This plugin has version {facts.version}, and the programs have version"
            f" {next(iter(versions.values()))}.",
            "Install the plugin of the same release.",
        )
    else:
        message = f"The programs and the plugin have version {facts.version}."
        yield Finding(Level.OK, "versions", message)


def _established(crd: Json) -> Json:
    conditions = (crd.get("status") or {}).get("conditions") or ()
    return next((each for each in conditions if each.get("type") == "Established"), {})


def _is_established(crd: Json) -> bool:
    return _established(crd).get("status") == "True"


def _why_not(crd: Json) -> str:
    return str(_established(crd).get("message") or "its status gives no reason")


def _time(value: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
