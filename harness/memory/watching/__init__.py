"""What is seen while a run learns: allocations of the CPU and of CUDA, and which storage has which role."""
