"""Sizes as people write them."""

import pytest
from hypothesis import given, strategies as st

from cram_emu import Device, format_size, parse_size

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class TestParse:
    @pytest.mark.parametrize(
        "text, size",
        [
            ("4096", 4096),
            ("0", 0),
            ("8G", 8 << 30),
            ("512M", 512 << 20),
            ("512m", 512 << 20),
            ("64 KiB", 64 << 10),
            ("64kb", 64 << 10),
            (" 1 TiB ", 1 << 40),
            ("1.5G", 3 << 29),
            ("0.5K", 512),
            ("17B", 17),
            ("1.0", 1),
            (4096, 4096),
            (0, 0),
            (1 << 40, 1 << 40),
        ],
    )
    def test_good(self, text: str | int, size: int):
        """A number with a unit of 1024, or an integer, is that many bytes."""
        assert parse_size(text) == size

    @given(number=st.integers(0, 10**6), unit=st.sampled_from(sorted(UNITS)))
    def test_units(self, number: int, unit: str):
        """A whole number of units is exactly number times unit."""
        assert parse_size(f"{number}{unit}") == number * UNITS[unit]

    @pytest.mark.parametrize(
        "value",
        [
            *("", " ", "G", "8X", "8GG", "8 G B", "-1", "-8G", "+8", "1e9", "0x1000", "1_000"),
            *("8,5G", "1.", ".5G", "nan", "inf", "8G!", "٨G", "9" * 5000, "1.3", "0.3K", "1.0000000001K"),
            *(-1, 4096.0, 1.5, None, True, b"8G", [8], {}),
        ],
    )
    def test_nonsense(self, value):
        """Nonsense is a ValueError that names the value."""
        with pytest.raises(ValueError) as caught:
            parse_size(value)
        assert repr(value) in str(caught.value)

    def test_device_takes_them(self):
        """A device takes the same sizes as numbers and as text."""
        with Device("2M", 65536) as named, Device(2 << 20, "64K") as numbered:
            assert named.params == numbered.params


class TestFormat:
    @pytest.mark.parametrize(
        "size, text",
        [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (1 << 20, "1 MiB"),
            (100 << 20, "100 MiB"),
            (8 << 30, "8 GiB"),
            (1 << 40, "1 TiB"),
            (2048 << 40, "2048 TiB"),
        ],
    )
    def test_known(self, size: int, text: str):
        """A size reads as people write it."""
        assert format_size(size) == text

    @given(st.integers(0, 1 << 42))
    def test_close(self, size: int):
        """What is printed parses as within 5 % of the size, wherever it is a whole number of bytes."""
        try:
            read = parse_size(format_size(size))
        except ValueError as error:
            assert "not a whole number of bytes" in str(error)
        else:
            assert abs(read - size) <= size * 0.05
