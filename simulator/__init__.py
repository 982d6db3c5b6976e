"""A XenServer pool on the wire, for tests and demonstrations. It shares no code with the worker."""
