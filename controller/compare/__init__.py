"""Is one model faster than another, on every device? Pure but for `drive`, which measures."""
