"""What is asked of the agent in a guest, and what a guest is told (operations.md 5.6).

`agent` has the operations that wait for the agent, `told` those that only write what the guest reads.
"""

from tasks.guest import agent, told

__all__ = ["agent", "told"]
