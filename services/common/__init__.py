"""How we talk to infrastructure: one module per driver, no business words."""
