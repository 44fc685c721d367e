"""A request's life, and the layouts it allocates."""
