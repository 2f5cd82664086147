"""The source of models that lie in folders."""
