"""Figures that anyone can get: ``make bench``, or each module by itself.

``python -m benchmarks`` runs the suites that its registry names and writes docs/performance.md.
A suite is a module that prints Markdown tables, or lines for a terminal, and with ``--json FILE``
writes what it measured; where that has ``charts`` (see `report`), they are drawn.
"""
