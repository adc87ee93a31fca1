"""EXAMPLE, not in use: how a consumer reads version 1 and version 2 of an event (docs/events.md)."""
