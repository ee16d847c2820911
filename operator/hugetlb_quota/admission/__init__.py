"""The admission program: decides on pods and on quotas, from the API's objects alone.

No cache: every decision reads what the last write left, and what it grants is written
by compare-and-swap before the answer goes out. In doubt it refuses, and says why.
"""
