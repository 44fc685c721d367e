from typing import Any

from numpy.typing import NDArray

from slabpool._core.device_array import DeviceArray

class DevicePointer(DeviceArray):
    def __int__(self) -> int: ...
    def __index__(self) -> int: ...

def device_pointer(array: NDArray[Any] | DeviceArray) -> DevicePointer: ...
