"""Payments: authorisations, captures, voids and refunds of orders, at a payment provider."""
