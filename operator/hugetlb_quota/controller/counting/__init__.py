"""Counts pods and reports under quotas: a store of objects, one count, and its result.

Pure: no requests, no tasks. The informers feed the store, and ``controller/writing`` writes what
follows from a count.
"""
