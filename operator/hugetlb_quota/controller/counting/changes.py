"""What changed since the last count, and what the next count must look at because of that."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

from hugetlb_quota.accounting.forest import QuotaKey


@dataclass(slots=True)
class Changes:
    """The changes since the last count.

    ``uids``: of pods that changed, in the API, in a report or in a line; and of quotas that
    changed. ``quotas``: quotas that changed. ``specs``: quotas that came, went, or have another
    spec. ``attachments``: quotas of which only ``status.attachedTo`` changed. ``selections``:
    namespaces in which other quotas may select pods. ``namespaces``: namespaces that changed.
    ``node_specs``: nodes that may need another HugeTLBNode.spec. ``advanced``: nodes with agents
    that have seen more changes of pods. ``nodes``: nodes with evidence that changed in any other
    way. ``heirs``: whether any node's heirs changed. ``everything``: whether all may have changed.
    """

    uids: set[str] = field(default_factory=set)
    quotas: set[QuotaKey] = field(default_factory=set)
    specs: set[QuotaKey] = field(default_factory=set)
    attachments: set[QuotaKey] = field(default_factory=set)
    selections: set[str] = field(default_factory=set)
    namespaces: set[str] = field(default_factory=set)
    node_specs: set[str] = field(default_factory=set)
    advanced: set[str] = field(default_factory=set)
    nodes: set[str] = field(default_factory=set)
    heirs: bool = False
    everything: bool = False

    def take(self) -> Changes:
        """Return the changes, and start again without any."""
        taken, empty = replace(self), Changes()
        for each in fields(self):
            setattr(self, each.name, getattr(empty, each.name))
        return taken

    @property
    def is_only_advanced(self) -> bool:
        """Whether there are no changes, or only changes of ``advanced``."""
        return self == Changes(advanced=self.advanced)


@dataclass(slots=True)
class Scope:
    """What a count looks at.

    ``uids``: the UIDs to count; None for all. ``quotas``: the quotas that may need another
    status. ``node_specs``: the nodes that may need another HugeTLBNode.spec. ``new_forest``:
    whether the forest differs from that of the last count.
    """

    uids: set[str] | None
    quotas: set[QuotaKey]
    node_specs: set[str]
    new_forest: bool

    @property
    def is_everything(self) -> bool:
        """Whether the count includes every UID."""
        return self.uids is None
