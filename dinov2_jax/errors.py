"""Exit codes, and the one exception for every error that a user can fix."""

DONE = 0
CRASHED = 1  # unexpected error, with a traceback
DOES_NOT_FIT = 1  # only of `aot`
BAD_INPUT = 2  # config, data or weights: do not retry
NON_FINITE = 3  # stopped on non-finite values: do not retry
REQUEUE = 42  # stopped on request, to be started again
TRY_AGAIN = 75  # a machine failed, not the input; EX_TEMPFAIL in sysexits.h
HANGUP = 129  # its terminal was closed, as shells number SIGHUP
INTERRUPTED = 130  # by Ctrl-C, as shells number it
HUNG = 134  # no progress for too long; the exit code of a process that aborts
CLOSED_OUTPUT = 141  # the reader of its output has ended, as shells number SIGPIPE
TERMINATED = 143  # by SIGTERM, as shells number it


class UserError(Exception):
    """An expected error: one line that names the value and the fix.

    `cli.exit_code` prints the message without a traceback and returns `exit_code`.
    """

    def __init__(self, message: str, *, exit_code: int = BAD_INPUT):
        super().__init__(message)
        self.exit_code = exit_code
