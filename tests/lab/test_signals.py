"""Signals that wait while something is half done, and signals that unwind."""

import signal

import pytest

from cram_emu.lab.signals import signals_held, unwound_by_signals


class TestSignalsHeld:
    """A signal inside the block is delivered after it, once."""

    def test_held(self):
        seen = []
        before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
        try:
            with signals_held():
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGTERM)
                assert seen == []
            assert seen == [signal.SIGTERM]
        finally:
            signal.signal(signal.SIGTERM, before)

    def test_interrupt(self):
        done = []
        with pytest.raises(KeyboardInterrupt):
            with signals_held():
                signal.raise_signal(signal.SIGINT)
                done.append("cleaned up")
            pytest.fail("went on after Ctrl-C")
        assert done == ["cleaned up"]


class TestUnwound:
    """SIGTERM and SIGHUP leave the block as SystemExit with the shell's code."""

    @pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGHUP))
    def test_unwound(self, number):
        before = signal.getsignal(number)
        with pytest.raises(SystemExit) as raised, unwound_by_signals():
            signal.raise_signal(number)
        assert raised.value.code == 128 + number
        assert signal.getsignal(number) is before

    def test_ignored(self):
        """Under nohup it goes on."""
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            with unwound_by_signals():
                signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        finally:
            signal.signal(signal.SIGHUP, before)
