"""Stand-ins for tests only."""
