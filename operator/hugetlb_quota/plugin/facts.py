"""The facts that ``check`` needs, and the names of the chart's objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from hugetlb_quota.kube.quotas import QuotaObject
from hugetlb_quota.plugin.reports import NodeReport

Json = dict[str, Any]

CRDS: Final = ("hugetlbquotas.hugetlb.dev", "hugetlbnodes.hugetlb.dev")
WEBHOOKS: Final = ("pods.hugetlb.dev", "relabelled.pods.hugetlb.dev", "quotas.hugetlb.dev")
COMPONENTS: Final = ("admission", "controller", "agent")


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that ``check`` has read. None: the user has no right to read that part.

    ``crds``: by name. ``workloads``: the Deployments and the DaemonSet, by component.
    ``endpoints``: the number of ready endpoints of each Service that a webhook names.
    ``unread``: by topic, the reason why a part is None. ``partly``: the quotas that could not be
    read, in words.
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
