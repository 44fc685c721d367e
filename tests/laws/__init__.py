"""The laws of the house, checked from Python on the installed package."""
