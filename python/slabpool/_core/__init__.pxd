# Makes slabpool._core a package for cimport.
