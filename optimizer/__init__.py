"""A library: a model in, checked variants out. No gRPC, no devices."""
