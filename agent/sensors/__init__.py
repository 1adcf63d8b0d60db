"""What a device tells of itself: one file per sensor, found through the table."""
