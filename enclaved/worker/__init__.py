"""A worker's process: one loaded model, many sequences; or, in another mode, the inspector of model files."""
