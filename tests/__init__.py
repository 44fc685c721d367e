"""Tests of the installed package, one folder per subject; tests/cpp has those of the C++ core."""
