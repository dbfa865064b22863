"""One process learns: stream, network, execution and method put together, the loop, and its state on disk."""
