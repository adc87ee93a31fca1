"""Carries outbox rows to Kafka."""
