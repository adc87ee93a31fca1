"""The order backend: one importable package, many processes (see README)."""
