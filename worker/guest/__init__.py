"""Xenstore records and the agent in the guest."""
