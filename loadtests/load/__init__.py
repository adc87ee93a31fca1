"""Load on a running stack by k6 and by Locust, and what is to be believed of it: see docs/load.md."""
