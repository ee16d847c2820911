"""Figures that anyone can get: each module runs by itself and prints a table."""
