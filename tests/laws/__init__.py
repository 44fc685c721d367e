"""The laws of the design, checked from Python on the installed package."""
