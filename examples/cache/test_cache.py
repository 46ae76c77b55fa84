import pytest
from cache import Cache


def value(key: int) -> bytes:
    return f"value {key} ".encode() * 100


@pytest.fixture
def cache(cram_device):
    return Cache(cram_device, value)


def test_caches(cache):
    assert [cache.get(key) for key in (1, 2, 1, 2)] == [value(key) for key in (1, 2, 1, 2)]
    assert cache.computed == 2


@pytest.mark.parametrize("fault", ["store", "corrupt", "poison"])
def test_lost_values_are_computed_again(cache, cram_fault, fault):
    struck = cram_fault(fault, times=1)
    cache.get(1)
    assert struck.struck == 1
    assert cache.get(1) == value(1)
    assert cache.computed == 2
    assert cache.get(1) == value(1) and cache.computed == 2


@pytest.mark.cram_device(advertised="1M", real="64K")
def test_never_overflows(cache, cram_device, cram_fault):
    cram_fault("ratio")
    assert [cache.get(key) for key in range(100)] == [value(key) for key in range(100)]
    assert cram_device.stats.dropped_writes == 0


def test_an_administrator_sees_it(cram_mount):
    assert (cram_mount / "sys/bus/cxl/devices/mem0/ram/size").read_text() == "0x4000000\n"
