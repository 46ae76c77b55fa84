"""The contents that the demo writes, against files made for the purpose."""

import os
import re
import zlib
from pathlib import Path

import pytest

from cram_emu.lab import corpus
from cram_emu.lab.corpus import PAGE, Content, Files, Kind, Noise, Packed, Text

SIZE = 4 * PAGE


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Three matching files in two folders, one that does not match, and what is no file."""
    (tmp_path / "b").mkdir()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.dat").write_bytes(b"1" * 5000)
    (tmp_path / "a" / "two.dat").write_bytes(b"2" * 100)
    (tmp_path / "b" / "three.dat").write_bytes(b"3" * 9000)
    (tmp_path / "b" / "other.txt").write_bytes(b"x" * 9000)
    (tmp_path / "b" / "link.dat").symlink_to(tmp_path / "b" / "other.txt")
    (tmp_path / "b" / "folder.dat").mkdir()
    os.mkfifo(tmp_path / "b" / "pipe.dat")
    return tmp_path


def kind(*roots: Path) -> Kind:
    return Kind("data", re.compile(r"\.dat$"), tuple(map(str, roots)))


def everything(content: Content, size: int = SIZE) -> bytes:
    return b"".join(content.batches(size))


class TestKind:
    """Regular files whose name matches, each once, in a stable order."""

    def test_paths(self, files: Path) -> None:
        found = [Path(path).name for path in kind(files).paths()]
        assert found == ["one.dat", "two.dat", "three.dat"]

    def test_nested_roots_give_each_file_once(self, files: Path) -> None:
        found = [Path(path).name for path in kind(files / "b", files, files / "a").paths()]
        assert found == ["three.dat", "one.dat", "two.dat"]

    def test_missing_root(self, files: Path) -> None:
        assert list(kind(files / "nowhere").paths()) == []


class TestFiles:
    """Files joined end to end, in whole pages, up to the limit, whatever becomes of the files."""

    def test_joined_without_padding(self, files: Path) -> None:
        content = Files(kind(files), 1 << 20)
        joined = b"1" * 5000 + b"2" * 100 + b"3" * 9000
        assert everything(content) == joined[: 3 * PAGE]
        assert (content.bytes, content.files, content.rounds) == (3 * PAGE, 3, 1)
        assert content.note == "3 files"

    def test_batches_have_the_size_and_the_last_one_the_rest(self, files: Path) -> None:
        lengths = [len(batch) for batch in Files(kind(files), 1 << 20).batches(2 * PAGE)]
        assert lengths == [2 * PAGE, PAGE]

    @pytest.mark.parametrize("limit", [PAGE, 2 * PAGE, 2 * PAGE + 1])
    def test_limit(self, files: Path, limit: int) -> None:
        content = Files(kind(files), limit)
        assert len(everything(content)) == content.bytes == limit // PAGE * PAGE

    def test_no_limit_left(self, files: Path) -> None:
        assert everything(Files(kind(files), 0)) == b""

    def test_a_large_kind_is_read_again_at_other_offsets(self, files: Path) -> None:
        (files / "a" / "one.dat").write_bytes(os.urandom((1 << 20) + 100))
        content = Files(kind(files / "a"), 3 << 20)
        data = everything(content)
        assert (len(data), content.rounds) == (3 << 20, 3)
        pages = {data[start : start + PAGE] for start in range(0, len(data), PAGE)}
        assert len(pages) == len(data) // PAGE
        assert content.note == "2 files in 3 rounds"

    def test_a_small_kind_is_read_once(self, files: Path) -> None:
        content = Files(kind(files), 1 << 30)
        everything(content)
        assert content.rounds == 1

    def test_vanished(self, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = kind(files)
        paths = [*data.paths(), str(files / "gone.dat")]
        monkeypatch.setattr(Kind, "paths", lambda _: iter(paths))
        content = Files(data, 1 << 20)
        assert len(everything(content)) == 3 * PAGE
        assert content.note == "3 files, 1 unreadable"


class TestMadeHere:
    """What the machine lacks is made: it compresses as its name says."""

    def test_packed_unpacks_to_its_sources(self, files: Path) -> None:
        noise = os.urandom(100_000)
        (files / "a" / "one.dat").write_bytes(noise)
        packed = Packed([Files(kind(files / "a"), 1 << 20)], 1 << 20)
        unpacked = zlib.decompressobj().decompress(everything(packed, PAGE))
        assert unpacked and noise.startswith(unpacked)
        assert packed.note == "zlib, of data"

    def test_text_shrinks_as_text_does(self) -> None:
        text = Text(1 << 20)
        data = everything(text)
        assert len(data) == text.bytes == 1 << 20
        assert 1.5 < PAGE / len(zlib.compress(data[:PAGE])) < 4

    def test_text_pages_differ(self) -> None:
        data = everything(Text(1 << 20))
        assert len({data[start : start + PAGE] for start in range(0, 1 << 20, PAGE)}) > 250

    def test_noise_does_not_shrink(self) -> None:
        data = everything(Noise(1 << 20))
        assert len(zlib.compress(data)) > len(data) == 1 << 20


class TestSupply:
    """Ordinary contents first, then incompressible ones; the total is reached on any machine."""

    def names(self, usual: int, total: int) -> tuple[list[str], int]:
        names: list[str] = []
        length = 0
        for content, batch in corpus.supply(usual, total, SIZE):
            if content.name not in names:
                names.append(content.name)
            length += len(batch)
        return names, length

    def test_this_machine(self) -> None:
        names, length = self.names(6 << 20, 8 << 20)
        assert "Python sources" in names
        assert length == 8 << 20

    def test_bare_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Kind, "paths", lambda _: iter(()))
        assert self.names(6 << 20, 8 << 20) == (["generated text", "random bytes"], 8 << 20)

    def test_machine_without_archives(self, monkeypatch: pytest.MonkeyPatch) -> None:
        paths = Kind.paths
        monkeypatch.setattr(
            Kind, "paths", lambda self: iter(()) if self is corpus.ARCHIVES else paths(self)
        )
        names, length = self.names(6 << 20, 8 << 20)
        assert names[-1] == "archives made here"
        assert length == 8 << 20
