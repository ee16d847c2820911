"""Keeps the webhook configuration: its rules, its CA and its path."""
