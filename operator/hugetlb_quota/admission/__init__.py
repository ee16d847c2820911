"""The admission program: decides on pods and on quotas.

The only memory of a decision is in API objects. Admission decides from a watch, writes what it
grants by compare-and-swap, and proves before the answer that the watch was new enough. In doubt
admission refuses, and says why.
"""
