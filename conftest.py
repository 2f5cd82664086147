"""Settings of all tests of this repository."""

from __future__ import annotations

from hypothesis import settings

# A busy machine is slow, which is no defect of what it tests.
settings.register_profile("enclave", deadline=None)
settings.load_profile("enclave")
