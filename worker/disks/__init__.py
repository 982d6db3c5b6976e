"""Disks on their way from one place to another: relayed as they are, or made smaller in the worker."""
