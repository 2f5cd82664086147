"""The source of the models that come with Enclave."""
