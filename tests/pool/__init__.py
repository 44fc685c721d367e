"""The pool's Python face, subject by subject."""
