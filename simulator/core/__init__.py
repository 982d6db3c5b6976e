"""What holds the simulated pool: database, events, clock, locks."""
