"""Tests of the drop-ins with the libraries that they are for."""
