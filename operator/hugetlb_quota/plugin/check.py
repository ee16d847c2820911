"""``check``: whether all of hugetlb-quota is there, up, and of one mind."""

from __future__ import annotations

import ssl
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Any, Final

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.kube.quotas import QuotaObject
from hugetlb_quota.plugin.problem import Exit
from hugetlb_quota.plugin.reports import NodeReport
from hugetlb_quota.plugin.table import GREEN, RED, YELLOW, Screen, age, count, listed
from hugetlb_quota.plugin.world import words

Json = dict[str, Any]

#: A node's report older than this is stale: agents report at least once a minute.
STALE: Final = timedelta(seconds=150)
#: A CA that ends before so long deserves a look.
EXPIRES_SOON: Final = timedelta(days=30)
LEASE: Final = "hugetlb-quota-controller"
CRDS: Final = ("hugetlbquotas.hugetlb.dev", "hugetlbnodes.hugetlb.dev")
WEBHOOKS: Final = ("pods.hugetlb.dev", "relabelled.pods.hugetlb.dev", "quotas.hugetlb.dev")
COMPONENTS: Final = ("admission", "controller", "agent")
#: Names listed in a finding before it says how many more there are.
_NAMED: Final = 5
_SERVED: Final = "HugeTLBQuota and HugeTLBNode are served."
_VERSION: Final = "app.kubernetes.io/version"


class Level(IntEnum):
    """How bad a finding is."""

    OK = 0
    UNSEEN = 1
    WARNING = 2
    ERROR = 3


