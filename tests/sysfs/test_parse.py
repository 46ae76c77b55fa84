"""The kernel's readings of text, by examples of lib/kstrtox.c and lib/cmdline.c."""

import errno

import pytest

from cram_emu.sysfs.parse import kstrtobool, kstrtoull, memparse, node_list


def fails(function, text: str) -> int:
    with pytest.raises(OSError) as caught:
        function(text)
    return caught.value.errno


class TestNumbers:
    @pytest.mark.parametrize(
        ("text", "value"),
        [("0", 0), ("12", 12), ("+12", 12), ("0x1F", 31), ("017", 15), ("18446744073709551615", 2**64 - 1)],
    )
    def test_taken(self, text: str, value: int):
        assert kstrtoull(text) == value

    @pytest.mark.parametrize(
        "text", ["", " 1", "1 ", "-1", "0x", "08", "1_0", "1\n", "++1", "١", "1K", "0b1", "\xff"]
    )
    def test_nonsense(self, text: str):
        assert fails(kstrtoull, text) == errno.EINVAL

    @pytest.mark.parametrize("text", ["18446744073709551616", "0x10000000000000000", "9" * 4000])
    def test_too_large(self, text: str):
        assert fails(kstrtoull, text) == errno.ERANGE

    def test_narrow(self):
        with pytest.raises(OSError) as caught:
            kstrtoull("256", 255)
        assert caught.value.errno == errno.ERANGE


class TestTruth:
    @pytest.mark.parametrize("text", ["y", "Y", "1", "t", "on", "On", "yes", "1 or more"])
    def test_true(self, text: str):
        assert kstrtobool(text)

    @pytest.mark.parametrize("text", ["n", "N", "0", "f", "off", "oFf"])
    def test_false(self, text: str):
        assert not kstrtobool(text)

    @pytest.mark.parametrize("text", ["", "2", "o", "x", " 1"])
    def test_nonsense(self, text: str):
        assert fails(kstrtobool, text) == errno.EINVAL


class TestSizes:
    def test_taken(self):
        assert [memparse(text) for text in ("0", "4096", "8K", "1g", "0x10M")] == [
            0, 4096, 8192, 1 << 30, 16 << 20,
        ]  # fmt: skip

    @pytest.mark.parametrize("text", ["", "G", "-1", "1.5G", "8GB", "20E", "9" * 5000])
    def test_nonsense(self, text: str):
        assert fails(memparse, text) == errno.EINVAL


def test_node_lists():
    assert [node_list(nodes) for nodes in ((), (0,), (0, 1), (0, 1, 2, 4), (3, 1))] == [
        "", "0", "0-1", "0-2,4", "1,3",
    ]  # fmt: skip
