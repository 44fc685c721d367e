"""What a pool means to other processes."""
