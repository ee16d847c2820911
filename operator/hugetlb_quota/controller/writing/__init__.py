"""Writes the result of a count: each quota's status and Events, and each node's spec."""
