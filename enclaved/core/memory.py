"""The ledger: what each device's memory is booked for. Entries end when the worker's process has exited."""

from __future__ import annotations

from enclaved.core.ids import DeviceId
from enclaved.core.state import State, Wanted


def booked_bytes(state: State, device: DeviceId) -> int:
    """Bytes booked on a device by every instance whose process has not exited."""
    return sum(instance.bytes_booked for instance in state.instances.values() if instance.need.device == device)


def free_bytes(state: State, device: DeviceId) -> int:
    """Bytes that can be given out now; negative when a measurement turned out above the capacity."""
    return state.devices[device].capacity_bytes - booked_bytes(state, device)


def leaving_bytes(state: State, device: DeviceId) -> int:
    """Bytes that will be free once the instances that are to go have gone."""
    return sum(
        instance.bytes_booked
        for instance in state.instances.values()
        if instance.need.device == device and instance.wanted is Wanted.UNLOADED
    )
