"""Owns the schema `customers`: profiles and addresses, which are personal data."""
