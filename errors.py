"""Every error that patchbank raises on purpose. The docstring of a class is its meaning.

A message says what was given, what is allowed and what to type next, in one sentence where that is
possible. The command line prints the message and the notes (`add_note`: which patch, which block) and
ends with the class's exit code; a traceback is shown only for errors that are not listed here.
"""


class PatchbankError(Exception):
    """Base class of all errors."""

    exit_code = 1


class InvalidRequest(PatchbankError, ValueError):
    """The request is invalid or contradicts itself; nothing was done."""

    exit_code = 2


class UntrustedCode(InvalidRequest):
    """A file names Python code to import, and running it was not allowed (`trust_code`, --trust-code)."""


class MissingDependency(PatchbankError, ImportError):
    """An optional package is needed and not installed; the message has the pip command."""


class OutputError(PatchbankError, OSError):
    """A file or folder of results cannot be written, or another run is writing there. Names it."""


# --- datasets ---------------------------------------------------------------------------------------


class ManifestError(PatchbankError, ValueError):
    """A manifest (table or header), a fold file or a source CSV is invalid."""


class ImageError(PatchbankError, OSError):
    """One image is missing, truncated or not an image. Names the file."""


class FetchError(PatchbankError, OSError):
    """A download failed, has an unexpected checksum, or an archive is not safe to unpack."""


# --- cache ------------------------------------------------------------------------------------------


class StoreError(PatchbankError, OSError):
    """A store cannot be read or written (disk full, read-only, newer format, damaged log)."""


class StoreNotFound(StoreError, LookupError):
    """No store, or more than one, matches the request; the message lists the stores."""


class RowsMissing(StoreError, KeyError):
    """Some patches have no embedding in the store; the message says how many and how to embed them."""

    def __str__(self) -> str:  # KeyError would show the repr
        return str(self.args[0]) if self.args else ""


class VectorRefused(PatchbankError, ValueError):
    """An embedding holds NaN or Inf, or overflows the storage dtype. Names the patch."""


# --- extract ----------------------------------------------------------------------------------------


class UnknownEncoder(PatchbankError, LookupError):
    """No encoder has this name; the message suggests similar names."""


class EncoderError(PatchbankError, RuntimeError):
    """An encoder's weights are unavailable, or do not match its card."""


class GatedEncoder(EncoderError, PermissionError):
    """The weights are behind a licence page; the message names the page and the login command."""


class WeightsNotHere(EncoderError):
    """The weights are not on this disk; a run with a network would download them."""


# --- probe ------------------------------------------------------------------------------------------


class ProbeError(PatchbankError, ValueError):
    """The data cannot be probed as asked (one class in a fold, leaking groups, no rows)."""


# --- finetune ---------------------------------------------------------------------------------------


class TrainingError(PatchbankError, RuntimeError):
    """A fine-tuned model cannot be trained, read or used as it is (NaN loss, damaged or foreign files)."""


class LeakRefused(PatchbankError, ValueError):
    """Patches that trained a fine-tuned encoder were about to be embedded or scored as if unseen."""
