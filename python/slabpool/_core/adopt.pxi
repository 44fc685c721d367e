# Part of request.pyx. Tensors that move from one request to another: which block a tensor has, and who has it afterwards.
#
# Invariant: no Python code runs between the look at a block's request and the move, nor between the move and the note of
# it in the tensor.

cdef Block* block_of_array(Core core, cnp.ndarray array):
    """The block that all elements of an array are in; null if there is none, or the array has no bytes."""
    cdef Py_ssize_t low = 0, high = cnp.PyArray_ITEMSIZE(array), reach
    cdef int i
    if cnp.PyArray_SIZE(array) == 0 or high == 0:
        return NULL
    for i in range(cnp.PyArray_NDIM(array)):
        reach = (cnp.PyArray_DIM(array, i) - 1) * cnp.PyArray_STRIDE(array, i)
        if reach < 0:
            low += reach
        else:
            high += reach
    cdef byte* first = <byte*>cnp.PyArray_DATA(array)
    cdef Block* block = core.pool.find(first)
    if block is NULL or first + low < block.data or first + high > block.data + block.bytes:
        return NULL
    return block


cdef bint _sessions_give_way(Core core, const LevelNeed& refused) except -1:
    sessions = None if core.sessions is None else core.sessions()
    return sessions is not None and sessions.make_room_for_a_move((refused.at.slot, refused.at.generation), refused.excess)


cdef object _adopt(Request self, object tensor):
    cdef Core core = self.core
    cdef Block* block = NULL
    cdef bint viewed = False
    cdef Handle owner
    cdef Adopted adopted = Adopted.not_its
    cdef Status status
    cdef uint64_t nbytes
    cdef LevelNeed refused
    check_here(core)
    if isinstance(tensor, Tensors):
        if (<Tensors>tensor).core is core:
            block = (<Tensors>tensor).block
            # Tensors keep no memory alive: the block may have been returned.
            if core.pool.open_view(block[0], (<Tensors>tensor).serial, (<Tensors>tensor).request) != Status.ok:
                hooks.messages.adopt_released(self, tensor, (<Tensors>tensor).request.generation)
            viewed = True
    elif isinstance(tensor, GrowableTensor):
        if (<GrowableTensor>tensor).core is core:
            block = (<GrowableTensor>tensor).growth.extent.block
    elif isinstance(tensor, DeviceArray):
        if (<DeviceArray>tensor).core is core:
            block = (<DeviceArray>tensor).block
    elif isinstance(tensor, cnp.ndarray):
        block = block_of_array(core, tensor)
    else:
        raise InvalidTypeError(
            "a request adopts an array, the Tensors or a GrowableTensor of another request, "
            f"got {type(tensor).__name__}")
    while True:
        if block is not NULL:
            owner = core.pool.owner_of(block[0])
        if owner.generation == 0:
            hooks.messages.nothing_to_adopt(self, tensor)
        nbytes = block.bytes
        status = core.pool.adopt(block[0], owner, self.handle, adopted, refused)
        if status != Status.ok or adopted != Adopted.quota_exceeded or not _sessions_give_way(core, refused):
            break
    if viewed:
        core.pool.drop_view(block[0])
    if adopted == Adopted.ok:
        if viewed:
            (<Tensors>tensor).request = self.handle
        elif isinstance(tensor, GrowableTensor):
            (<GrowableTensor>tensor).growth.extent.handle = self.handle
            (<GrowableTensor>tensor).growth.keeper = None
            (<GrowableTensor>tensor).growth.request = self
        return None
    if status == Status.waiters_ahead:
        hooks.messages.adopt_behind(self, tensor, nbytes)
    if status != Status.ok:
        failed(core, self, status, nbytes, None)
    if adopted == Adopted.closed:
        failed(core, self, Status.request_closed, 0, None)
    if adopted == Adopted.released:
        hooks.messages.adopt_released(self, tensor, owner.generation)
    if adopted == Adopted.quota_exceeded:
        hooks.messages.adopt_exceeds(
            core.owner, self, tensor, owner.generation, nbytes, level_that_refused(core, refused))
    if owner.generation == self.handle.generation:
        hooks.messages.adopted_before(self, tensor)
    hooks.messages.adopt_kept(self, tensor)
