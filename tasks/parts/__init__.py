"""What operations share: finding and marking VMs, calls that may wait long."""
