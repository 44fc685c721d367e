"""Drop-ins against the libraries they are for."""
