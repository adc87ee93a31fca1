"""EXAMPLE, not in use: `order.shipped` becomes `order.shipped.v2`, which has a shipment in parcels (docs/events.md).

Version 1 has one `tracking` and the units of a whole shipment. Parcels with a tracking each cannot be added to that:
who reads version 1 would miss the units. So it is a new type, and this is what makes old events of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from services.contracts.orders import Event


def upcast(event: Event) -> Event:
    """The event in the newest version of its type, itself when it is of that; id, version and header stay.

    Pure, and of the event alone: what an old event does not say cannot be asked of anybody later.
    """
    step = _STEPS.get(event.type)
    return event if step is None else upcast(step(event))


def _in_parcels(event: Event) -> Event:
    """Version 1 is version 2 with one parcel: nothing is lost, and nothing is made up."""
    change = event.data["change"]
    parcel = {name: change[name] for name in ("tracking", "items")}
    rest = {name: value for name, value in change.items() if name not in parcel}
    return replace(event, type="order.shipped.v2", data={**event.data, "change": {"parcels": [parcel], **rest}})


_STEPS: Mapping[str, Callable[[Event], Event]] = {"order.shipped": _in_parcels}  # from each type to its next version
