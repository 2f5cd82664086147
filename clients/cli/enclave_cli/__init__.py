"""The enclave command."""
