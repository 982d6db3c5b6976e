"""What is in XenStore for a guest: the parameter record, and the live record of a running domain (operations.md 5.5).

`record` has the operations on the first, `tree` those on the second.
"""

from tasks.xenstore import record, tree

__all__ = ["record", "tree"]
