"""A run is a directory: its files, checkpoints, metrics and records, read and written."""

from ressl_plugin.run.directories import (
    Run,
    directory,
    epochs_trained,
    has_checkpoint,
    held,
    locked,
    open_run,
    read_config,
    start,
)
