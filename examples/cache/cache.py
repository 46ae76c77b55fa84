"""Values of one page each, on a device; what is lost there is computed again."""

from collections.abc import Callable

from cram_emu import Device, PoisonError

PAGE = 4096


class Cache:
    def __init__(self, device: Device, compute: Callable[[int], bytes]):
        """compute(key): the value, at most a page, for keys from 0 up to what the device has pages."""
        self._device = device
        self._compute = compute
        self._known: set[int] = set()
        self.computed = 0

    def get(self, key: int) -> bytes:
        if key in self._known:
            try:
                return self._device.read(key * PAGE, PAGE).rstrip(b"\0")
            except PoisonError:
                self._known.discard(key)
        value = self._compute(key)
        self.computed += 1
        # A device that is about to overflow says so: then nothing more is cached.
        if not self._device.no_alloc:
            self._device.write(key * PAGE, value.ljust(PAGE, b"\0"))
            self._known.add(key)
        return value
