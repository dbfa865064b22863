"""What the operating system and the driver say of a process, of a GPU and of a board."""
