"""The exceptions a user can meet; the command line prints each as one sentence."""


class ClmemError(Exception):
    """Something a user should read: the message is one sentence that says what is wrong and what to do."""


class UsageError(ClmemError):
    """The request itself cannot be carried out (unknown name, impossible combination, bad file): exit code 2."""


class LedgerError(ClmemError):
    """The books do not balance: an invariant of the ledger is broken, so no number may be published."""


class UndeclaredStateError(ClmemError):
    """A method keeps memory across steps that it does not declare in `memory_roles()`."""


class DivergedError(ClmemError):
    """The training loss became NaN or infinite."""


def nearest(name: str, known: list[str]) -> str:
    """Return ' (did you mean ...?)' for a misspelt name, or the list of what is known."""
    import difflib

    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close)}?"
    return f"known are {', '.join(sorted(known))}"
