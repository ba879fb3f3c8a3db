"""Which signals ask a process to end in order."""

import signal


def ending_signals() -> tuple[signal.Signals, ...]:
    """SIGTERM, SIGINT, and SIGHUP, which a terminal sends as it closes.

    SIGHUP is left out where it is ignored: whoever said `nohup` wants to outlive the terminal.
    """
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return signal.SIGTERM, signal.SIGINT
    return signal.SIGTERM, signal.SIGINT, signal.SIGHUP
