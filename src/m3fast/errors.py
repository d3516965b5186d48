"""Every error m3fast raises on purpose. Catch `M3FastError` to catch them all."""

from __future__ import annotations


class M3FastError(Exception):
    """Base of all errors raised by m3fast itself."""


class InputError(M3FastError, ValueError):
    """A bad argument: the message names the argument, what was expected and what was found."""


class TextSizeError(M3FastError, ValueError):
    """Texts whose tokens cost more than the engine takes on: the message names which."""


class CheckpointError(M3FastError):
    """A model that cannot be loaded: the message names file, tensor, expected and found."""


class ProcessError(M3FastError, RuntimeError):
    """An engine used in a forked child of the process that made it."""


class OverloadedError(M3FastError, RuntimeError):
    """The queue has no room for these tokens now.

    Attributes:
        retry_after: seconds after which it should have.
    """

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(M3FastError, TimeoutError):
    """A request was not answered before its deadline; what of it had not begun is not computed."""


class ComputeError(M3FastError, RuntimeError):
    """The batch a request rode in raised an error, which is the cause; other batches go on."""


class NonFiniteError(ComputeError):
    """A text for which the model gives nan or infinity, as its weights or a narrow dtype make it.

    Attributes:
        index: of the text in the call; output: the first output that is not finite.
    """

    def __init__(self, index: int, output: str) -> None:
        super().__init__(
            f"texts[{index}]: expected finite {output} values from the model, found nan or infinity"
        )
        self.index, self.output = index, output

    def __reduce__(self) -> tuple[type[NonFiniteError], tuple[int, str]]:
        return NonFiniteError, (self.index, self.output)

    def shifted(self, by: int) -> NonFiniteError:
        """The same for a call in which `by` more texts come first."""
        return NonFiniteError(self.index + by, self.output)


class DeviceMemoryError(ComputeError):
    """One text alone does not fit into the device's memory."""


class EngineClosedError(M3FastError, RuntimeError):
    """The engine takes no more requests: it is closing, closed, or its worker has died."""
