"""Mistakes of input that the user can mend. The text is one line: the thing, and the mend."""


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line; its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class Vxl2Error(Exception):
    """Base of all; the command line prints its text and exits with 2."""


class VideoError(Vxl2Error):
    """A video, image or folder that cannot be read as asked."""


class CheckpointError(Vxl2Error):
    """Weights that are missing, damaged or of another model."""


class RequestError(Vxl2Error):
    """Options or text that do not go together, or do not fit the model or the memory."""


class TooLongError(RequestError):
    """A video whose memory does not fit the device."""
