"""A log without a run: from shapes, from what kernels take, and from rules of the caching allocator."""
