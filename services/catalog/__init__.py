"""Owns the schema `catalog`: products."""
