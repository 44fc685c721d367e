"""The life of a request, and the layouts it allocates."""
