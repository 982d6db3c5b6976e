"""VIFs, networks and firewall rules."""
