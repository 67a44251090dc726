"""Every exception that Segmill raises on purpose.

SegmillError
├── SettingsError        a setting is wrong: raised before any work, exit code 2
│   ├── VocabularyError  the class list is wrong; the message names the line
│   ├── DatasetError     a download of training data is not whole, or a file of it is wrong
│   ├── SourceError      the images cannot be listed
│   ├── OutputError      the dataset cannot be written or read
│   └── ModelError       a model is unknown, absent, or does not fit its partner
├── TrainingError        a training cannot go on: its loss is no number, or a file went bad
├── StoreUnavailableError  a store does not answer; what is done is kept, run again later
├── SchemaError          a stage returned other columns than it promised
├── LockedError          another run holds the dataset, exit code 3
└── PublicationError     another run published this version first

A bad *image* is not an exception: it becomes a row with `status = "quarantined"`.
"""


class SegmillError(Exception):
    """Base of all errors that a caller may want to catch."""


class SettingsError(SegmillError):
    """A setting is wrong; the message names the value and what would have been right."""


class VocabularyError(SettingsError):
    """The vocabulary file is wrong; the message names the file and the line."""


class DatasetError(SettingsError):
    """A data set cannot be prepared or read; the message names the file."""


class SourceError(SettingsError):
    """The source of images cannot be listed."""


class OutputError(SettingsError):
    """The dataset directory cannot be written or read."""


class ModelError(SettingsError):
    """A model is unknown, its weights are absent, or it does not fit the other model."""


class TrainingError(SegmillError):
    """A training cannot go on, and would not if it were repeated; the message names the step."""


class StoreUnavailableError(SegmillError):
    """A store gave no image of a whole batch, after every attempt; another run may go on."""


class SchemaError(SegmillError):
    """A table lacks columns of its schema or has others."""


class PublicationError(SegmillError):
    """The manifest could not be published because another run was first."""


class LockedError(SegmillError):
    """Another run holds the dataset; the message names it."""
