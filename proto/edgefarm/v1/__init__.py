"""Generated gRPC code, protocol version 1."""
