"""Real PostgreSQL, Valkey and Kafka from packages, for development, demo and tests."""
