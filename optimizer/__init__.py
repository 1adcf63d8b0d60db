"""Model in, variants out: passes, their pipeline, its cache, checks and metrics. Knows no device and no gRPC."""
