"""Benchmarks that anyone can run: ``make bench``, or each module by itself.

``python -m benchmarks`` runs the suites of its list and writes docs/performance.md. A suite is a
module that prints Markdown tables, or lines for a terminal. With ``--json FILE`` a suite writes its
measurements; if these have ``charts`` (see `report`), the charts are drawn.
"""
