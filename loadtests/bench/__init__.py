"""Ours against the limit, in one run: docs/performance.md."""
