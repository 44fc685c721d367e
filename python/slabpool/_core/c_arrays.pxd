# Inline C for making numpy arrays over memory that exists: numpy's own calls, without the checks we know the answer to.

cimport numpy as cnp
from cpython.object cimport PyObject


cdef extern from *:
    """
    static inline int slabpool_mul_overflows(unsigned long long a, unsigned long long b, unsigned long long* r) {
      return __builtin_mul_overflow(a, b, r);
    }
    // A dimension; negative, without an error set, if it is none. The caller then finds out what is wrong.
    static inline Py_ssize_t slabpool_dim(PyObject* item) {
      Py_ssize_t dim = PyLong_CheckExact(item) ? PyLong_AsSsize_t(item) : PyNumber_AsSsize_t(item, PyExc_OverflowError);
      if (dim == -1 && PyErr_Occurred()) PyErr_Clear();
      return dim;
    }
    // Bytes of a shape that is a tuple of plain ints above 0, whose dimensions go to `dims`. Negative, without an error
    // set, for everything else: errors, and empty shapes (whose other dimensions may be too large).
    static inline long long slabpool_plain_shape(PyObject* shape, Py_ssize_t itemsize, npy_intp* dims) {
      if (!PyTuple_CheckExact(shape)) return -1;
      const Py_ssize_t nd = PyTuple_GET_SIZE(shape);
      if (nd > 64) return -1;
      long long nbytes = itemsize;
      for (Py_ssize_t i = 0; i < nd; ++i) {
        PyObject* item = PyTuple_GET_ITEM(shape, i);
        if (!PyLong_CheckExact(item)) return -1;
        const Py_ssize_t dim = PyLong_AsSsize_t(item);
        if (dim <= 0) {
          if (dim < 0) PyErr_Clear();
          return -1;
        }
        dims[i] = dim;
        if (__builtin_mul_overflow(nbytes, (long long)dim, &nbytes)) return -1;
      }
      return nbytes;
    }
    // PyArray_NewFromDescr steals the reference to the dtype, also when it fails.
    static inline PyObject* slabpool_new_array(PyObject* dtype, int nd, npy_intp* dims, void* data) {
      return PyArray_NewFromDescr(&PyArray_Type, (PyArray_Descr*)dtype, nd, dims, NULL, data, NPY_ARRAY_CARRAY, NULL);
    }
    static inline PyObject* slabpool_new_strided(PyObject* dtype, int nd, npy_intp* dims, npy_intp* strides, void* data,
                                                 int writable) {
      return PyArray_NewFromDescr(&PyArray_Type, (PyArray_Descr*)dtype, nd, dims, strides, data,
                                  writable ? NPY_ARRAY_WRITEABLE : 0, NULL);
    }
    // PyArray_SetBaseObject for an array without a base and a base that is no array. Steals the reference to the base.
    static inline void slabpool_set_base(PyObject* array, PyObject* base) {
      ((PyArrayObject_fields*)array)->base = base;
    }
    static inline int slabpool_holds_objects(PyObject* dtype) {
      return PyDataType_REFCHK((PyArray_Descr*)dtype) != 0;
    }
    """
    bint mul_overflows "slabpool_mul_overflows"(unsigned long long a, unsigned long long b, unsigned long long* r) nogil
    Py_ssize_t as_dim "slabpool_dim"(PyObject* item)
    long long plain_shape "slabpool_plain_shape"(PyObject* shape, Py_ssize_t itemsize, cnp.npy_intp* dims)
    PyObject* new_over "slabpool_new_array"(PyObject* dtype, int nd, cnp.npy_intp* dims, void* data) except NULL
    PyObject* new_strided "slabpool_new_strided"(PyObject* dtype, int nd, cnp.npy_intp* dims, cnp.npy_intp* strides,
                                                 void* data, bint writable) except NULL
    void set_base "slabpool_set_base"(PyObject* array, PyObject* base)
    bint holds_objects "slabpool_holds_objects"(PyObject* dtype)
