"""Tests of the installed package, by the rooms of the house; tests/cpp holds those of the C++ core."""
