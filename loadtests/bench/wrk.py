"""`wrk`, the load generator: a closed loop of CONNECTIONS connections in one thread."""

import asyncio
import re
import shutil
import signal
import tempfile
from typing import Final

from loadtests.bench.measure import PERCENTILES, VoidError, Work

CONNECTIONS: Final = 16
_FOREVER: Final = "3600s"  # its own -d knows whole seconds only; it is ended from here
_SETTLED_SECONDS: Final = 5.0

_TOLD: Final = """
response = function(status) if status ~= %(status)d then print("unexpected status " .. status) os.exit(1) end end
done = function(summary, latency)
  print("counted " .. summary.requests .. " " .. summary.duration)
  for _, p in ipairs({%(percentiles)s}) do print("latency " .. latency:percentile(p)) end
end
"""


def require() -> None:
    """VoidError when there is no wrk."""
    if shutil.which("wrk") is None:
        raise VoidError("wrk is missing: apt-get install wrk")


async def wrk(url: str, script: str, seconds: float, *, status: int) -> Work:
    """What `script` (Lua, which sets `request`) asks for. VoidError when anything was not answered with `status`."""
    percentiles = ", ".join(map(str, PERCENTILES))
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script + _TOLD % {"status": status, "percentiles": percentiles})
        file.flush()
        process = await asyncio.create_subprocess_exec(
            *("wrk", "-t1", f"-c{CONNECTIONS}", f"-d{_FOREVER}", "-s", file.name, url),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        told = asyncio.ensure_future(process.communicate())
        try:
            await asyncio.wait((told,), timeout=seconds)
            if process.returncode is None:
                process.send_signal(signal.SIGINT)
            output = (await asyncio.wait_for(told, _SETTLED_SECONDS))[0].decode()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    counted = re.search(r"^counted (\d+) (\d+)$", output, re.MULTILINE)
    if process.returncode or counted is None or "Socket errors" in output:
        raise VoidError(f"{url}: {output}")
    latencies = tuple(float(found) / 1000 for found in re.findall(r"^latency ([\d.e+]+)$", output, re.MULTILINE))
    return Work(int(counted[1]), int(counted[2]) / 1e6, latencies)
