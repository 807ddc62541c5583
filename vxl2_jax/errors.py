"""Errors that a user can fix. The message is one line: what is wrong, and how to fix it."""

MAX_MESSAGE = 1500
"""Characters of a message. Names and values in files can be of any length."""


class Vxl2Error(Exception):
    """Base class; the command line prints the message and exits with code 2.

    The message is kept to one line of at most `MAX_MESSAGE` characters: what is left out of a longer one is in its middle,
    since it begins with the place and ends with the fix.
    """

    def __init__(self, message: str = "") -> None:
        line = " ".join(message.splitlines())
        super().__init__(line if len(line) <= MAX_MESSAGE else f"{line[: MAX_MESSAGE - 503]} … {line[-500:]}")


class VideoError(Vxl2Error):
    """A video, image or folder that cannot be read, or invalid sampling options."""


class CheckpointError(Vxl2Error):
    """A checkpoint that is missing, damaged or of another model."""


class RequestError(Vxl2Error):
    """Invalid options or text, or ones that do not fit the model or the memory."""


class TooLongError(RequestError):
    """A video whose memory does not fit the device."""


class BusyError(RequestError):
    """Another process is writing the same file."""


class ToyModelWarning(UserWarning):
    """A toy model answered about something that it was not trained on."""


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its class name if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shown(value: object) -> str:
    """A value for a message: at most 60 characters."""
    try:
        return f"{value!r:.60}"
    except (ValueError, RecursionError):  # an integer of more than 4,300 digits
        return f"a value of type {type(value).__name__}"


OUT_OF_MEMORY = "out of memory; sample fewer frames (--max-frames) or lower --fps"


RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
"""What messages of XLA say of too little memory."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the host or a device had too little memory."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and RESOURCE_EXHAUSTED in str(error))
