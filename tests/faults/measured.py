"""What a process of a stack tells of itself."""

from contextlib import suppress

import httpx

from services.embedded.supervisor import Stack


async def metric(stack: Stack, process: str, sample: str) -> float:
    """A sample of the process's metrics, 0 when it has none or does not answer."""
    metrics = stack.endpoints["metrics"]
    assert isinstance(metrics, dict)
    with suppress(httpx.HTTPError):
        async with httpx.AsyncClient(timeout=30) as client:
            for line in (await client.get(metrics[process])).text.splitlines():
                if line.startswith(f"{sample} "):
                    return float(line.rpartition(" ")[2])
    return 0.0
