"""The agents that run in guests and answer requests in XenStore (dom0-and-guest.md 6)."""
