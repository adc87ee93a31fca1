"""Owns the schema `orders`: orders, items, events, inventory, idempotency keys and the copy of products."""
