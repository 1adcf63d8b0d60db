"""Libraries that run a model: one file per runtime, found through the table."""
