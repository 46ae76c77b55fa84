"""The frame: table, help, exit codes, and how errors are told."""

import os
import re
import subprocess
import sys
import types

import pytest

import cram_emu
from cram_emu import CramError, cli
from cram_emu.errors import AccessDenied, Busy, DeviceMissing, InvalidArgument, NotPermitted, NotSupported


COMMAND = (sys.executable, "-c", "import sys; from cram_emu.cli import main; sys.exit(main())")


def command(*args: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *args], capture_output=True, text=True, **options)


@pytest.fixture
def subcommand(monkeypatch: pytest.MonkeyPatch):
    """Makes `cram-emu try` do what the test gives."""

    def install(run) -> None:
        module = types.ModuleType("try_module")
        module.configure = lambda parser: parser.add_argument("--size", type=int)
        module.run = run
        monkeypatch.setitem(sys.modules, "try_module", module)
        monkeypatch.setattr(cli, "SUBCOMMANDS", (("try", "try_module", "try something"),))

    return install


def raiser(error: BaseException):
    def run(args):
        raise error

    return run


class TestHelp:
    def test_names_everything(self):
        """--help names each subcommand with its message, and each exit code."""
        result = command("--help", env=os.environ | {"COLUMNS": "200"})
        assert result.returncode == 0
        for name, _, message in cli.SUBCOMMANDS:
            assert re.search(rf"^    {name}\s", result.stdout, re.M)
            assert message in result.stdout
        assert cli.EXIT_CODES in result.stdout

    def test_imports_no_subcommand(self):
        """Help of the frame imports no subcommand, and help of one only that."""
        names = [module for _, module, _ in cli.SUBCOMMANDS]
        show = (
            "import sys\nfrom cram_emu.cli import main\n"
            "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
            f"print('imported:', *(name for name in {names!r} if name in sys.modules))"
        )
        for args, expected in ((["--help"], []), (["info", "--help"], ["cram_emu.cli.info"])):
            run = [sys.executable, "-c", show, *args]
            out = subprocess.run(run, capture_output=True, text=True, check=True).stdout
            assert out.splitlines()[-1].split()[1:] == expected

    @pytest.mark.parametrize("name", [name for name, _, _ in cli.SUBCOMMANDS])
    def test_of_each(self, name: str):
        """Each subcommand has help of its own, with the exit codes; --json, if it has things to tell."""
        result = command(name, "--help")
        assert result.returncode == 0
        assert result.stdout.startswith(f"usage: cram-emu {name} ")
        assert "\nexit codes:\n" in result.stdout
        assert ("--json" in result.stdout) == (name not in ("ns", "rm", "run"))

    def test_version(self):
        """--version prints the package's."""
        assert command("--version").stdout == f"cram-emu {cram_emu.__version__}\n"


class TestExitCodes:
    @pytest.mark.parametrize(
        "args, said",
        [
            ([], "SUBCOMMAND"),
            (["nonsense"], "'nonsense'"),
            (["info", "--nonsense"], "--nonsense"),
        ],
    )
    def test_usage(self, args: list[str], said: str):
        """Bad usage is 2 and names what was wrong."""
        result = command(*args)
        assert result.returncode == cli.USAGE
        assert said in result.stderr
        assert result.stdout == ""

    def test_returned(self, subcommand):
        """A subcommand gets its arguments, and what it returns is the exit code."""
        subcommand(lambda args: args.size)
        assert cli.main(["try", "--size", "7"]) == 7

    def test_error(self, subcommand, capsys: pytest.CaptureFixture):
        """An error of the package is one line and 1; one of what was asked for is 2, as bad usage is."""
        subcommand(raiser(Busy("vmtest: in use by process 7")))
        assert cli.main(["try"]) == cli.FAILED
        assert capsys.readouterr() == ("", "cram-emu: vmtest: in use by process 7\n")
        subcommand(raiser(InvalidArgument("sector is 65, not a power of two")))
        assert cli.main(["try"]) == cli.USAGE
        assert capsys.readouterr() == ("", "cram-emu: sector is 65, not a power of two\n")

    def test_unprintable(self, subcommand, capsys: pytest.CaptureFixture):
        """What a name holds breaks no line, and does nothing to the terminal."""
        subcommand(raiser(DeviceMissing("a\nb\x1b[31m: é, no such device")))
        assert cli.main(["try"]) == cli.FAILED
        assert capsys.readouterr().err == "cram-emu: a\\nb\\x1b[31m: é, no such device\n"
        with pytest.raises(SystemExit):
            cli.main(["try", "a\nb"])
        assert capsys.readouterr().err.endswith("error: unrecognized arguments: a\\nb\n")

    def test_dashes(self, subcommand, capsys: pytest.CaptureFixture):
        """Two dashes are the value of an option that is given them."""
        subcommand(lambda args: args.size)
        with pytest.raises(SystemExit):
            cli.main(["try", "--size=--"])
        assert capsys.readouterr().err.endswith("error: argument --size: invalid int value: '--'\n")

    @pytest.mark.parametrize(
        "args",
        ["events", "stat", "top", "ns  true", "mount ", "mount x --device=", "fault --device=", "fault --mount=",
         "run --report= -- true", "run --plot= -- true", "experiment race --plot=", "scenarios --junit="],
    )  # fmt: skip
    def test_empty_path(self, args: str, capsys: pytest.CaptureFixture):
        """An empty path is no path; it does not stand for the working directory."""
        words = args.split(" ") if " " in args else [args, ""]
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert ended.value.code == cli.USAGE
        assert capsys.readouterr().err.endswith(": empty\n")

    @pytest.mark.parametrize("error", [NotPermitted, AccessDenied, NotSupported])
    def test_not_permitted(self, subcommand, capsys: pytest.CaptureFixture, error: type[CramError]):
        """A refusal of the host is one line and 3."""
        subcommand(raiser(error("userfaultfd is not permitted: run as root")))
        assert cli.main(["try"]) == cli.NOT_PERMITTED
        assert capsys.readouterr().err == "cram-emu: userfaultfd is not permitted: run as root\n"

    def test_interrupted(self, subcommand, capsys: pytest.CaptureFixture):
        """Ctrl-C is one line and 130."""
        subcommand(raiser(KeyboardInterrupt()))
        assert cli.main(["try"]) == cli.INTERRUPTED
        assert capsys.readouterr().err == "cram-emu: interrupted\n"

    def test_other_errors_are_not_hidden(self, subcommand):
        """What is no error of the package keeps its traceback."""
        subcommand(raiser(ZeroDivisionError()))
        with pytest.raises(ZeroDivisionError):
            cli.main(["try"])

    def test_reader_gone(self):
        """A reader that went away is 141, in silence."""
        reader, writer = os.pipe()
        os.close(reader)
        try:
            result = subprocess.run(
                [*COMMAND, "info"],
                stdout=writer,
                stderr=subprocess.PIPE,
                text=True,
            )
        finally:
            os.close(writer)
        assert (result.returncode, result.stderr) == (cli.READER_GONE, "")
