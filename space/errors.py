"""Every error that a user can cause, as one small tree.

SecateurError
├── ArchitectureError (ValueError)   an architecture that does not fit its model
├── BudgetError       (ValueError)   a budget that cannot be read or met
├── FamilyError       (ValueError)   a model family without a record in `space.families`
├── SettingError      (ValueError)   an unknown or impossible setting
├── ModelError        (OSError)      a model that cannot be opened
├── TextError         (ValueError)   text that is missing or too short
├── MeasurementError  (ValueError)   a measurement that is not a finite number
├── PredictorError    (ValueError)   pairs that no predictor can be fitted on, or a damaged predictor
├── RunFolderError    (OSError)      a run folder that is foreign, damaged or of another run
├── EngineError       (OSError)      machines that cannot be reached, or would not measure as they should
└── ExportError       (OSError)      an export that cannot be written or did not verify

A message states the rule, the value that broke it and the way out, in one sentence. The command line prints it and
ends with exit code 2.
"""


class SecateurError(Exception):
    """Root of all errors that a user of Secateur can cause and put right."""


class ArchitectureError(SecateurError, ValueError):
    """An architecture does not fit the model or the search space."""


class BudgetError(SecateurError, ValueError):
    """A budget cannot be read, or no architecture meets it."""


class FamilyError(SecateurError, ValueError):
    """The model's family has no record in `space.families`."""


class SettingError(SecateurError, ValueError):
    """A setting is unknown or out of its range."""


class ModelError(SecateurError, OSError):
    """A model cannot be found or opened."""


class TextError(SecateurError, ValueError):
    """A text is missing, unreadable or too short for the splits asked of it."""


class MeasurementError(SecateurError, ValueError):
    """A measurement gave a value that is not finite."""


class PredictorError(SecateurError, ValueError):
    """The pairs cannot carry a predictor, or a saved predictor is damaged."""


class RunFolderError(SecateurError, OSError):
    """A run folder is not one of ours, is damaged, or belongs to another run."""


class EngineError(SecateurError, OSError):
    """Machines that are to measure cannot be reached, or would measure otherwise."""


class ExportError(SecateurError, OSError):
    """An export cannot be written, or what was written is not the model in memory."""
