"""Round-robin data of VMs, hosts and storage repositories, worked out when somebody asks (xapi.md 15).

Nothing is sampled and no thread runs for a VM: every figure is the integral of a known function over the time of its
row, so that all archives, counters and single values agree with each other.
"""
