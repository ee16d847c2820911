"""``python -m hugetlb_quota.plugin``, and the program ``kubectl-hugetlb``."""

from __future__ import annotations

import sys

from hugetlb_quota.plugin import cli


def main() -> None:
    """Run the command, and exit with its exit code."""
    sys.exit(cli.main())


if __name__ == "__main__":
    main()
