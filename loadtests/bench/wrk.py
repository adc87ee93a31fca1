"""`wrk`, the load generator: a closed loop of CONNECTIONS connections in one thread."""

import asyncio
import re
import shutil
import signal
import tempfile
from asyncio.subprocess import Process
from typing import Final

from loadtests.bench.measure import PERCENTILES, VoidError, Work

CONNECTIONS: Final = 16
_FOREVER: Final = "3600s"  # its own -d knows whole seconds only; it is ended from here
_COUNT_MIN: Final = 20  # answers that a turn waits for, however short it is
_PATIENCE_SECONDS: Final = 30.0  # for these, and for its end
_ENOUGH: Final = "enough"

_TOLD: Final = """
local answered = 0
response = function(status)
  if status ~= %(status)d then print("unexpected status " .. status) os.exit(1) end
  answered = answered + 1
  if answered == %(least)d then print("%(enough)s") io.flush() end
end
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
    """What `script` (Lua, which sets `request`) asks for. VoidError when anything was not answered with `status`.

    Those under way at the end are not counted, though they were asked for.
    """
    told = {"status": status, "least": _COUNT_MIN, "enough": _ENOUGH, "percentiles": ", ".join(map(str, PERCENTILES))}
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script + _TOLD % told)
        file.flush()
        process = await asyncio.create_subprocess_exec(
            *("wrk", "-t1", f"-c{CONNECTIONS}", f"-d{_FOREVER}", f"--timeout={_PATIENCE_SECONDS:.0f}s"),
            *("-s", file.name, url),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(seconds + _PATIENCE_SECONDS):
                output = await _ended(process, seconds)
        except TimeoutError as error:
            raise VoidError(f"{url}: not {_COUNT_MIN} answers in {seconds + _PATIENCE_SECONDS:.0f} s") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    counted = re.search(r"^counted (\d+) (\d+)$", output, re.MULTILINE)
    if process.returncode or counted is None or "Socket errors" in output:
        raise VoidError(f"{url}: {output}")
    latencies = tuple(float(found) / 1000 for found in re.findall(r"^latency ([\d.e+]+)$", output, re.MULTILINE))
    return Work(int(counted[1]), int(counted[2]) / 1e6, latencies)


async def _ended(process: Process, seconds: float) -> str:
    """What it has said, once it was ended after so many seconds and enough answers."""
    if process.stdout is None:
        raise AssertionError("it was asked for")
    ends_at, said = asyncio.get_running_loop().time() + seconds, ""
    async for line in process.stdout:
        said += line.decode()
        if line.decode().strip() == _ENOUGH:
            await asyncio.sleep(ends_at - asyncio.get_running_loop().time())
            process.send_signal(signal.SIGINT)
    await process.wait()
    return said
