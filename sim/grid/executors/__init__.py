"""Where a grid's jobs run. A file here, or an entry point, is an executor by being there."""
