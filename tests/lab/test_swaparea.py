"""Swap areas: the table of those that are on. Areas are switched on by the tests of zram and zswap."""

from cram_emu.lab import swaparea


def test_swaps(tmp_path):
    """The areas of /proc/swaps, without its heading."""
    table = tmp_path / "swaps"
    table.write_text(
        "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        "/dev/zram0                              partition\t65532\t\t0\t\t-2\n"
        "/swapfile                               file\t\t65532\t\t0\t\t-3\n"
    )
    assert swaparea.swaps(table) == ["/dev/zram0", "/swapfile"]
