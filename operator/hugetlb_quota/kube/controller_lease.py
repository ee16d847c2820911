"""The Lease of the controllers: its name, and the holder that is no controller."""

from __future__ import annotations

from typing import Final

#: The name of the Lease, in the namespace of the release.
LEASE: Final = "hugetlb-quota-controller"
#: The holder that the hook of ``helm uninstall`` writes into the Lease.
HOOK: Final = "uninstall"
