"""Every error m3fast raises on purpose. Catch `M3FastError` to catch them all."""


class M3FastError(Exception):
    """Base of all errors raised by m3fast itself."""


class InputError(M3FastError, ValueError):
    """A bad argument: the message names the argument, what was expected and what was found."""


class CheckpointError(M3FastError):
    """A model that cannot be loaded: the message names file, tensor, expected and found."""


class ProcessError(M3FastError, RuntimeError):
    """An engine used in a forked child of the process that made it."""
