"""The daemon's process: no model code, no model bytes, no internet."""
