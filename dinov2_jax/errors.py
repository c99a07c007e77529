"""The one exception for everything a user can put right."""

BAD_INPUT = 2  # config, data or weights: do not retry
CRASHED = 1  # nobody foresaw it: there is a traceback
NON_FINITE = 3  # stopped on non-finite values: do not retry
REQUEUE = 42  # saved, and asks to be started again
HUNG = 134  # nothing was finished for too long; as a process that aborts
TRY_AGAIN = 75  # a machine failed, not the input; sysexits.h calls it EX_TEMPFAIL
INTERRUPTED = 130  # by Ctrl-C, as shells number it


class UserError(Exception):
    """A foreseen error: one line that names the value and the fix.

    `main` prints the message without a traceback and leaves with `exit_code`.
    """

    def __init__(self, message: str, *, exit_code: int = BAD_INPUT):
        super().__init__(message)
        self.exit_code = exit_code
