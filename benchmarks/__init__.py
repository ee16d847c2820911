"""The benchmarks: ``make bench`` runs all; each module also runs by itself.

``python -m benchmarks`` runs the suites of its list and writes docs/performance.md. A suite is a
module that prints Markdown tables, or lines for a terminal. With ``--json FILE`` a suite writes its
measurements. If the measurements have ``charts`` (see `report`), ``benchmarks`` draws the charts.
"""
