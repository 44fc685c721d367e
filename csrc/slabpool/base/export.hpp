// SLABPOOL_API marks what libslabpool shows to other libraries; all else is compiled hidden, so that the
// dynamic symbol table stays small and calls inside the core stay direct. Only preprocessor lines here:
// the C header includes this file too. A class with SLABPOOL_API also exports its RTTI, which exceptions
// that cross from the core into a Cython module need.
#ifndef SLABPOOL_EXPORT_HPP
#define SLABPOOL_EXPORT_HPP

#if defined(__GNUC__) || defined(__clang__)
#define SLABPOOL_API __attribute__((visibility("default")))
#else
#define SLABPOOL_API
#endif

#endif  // SLABPOOL_EXPORT_HPP
