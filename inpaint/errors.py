"""The errors this package raises at its doors.

    InpaintError
    ├── ConfigError        a setting is unknown, impossible or contradicts another
    ├── StorageError       an object cannot be read, listed or written
    ├── DataError          shards, images or masks are missing, damaged or not what was said
    ├── ShapeError         an image or a hole has a size or shape that the method cannot take (also a ValueError)
    ├── WeightsError       pretrained weights are absent, altered or of another network
    ├── CheckpointError    a checkpoint is absent, incomplete, altered or of another run
    ├── TrainingError      training cannot go on (a loss that is not finite, ...)
    │   ├── UnhealthyError     a rule of `health.stop_when` ended it
    │   └── MendableError      not here and not now; later, or on another cluster, it may (a lost lease, ...)
    ├── EvaluationError    scores cannot be computed or compared
    └── ClusterError       Kubernetes or Ray refused, or cannot be reached

A message says what and where, what was expected, and what to do next. The command line prints it as one
line and exits with 1; anything that is not an InpaintError keeps its traceback.
"""


class InpaintError(Exception):
    """Parent of every error a user can cause or mend."""


class ConfigError(InpaintError):
    """A setting is unknown, impossible or contradicts another."""


class StorageError(InpaintError):
    """An object cannot be read, listed or written."""


class DataError(InpaintError):
    """Shards, images or masks are missing, damaged or not what was said."""


class ShapeError(InpaintError, ValueError):
    """An image or a hole has a size or shape that the method cannot take."""


class WeightsError(InpaintError):
    """Pretrained weights are absent, altered or belong to another network."""


class CheckpointError(InpaintError):
    """A checkpoint is absent, incomplete, altered or belongs to another run."""


class TrainingError(InpaintError):
    """Training cannot go on."""


class UnhealthyError(TrainingError):
    """A rule of `health.stop_when` ended the training."""


class MendableError(TrainingError):
    """Training cannot go on here and now; later, or on another cluster, it may."""


class EvaluationError(InpaintError):
    """Scores cannot be computed or compared."""


class ClusterError(InpaintError):
    """Kubernetes or Ray refused, or cannot be reached."""
