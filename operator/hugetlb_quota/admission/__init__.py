"""The admission program: decides on pods and on quotas, from the API's objects alone.

It decides from a watch; what it grants is written by compare-and-swap and proved before
the answer goes out. In doubt it refuses, and says why.
"""
