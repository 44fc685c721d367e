"""Sessions, on the installed package: what is kept, what gives way, what never does."""
