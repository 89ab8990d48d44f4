"""Runs that are stopped where a test wants it."""


class StoppedError(Exception):
    """No fault of what was asked for, so that what is done is kept, as after a kill."""


def stopping_at(count):
    """Progress that stops a run after so many frames."""

    def progress(done, total):
        if done == count:
            raise StoppedError

    return progress
