"""The compiled layer: one extension module per subject, over the C++ core."""