_EXITS: Final = {
    Level.OK: Exit.DONE,
    Level.UNSEEN: Exit.FORBIDDEN,
    Level.WARNING: Exit.WARNING,
    Level.ERROR: Exit.REFUSED,
}
_COLOURS: Final = {
    Level.OK: GREEN,
    Level.UNSEEN: YELLOW,
    Level.WARNING: YELLOW,
    Level.ERROR: RED,
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: ``topic`` in a word, what was found, what to do about it."""

    level: Level
    topic: str
    message: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What ``check`` has read; None is what it had no right to read.

    ``crds``: by name. ``workloads``: Deployments and the DaemonSet by
    component. ``endpoints``: how many are ready, of each Service that a webhook names. ``unread``:
    why not, by topic. ``partly``: what of the quotas could not be read.
    """

    now: datetime
    version: str
    crds: Mapping[str, Json] | None = None
    webhooks: Sequence[Json] | None = None
    endpoints: Mapping[str, int] | None = None
    workloads: Mapping[str, Sequence[Json]] | None = None
    leases: Sequence[Json] | None = None
    nodes: Sequence[Json] | None = None
    reports: Sequence[NodeReport] | None = None
    quotas: Sequence[QuotaObject] | None = None
    unread: Mapping[str, str] = field(default_factory=dict)
    partly: Sequence[str] = ()


def findings(facts: Facts) -> list[Finding]:
    """Everything that was found, in the order in which things depend on each other."""
    parts = (
        ("CRDs", facts.crds, _crds),
        ("webhooks", facts.webhooks, _webhooks),
        ("programs", facts.workloads, _programs),
        ("leader", facts.leases, _leader),
        ("nodes", facts.reports, _nodes),
        ("quotas", facts.quotas, _quotas),
        ("versions", facts.workloads, _versions),
    )
    found: list[Finding] = []
    for topic, read, look in parts:
        if topic == "CRDs" and read is None and None not in (facts.quotas, facts.reports):
            found.append(Finding(Level.OK, topic, _SERVED))  # they were listed just now
        elif read is None:
            why = facts.unread.get(topic, "there is no right to read it")
            found.append(_unseen(topic, why))
        else:
            found += look(facts)
    found += [_unseen("quotas", each) for each in facts.partly]
    return found


def _unseen(topic: str, what: str) -> Finding:
    return Finding(Level.UNSEEN, topic, f"Not looked at: {what}.")


def worst(found: Iterable[Finding]) -> Level:
    """The worst level among the findings."""
    return max((each.level for each in found), default=Level.OK)


def exit_code(found: Iterable[Finding]) -> Exit:
    """What ``check`` exits with: by the worst finding."""
    return _EXITS[worst(found)]


def document(found: Sequence[Finding]) -> dict[str, Any]:
    """The findings as plain data."""
    return {
        "worst": worst(found).name,
        "findings": [
            {
                "level": each.level.name,
                "topic": each.topic,
                "message": each.message,
                "remedy": each.remedy or None,
            }
            for each in found
        ],
    }


def picture(found: Sequence[Finding], screen: Screen) -> str:
    """The findings for a terminal: a line each, its remedy below, and a sum at the end."""
    width = max(len(each.topic) for each in found)
    lines = []
    for each in found:
        mark = screen.paint(f"{each.level.name:<7}", _COLOURS[each.level])
        lines.append(f"{mark}  {each.topic:<{width}}  {each.message}")
        if each.remedy:
            lines.append(f"{' ' * (width + 11)}{'->' if screen.plain else '→'} {each.remedy}")
    sums = [
        count(number, word)
        for level, word in ((Level.ERROR, "error"), (Level.WARNING, "warning"))
        if (number := sum(each.level == level for each in found))
    ]
    if unseen := sum(each.level == Level.UNSEEN for each in found):
        sums.append(f"{unseen} not looked at")
    ask = " Let an administrator run this, who may read all of it." if unseen else ""
    return "\n".join([*lines, "", f"{', '.join(sums) or 'All is well'}.{ask}"])


def _crds(facts: Facts) -> Iterator[Finding]:
    assert facts.crds is not None
    for name in CRDS:
        crd = facts.crds.get(name)
        if crd is None:
            yield Finding(
                Level.ERROR,
                "CRDs",
                f"CustomResourceDefinition {name} is not there.",
                "Install the chart with crds.install=true, or apply the files in crds/.",
            )
        elif not _is_true(crd, "Established"):
            yield Finding(
                Level.ERROR,
                "CRDs",
                f"CustomResourceDefinition {name} is not established: {_why(crd, 'Established')}",
                f"See kubectl describe crd {name}.",
            )
    if all(_is_true(facts.crds.get(name) or {}, "Established") for name in CRDS):
        yield Finding(Level.OK, "CRDs", _SERVED)


def _webhooks(facts: Facts) -> Iterator[Finding]:
    hooks = {
        hook["name"]: hook
        for configuration in facts.webhooks or ()
        for hook in configuration.get("webhooks") or ()
        if hook.get("name") in WEBHOOKS
    }
    if missing := [name for name in WEBHOOKS if name not in hooks]:
        yield Finding(
            Level.ERROR,
            "webhooks",
            f"No ValidatingWebhookConfiguration has {listed(missing, _NAMED)}, so"
            f" {'nothing is refused' if 'pods.hugetlb.dev' in missing else 'they are not asked'}.",
            "Install or upgrade the chart.",
        )
    bad = [*_without_ca(hooks)]
    bad += [each for name, hook in hooks.items() for each in _hook(name, hook, facts.now)]
    # The controller gives rules to the webhooks about pods with the first quota.
    silent = [name for name, hook in hooks.items() if not hook.get("rules")]
    if silent and facts.quotas:
        bad.append(
            Finding(
                Level.ERROR,
                "webhooks",
                f"{listed(silent, _NAMED)} {'has' if len(silent) == 1 else 'have'} no rules, so the"
                " API server asks nobody, and quotas refuse nothing.",
                "See the log of the controller that leads: admission must answer it first.",
            )
        )
    bad += _endpoints(hooks.values(), facts.endpoints)
    yield from dict.fromkeys(bad)
    if not missing and not bad:
        idle = " Without a quota nobody is asked about pods." if silent else ""
        configured = f"{count(len(hooks), 'webhook')} configured, with their CA."
        yield Finding(Level.OK, "webhooks", f"{configured}{idle}")


def _bundle(hook: Json) -> str:
    return str((hook.get("clientConfig") or {}).get("caBundle") or "")


def _without_ca(hooks: Mapping[str, Json]) -> Iterator[Finding]:
    bare = [name for name, hook in hooks.items() if not _bundle(hook)]
    if bare:
        yield Finding(
            Level.ERROR,
            "webhooks",
            f"{listed(bare, _NAMED)} {'has' if len(bare) == 1 else 'have'} no caBundle, so the API"
            " server can't trust what answers.",
            "Right after an install wait until its pods are ready: the controller fills it in (or"
            " cert-manager). Else see its log.",
        )


def _hook(name: str, hook: Json, now: datetime) -> Iterator[Finding]:
    bundle = _bundle(hook)
    if not bundle:
        return
    ends = _end_of(bundle)
    if ends is None:
        yield Finding(
            Level.ERROR,
            "webhooks",
            f"The caBundle of webhook {name} holds no certificate.",
            "Upgrade the chart, or correct admission.tls.caBundle.",
        )
    elif ends < now:
        yield Finding(
            Level.ERROR,
            "webhooks",
            f"The CA of the webhooks ended at {ends:%Y-%m-%d %H:%M} UTC.",
            "Renew it: docs/operations.md tells how.",
        )
    elif ends < now + EXPIRES_SOON:
        yield Finding(
            Level.WARNING,
            "webhooks",
            f"The CA of the webhooks ends at {ends:%Y-%m-%d %H:%M} UTC.",
            "Renew it before: docs/operations.md tells how.",
        )
    if name == "pods.hugetlb.dev" and hook.get("failurePolicy") == "Ignore":
        yield Finding(
            Level.WARNING,
            "webhooks",
            f"Webhook {name} has failurePolicy Ignore: while admission is away, pods are let"
            " through beyond any quota.",
            "Set admission.failurePolicy to Fail unless that is wanted.",
        )


def _end_of(bundle: str) -> datetime | None:
    """When the first certificate of a caBundle ends; None when it holds none."""
    try:
        context = ssl.create_default_context(cadata=b64decode(bundle).decode())
        ends = [
            ssl.cert_time_to_seconds(str(each["notAfter"]))
            for each in context.get_ca_certs()
            if "notAfter" in each
        ]
    except (ValueError, ssl.SSLError):
        return None
    return datetime.fromtimestamp(min(ends), UTC) if ends else None


def _endpoints(hooks: Iterable[Json], ready: Mapping[str, int] | None) -> list[Finding]:
    services = {
        f"{service.get('namespace')}/{service.get('name')}"
        for hook in hooks
        if (service := (hook.get("clientConfig") or {}).get("service"))
    }
    if ready is None:
        return []
    return [
        Finding(
            Level.ERROR,
            "webhooks",
            f"Service {name} has no ready endpoint, so nobody answers for admission.",
            f"See kubectl -n {name.partition('/')[0]} get pods.",
        )
        for name in sorted(services)
        if not ready.get(name)
    ]


def _programs(facts: Facts) -> Iterator[Finding]:
    assert facts.workloads is not None
    for component in COMPONENTS:
        found = facts.workloads.get(component) or ()
        if not found:
            kind = "DaemonSet" if component == "agent" else "Deployment"
            yield Finding(
                Level.ERROR,
                component,
                f"There is no {kind} of {component}.",
                "Install the chart, or see kubectl get deployments,daemonsets -A.",
            )
        for each in found:
            yield _workload(component, each)


def _workload(component: str, raw: Json) -> Finding:
    metadata, status = raw["metadata"], raw.get("status") or {}
    name = f"{metadata['namespace']}/{metadata['name']}"
    if component == "agent":
        wanted = int(status.get("desiredNumberScheduled") or 0)
        up = int(status.get("numberAvailable") or 0)
        updated = int(status.get("updatedNumberScheduled") or 0)
        kind = "DaemonSet"
    else:
        wanted = int((raw.get("spec") or {}).get("replicas", 1))
        up = int(status.get("availableReplicas") or 0)
        updated = int(status.get("updatedReplicas") or 0)
        kind = "Deployment"
    see = f"See kubectl -n {metadata['namespace']} describe {kind.lower()} {metadata['name']}."
    if wanted and not up:
        message = f"{kind} {name} has none of its {count(wanted, 'pod')} available."
        return Finding(Level.ERROR, component, message, see)
    if not wanted:
        message = f"{kind} {name} is to have no pods."
        remedy = see if component == "agent" else f"Scale it up, to 2. {see}"
        return Finding(Level.ERROR, component, message, remedy)
    if up < wanted:
        message = f"{kind} {name} has {up} of {wanted} pods available."
        return Finding(Level.WARNING, component, message, see)
    if updated < wanted:
        message = f"{kind} {name} is being updated: {updated} of {wanted} pods are new."
        return Finding(Level.WARNING, component, message, see)
    return Finding(Level.OK, component, f"{kind} {name}: {count(up, 'pod')} available.")


def _leader(facts: Facts) -> Iterator[Finding]:
    leases = facts.leases or ()
    if not leases:
        yield Finding(
            Level.ERROR,
            "leader",
            f"There is no Lease {LEASE}: no controller has ever led, and nothing is counted.",
            "See the log of the controller.",
        )
    for lease in leases:
        spec, namespace = lease.get("spec") or {}, lease["metadata"]["namespace"]
        name = f"Lease {namespace}/{lease['metadata']['name']}"
        renewed = _time(spec.get("renewTime"))
        lasts = timedelta(seconds=int(spec.get("leaseDurationSeconds") or 0))
        if not spec.get("holderIdentity"):
            message = f"{name} is held by nobody: no controller counts."
        elif renewed is None or facts.now > renewed + lasts:
            message = (
                f"{name} was last renewed {age(renewed, facts.now)} ago, by"
                f" {spec['holderIdentity']}: no controller counts."
            )
        else:
            yield Finding(Level.OK, "leader", f"{name} is held by {spec['holderIdentity']}.")
            continue
        yield Finding(
            Level.ERROR, "leader", message, f"See kubectl -n {namespace} get pods, and their logs."
        )


def _nodes(facts: Facts) -> Iterator[Finding]:
    reports = {each.node: each for each in facts.reports or ()}
    found: list[Finding] = []
    if facts.nodes is None:
        found.append(
            _unseen("nodes", "whether a node lacks its report, as nodes may not be listed")
        )
    else:
        with_pages = [each for each in facts.nodes if _has_pages(each)]
        silent = [name for each in with_pages if (name := each["metadata"]["name"]) not in reports]
        if silent:
            found.append(
                Finding(
                    Level.ERROR,
                    "nodes",
                    f"{_nodes_have(silent)} huge pages and no HugeTLBNode: no agent holds pods to"
                    " their limits there.",
                    "See whether the agent runs there: tolerations, nodeSelector, its log.",
                )
            )
        found += _rebooted(facts.nodes, reports)
    found += _stale(reports.values(), facts.now)
    for report in reports.values():
        found += _conditions(report)
    yield from found
    if not found:
        yield Finding(Level.OK, "nodes", f"Fresh reports of {count(len(reports), 'node')}.")


def _rebooted(nodes: Sequence[Json], reports: Mapping[str, NodeReport]) -> Iterator[Finding]:
    boots = {
        each["metadata"]["name"]: ((each.get("status") or {}).get("nodeInfo") or {}).get("bootID")
        for each in nodes
    }
    before = [
        name
        for name, report in reports.items()
        if boots.get(name) and report.boot_id and report.boot_id != boots[name]
    ]
    if before:
        yield Finding(
            Level.WARNING,
            "nodes",
            f"The report of {listed(before, _NAMED)} is of an earlier boot of the node.",
            "See whether the agent runs there.",
        )


def _stale(reports: Iterable[NodeReport], now: datetime) -> Iterator[Finding]:
    stale = [
        f"{each.node} ({age(each.reported_at, now)})"
        for each in reports
        if each.reported_at is None or now - each.reported_at > STALE
    ]
    if stale:
        yield Finding(
            Level.ERROR,
            "nodes",
            f"No fresh report of {listed(stale, _NAMED)}: what ended there stays charged.",
            "See the agent's log there; delete the Node object if the node is gone.",
        )


def _conditions(report: NodeReport) -> Iterator[Finding]:
    for each in report.conditions:
        if each.status != "True":
            yield Finding(
                Level.ERROR if each.type == "Ready" else Level.WARNING,
                "nodes",
                f"{report.node}: {each.type} is {each.status} ({each.reason}): {each.message}",
                f"See kubectl describe htn {report.node}.",
            )
    if report.unreadable:
        yield Finding(
            Level.WARNING,
            "nodes",
            f"Of the report of {report.node}, {report.unreadable} of its entries can't be read.",
            "Use the plugin of the release that the agent has.",
        )


def _quotas(facts: Facts) -> Iterator[Finding]:
    quotas = facts.quotas or ()
    bad = 0
    for quota in quotas:
        for word in words(quota):
            bad += 1
            message = next(
                (each.message for each in quota.conditions if each.reason == word),
                quota.invalid or "the controller has not counted it as it is now.",
            )
            yield Finding(
                Level.ERROR if word in ("Invalid", "NotCounted") else Level.WARNING,
                "quotas",
                f"{quota.key} is {word}: {message}",
                f"See kubectl -n {quota.key.namespace} describe htq {quota.key.name}.",
            )
    if not bad:
        yield Finding(
            Level.OK, "quotas", f"{count(len(quotas), 'quota')}, all of them counted and in order."
        )


def _versions(facts: Facts) -> Iterator[Finding]:
    assert facts.workloads is not None
    versions = {
        component: str((each["metadata"].get("labels") or {}).get(_VERSION) or "unknown")
        for component, found in facts.workloads.items()
        for each in found
    }
    images = {
        container.get("image")
        for found in facts.workloads.values()
        for each in found
        for container in each["spec"]["template"]["spec"]["containers"]
    }
    if not versions:
        return
    told = ", ".join(f"{component} {version}" for component, version in versions.items())
    if len(set(versions.values())) > 1 or len(images) > 1:
        yield Finding(
            Level.WARNING,
            "versions",
            f"The programs are not of one version: {told};"
            f" images {', '.join(sorted(map(str, images)))}.",
            "Upgrade the release as a whole.",
        )
    elif facts.version not in versions.values():
        yield Finding(
            Level.WARNING,
            "versions",
            f"This plugin is of version {facts.version}, and the programs are"
            f" {next(iter(versions.values()))}.",
            "Install the plugin of the same release.",
        )
    else:
        yield Finding(Level.OK, "versions", f"All is of version {facts.version}.")


def _has_pages(node: Json) -> bool:
    capacity = (node.get("status") or {}).get("capacity") or {}
    try:
        return bool(Charge.from_resources(capacity))
    except ValueError:
        return True


def _nodes_have(names: Sequence[str]) -> str:
    kind = "Node" if len(names) == 1 else "Nodes"
    return f"{kind} {listed(names, _NAMED)} {'has' if len(names) == 1 else 'have'}"


def _is_true(raw: Json, condition: str) -> bool:
    found = (raw.get("status") or {}).get("conditions") or ()
    return any(each.get("type") == condition and each.get("status") == "True" for each in found)


def _why(raw: Json, condition: str) -> str:
    found = (raw.get("status") or {}).get("conditions") or ()
    told = [each.get("message") for each in found if each.get("type") == condition]
    return str(next(filter(None, told), "it says nothing"))


def _time(value: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
