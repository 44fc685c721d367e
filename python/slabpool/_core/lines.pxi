# Part of core.pyx. Lines of the user's program: noted where something is opened, and found when they are reported.
#
# Finding a line decodes the table of its code from the beginning, so a call notes the code and the offset of the
# instruction. Invariants, all with the GIL held:
#   Core.codes has one reference to the code that a record in the core shows, by the record's slot. The next opening in the
#   slot drops it, so there are no more than there were requests at a time;
#   until it has that reference, and while a waiter shows the code, the frame that is running keeps the code, or a Site;
#   a report takes a reference to each code (LineReport) before it runs Python code, by which records may go.

from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cpython.ref cimport Py_XDECREF, Py_XINCREF

cdef extern from *:
    """
    #if PY_VERSION_HEX < 0x030b0000
    #include <frameobject.h>
    #endif
    // The code of a frame (a new reference), and the offset in it of the instruction that is running.
    static PyObject* slabpool_code_of(PyFrameObject* frame, int* offset) {
    #if PY_VERSION_HEX < 0x030b0000
      *offset = frame->f_lasti < 0 ? -1 : frame->f_lasti * 2;
    #else
      *offset = PyFrame_GetLasti(frame);
    #endif
      return (PyObject*)PyFrame_GetCode(frame);
    }
    // Of the Python code that is running, or of its caller; null if there is none.
    static PyObject* slabpool_running(int* offset) {
      PyFrameObject* frame = PyEval_GetFrame();
      return frame == NULL ? NULL : slabpool_code_of(frame, offset);
    }
    static PyObject* slabpool_caller(int* offset) {
      PyFrameObject* frame = PyEval_GetFrame();
      PyFrameObject* caller = frame == NULL ? NULL : PyFrame_GetBack(frame);
      if (caller == NULL) return NULL;
      PyObject* code = slabpool_code_of(caller, offset);
      Py_DECREF(caller);
      return code;
    }
    static inline PyObject* slabpool_file_of(PyObject* code) { return ((PyCodeObject*)code)->co_filename; }
    static inline int slabpool_line_of(PyObject* code, int offset) {
      return PyCode_Addr2Line((PyCodeObject*)code, offset);
    }
    """
    PyObject* slabpool_running(int* offset)
    PyObject* slabpool_caller(int* offset)
    PyObject* slabpool_file_of(PyObject* code)  # borrowed
    int slabpool_line_of(PyObject* code, int offset)


# ---- noting

cdef SourceLocation caller() noexcept:
    cdef int offset = 0
    cdef SourceLocation where
    cdef PyObject* code = slabpool_running(&offset)
    if code is not NULL:
        where.file = <const char*>code
        where.line = <uint32_t>offset
        where.in_code = True
        Py_XDECREF(code)  # not the last: the frame has one
    return where


cdef Site _site(PyObject* code, int offset):
    cdef Site site = Site.__new__(Site)
    if code is not NULL:
        site.code = <object>code
        Py_XDECREF(code)
        site.where.file = <const char*>code
        site.where.line = <uint32_t>offset
        site.where.in_code = True
    return site


@cython.final
@cython.no_gc
cdef class Site:
    """A line of the user's program, which is found when it is asked for. It keeps the code."""

    def __str__(self):
        return location(self.where)


cdef Site caller_site():
    cdef int offset = 0
    cdef PyObject* code = slabpool_running(&offset)
    return _site(code, offset)


def calling_site():
    """The line that called the function that calls this."""
    cdef int offset = 0
    cdef PyObject* code = slabpool_caller(&offset)
    return _site(code, offset)


cdef void note_code(Core core, Handle handle, const SourceLocation& where) noexcept:
    cdef uint32_t slot = handle.slot
    cdef PyObject* code = <PyObject*>where.file if where.in_code else NULL
    if slot >= core.code_slots:
        if code is NULL:
            return
        if not _make_room(core, slot):
            Py_XINCREF(code)  # without memory for the table, the code is never dropped
            return
    cdef PyObject* before = core.codes[slot]
    if before is not code:
        Py_XINCREF(code)
        core.codes[slot] = code
        Py_XDECREF(before)


cdef bint _make_room(Core core, uint32_t slot) noexcept:
    cdef uint32_t count = max(64, 2 * core.code_slots, slot + 1)
    cdef PyObject** codes = <PyObject**>PyMem_Realloc(core.codes, count * sizeof(PyObject*))
    cdef uint32_t i
    if codes is NULL:
        return False
    for i in range(core.code_slots, count):
        codes[i] = NULL
    core.codes = codes
    core.code_slots = count
    return True


cdef void drop_codes(Core core) noexcept:
    cdef uint32_t i
    cdef uint32_t count = core.code_slots
    core.code_slots = 0
    for i in range(count):
        Py_XDECREF(core.codes[i])
    PyMem_Free(core.codes)
    core.codes = NULL


cdef void show_line(Wait wait, const SourceLocation& where) noexcept:
    wait.waiter.where = where
    wait.code = <object><PyObject*>where.file if where.in_code else None


# ---- reporting

cdef object location(const SourceLocation& where):
    cdef PyObject* code
    if not where.in_code:
        return "" if where.line == 0 else f"{where.file.decode('utf-8', 'replace')}:{where.line}"
    held = <object><PyObject*>where.file
    code = <PyObject*>held
    file = <object>slabpool_file_of(code)
    if not file.isascii():
        file = file.encode("utf-8", "replace").decode()
    return f"{file}:{slabpool_line_of(code, <int>where.line)}"


@cython.final
@cython.no_gc
cdef class LineReport:
    """The codes that a report shows, kept while it is made, and the lines found so far: each is looked for once."""

    def __dealloc__(self):
        cdef size_t i
        for i in range(self.codes.size()):
            Py_XDECREF(self.codes[i])

    cdef int add(self, const SourceLocation& where) except -1:
        cdef PyObject* code = <PyObject*>where.file
        if where.in_code and (self.codes.empty() or self.codes.back() is not code):
            self.codes.push_back(code)
            Py_XINCREF(code)
        return 0

    cdef object line(self, const SourceLocation& where):
        if self.lines is None:
            self.lines = {}
        key = (<size_t>where.file, where.line)
        text = self.lines.get(key)
        if text is None:
            text = self.lines[key] = location(where)
        return text


# ---- lines that are needed at once (debug)

# By the address of a code: (weak reference, {offset: line}). An entry goes with its code.
cdef dict _known_lines = {}


def _forget_lines(reference):
    _known_lines.pop(reference.key, None)


cdef SourceLocation caller_line() except *:
    cdef SourceLocation where = caller()
    cdef PyObject* code = <PyObject*>where.file
    if not where.in_code:
        return where
    known = _known_lines.get(<size_t>code)
    if known is None:
        known = _known_lines[<size_t>code] = (weakref.KeyedRef(<object>code, _forget_lines, <size_t>code), {})
    line = (<dict>known[1]).get(where.line)
    if line is None:
        line = known[1][where.line] = max(slabpool_line_of(code, <int>where.line), 0)
    where.line = line
    where.in_code = False
    try:
        where.file = PyUnicode_AsUTF8(<object>slabpool_file_of(code))  # part of the code, which the frame keeps
    except UnicodeEncodeError:
        where.file = "?"
    return where
