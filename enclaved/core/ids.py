"""The names things go by in the core. A mix-up of two of them is a type error."""

from __future__ import annotations

from typing import NewType

ClientId = NewType("ClientId", str)
RequestId = NewType("RequestId", str)
"""Of the whole daemon, not of one client."""
InstanceId = NewType("InstanceId", str)
DeviceId = NewType("DeviceId", str)
ModelKey = NewType("ModelKey", str)
"""One model run by one backend: requests with equal keys can share an instance."""
