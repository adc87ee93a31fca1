"""Real trade re-enacted: a data set's products and orders through the HTTP API, and an audit of what came of it."""
