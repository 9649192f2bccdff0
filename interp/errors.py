"""Errors a user can act on: one line naming the offending thing and the cure. The command line exits with 2 on them."""


class UserError(Exception):
    """Bad input; the message names the thing and what to do about it."""


class PromptFileError(UserError):
    """A prompt file or data set that cannot be read as prompts."""


class MediaError(UserError):
    """An image or audio that cannot be read, or is not what a model could see or hear."""


class CheckpointError(UserError):
    """A checkpoint or adapter that cannot be loaded, or is not what it claims to be."""


class SiteError(UserError):
    """An unknown layer, stream or token position."""


class NonFiniteError(UserError):
    """NaN or infinity where a finite number is needed."""


class ResultError(UserError):
    """A result directory that cannot be written, read or trusted."""


class SelectionError(UserError):
    """No candidate refusal direction passes the filters."""


class EmbeddingError(UserError):
    """Items without an embedding, or distances that tell no item from another."""
