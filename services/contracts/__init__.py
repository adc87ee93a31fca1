"""Messages that cross a process border, and the pure fold of order events. Standard library only."""
