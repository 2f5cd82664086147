"""What must hold after every event. Tests and the simulator check it after each step."""

from __future__ import annotations

from collections import Counter

from enclaved.core.fairness import in_order
from enclaved.core.ids import DeviceId, ModelKey
from enclaved.core.memory import booked_bytes, free_bytes
from enclaved.core.placement import suits
from enclaved.core.state import Phase, State, Wanted


def check(state: State) -> list[str]:
    """A sentence for each rule that is broken; empty when all hold."""
    return [
        *_leases(state),
        *_instances(state),
        *_memory(state),
        *_queues(state),
        *_progress(state),
        *_cores(state),
    ]


def _leases(state: State) -> list[str]:
    """A request is in exactly one place: it waits, or it runs on one instance that holds its lease."""
    broken: list[str] = []
    for request_id, request in state.requests.items():
        if request.id != request_id:
            broken.append(f"{request.id} is kept as {request_id}")
        if request.instance is None:
            continue
        instance = state.instances.get(request.instance)
        if instance is None:
            broken.append(f"{request.id} runs on {request.instance}, which is not there")
        elif request.id not in instance.leases:
            broken.append(f"{request.id} runs on {instance.id} without a lease")
        elif instance.need.model != request.model:
            broken.append(f"{request.id} wants {request.model} and runs on {instance.need.model}")
        if request.load_only:
            broken.append(f"{request.id} only wants a load and holds a lease")
    for instance in state.instances.values():
        for lease in sorted(instance.leases):
            request = state.requests.get(lease)
            if request is None or request.instance != instance.id:
                broken.append(f"{instance.id} holds a lease of {lease}, which does not run there")
        if instance.leases and instance.phase is not Phase.READY:
            broken.append(f"{instance.id} is {instance.phase.value} and holds leases")
        if instance.sequences_used > instance.sequences and instance.phase is Phase.READY:
            broken.append(f"{instance.id} runs {instance.sequences_used} requests on {instance.sequences} sequences")
        broken += [
            f"{instance.id} has {paused} paused, which holds no lease"
            for paused in sorted(instance.paused - instance.leases)
        ]
    return broken


def _instances(state: State) -> list[str]:
    """What an instance is and what it is to become agree, and no model is there twice."""
    broken: list[str] = []
    models = Counter(instance.need.model for instance in state.instances.values())
    broken += [f"{model} has {count} instances" for model, count in models.items() if count > 1]
    for instance_id, instance in state.instances.items():
        if instance.id != instance_id:
            broken.append(f"{instance.id} is kept as {instance_id}")
        leaves = instance.wanted is Wanted.UNLOADED
        if leaves and not instance.leases and instance.phase is not Phase.UNLOADING:
            broken.append(f"{instance.id} is to go, holds no lease and is {instance.phase.value}")
        if not leaves and instance.phase is Phase.UNLOADING:
            broken.append(f"{instance.id} is unloading and is to stay")
        if not leaves and (instance.makes_way_for is not None or instance.failed is not None):
            broken.append(f"{instance.id} is to stay and has a reason to go")
        if not leaves and state.shutting_down:
            broken.append(f"{instance.id} is to stay in a daemon that ends")
        for_whom = instance.makes_way_for
        if instance.phase is Phase.READY and for_whom is not None:
            if not state.is_waited_for(for_whom):
                broken.append(f"{instance.id} makes way for {for_whom}, which nobody waits for")
            elif for_whom != instance.need.model and state.instance_of(for_whom) is not None:
                broken.append(f"{instance.id} makes way for {for_whom}, which is there")
    return broken


def _memory(state: State) -> list[str]:
    """Estimates never exceed a device; a worker that takes more than it said is known only afterwards."""
    broken: list[str] = []
    for device in state.devices.values():
        instances = [i for i in state.instances.values() if i.need.device == device.id]
        lied = any((i.bytes_measured or 0) > i.need.bytes_estimated for i in instances)
        estimated = sum(i.need.bytes_estimated for i in instances)
        booked = booked_bytes(state, device.id)
        if estimated > device.capacity_bytes or (booked > device.capacity_bytes and not lied):
            broken.append(f"{device.id} has {device.capacity_bytes} bytes and {max(estimated, booked)} booked")
    return broken


def _queues(state: State) -> list[str]:
    broken: list[str] = []
    waiting = state.waiting()
    if len(waiting) > state.limits.queued_max:
        broken.append(f"{len(waiting)} requests wait, {state.limits.queued_max} may")
    for client, count in Counter(request.client for request in waiting).items():
        if count > state.limits.queued_per_client_max:
            broken.append(f"{count} requests of {client} wait, {state.limits.queued_per_client_max} may")
    if state.shutting_down and waiting:
        broken.append(f"{len(waiting)} requests wait for a daemon that ends")
    for request in waiting:
        if request.being_cancelled:
            broken.append(f"{request.id} waits though it was cancelled")
        if request.told is None:
            broken.append(f"{request.id} waits and was not told why")
    return broken


def _progress(state: State) -> list[str]:
    """Nothing waits that could go on, and whoever waits does so for something that will end."""
    broken: list[str] = []
    waiting = in_order(state.waiting())
    if waiting and not any(i.leases or i.phase is not Phase.READY for i in state.instances.values()):
        broken.append(f"{len(waiting)} requests wait and nothing is under way")
    models: set[ModelKey] = set()
    devices: set[DeviceId] = set()
    for request in state.requests.values():
        instance = state.instance_of(request.model)
        if request.wants_resume and instance is not None:
            if request.id not in instance.paused:
                broken.append(f"{request.id} is to go on and is not paused")
            elif instance.sequences_used < instance.sequences:
                broken.append(f"{request.id} is to go on, and {instance.id} has a sequence for it")
    for request in waiting:
        instance, device = state.instance_of(request.model), request.need.device
        if instance is not None:
            has_room = request.load_only or instance.sequences_used < instance.sequences
            if instance.takes_requests and has_room and suits(instance.need, request.need, request.wish):
                broken.append(f"{request.id} waits although {instance.id} could take it")
        if request.model in models:
            continue  # a model is loaded for the first that waits for it
        models.add(request.model)
        # Only the first on a device is owed all that is free there: some of it may be kept from later ones.
        fits = device not in devices and request.need.bytes_estimated <= free_bytes(state, device)
        if instance is None and fits:
            broken.append(f"{request.id} waits although {request.model} fits into what is free")
        devices.add(device)
    return broken


def _cores(state: State) -> list[str]:
    broken: list[str] = []
    for device in state.devices.values():
        busy = [i for i in state.instances.values() if i.is_busy and i.need.device == device.id]
        granted = sum(i.threads for i in busy)
        if granted > max(device.cores, len(busy)):
            broken.append(f"{device.id} has {device.cores} cores and {granted} threads granted")
        broken += [f"{i.id} is busy and has no thread" for i in busy if i.threads < 1]
    return broken
