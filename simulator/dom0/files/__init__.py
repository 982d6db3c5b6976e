"""Programs and modules that are copied into each private root; they import nothing of the simulator."""
