"""A load on one route of a service, from a process of its own: as fast as answers come, or at a given rate.

At a rate, a request's time runs from when it was to be sent, not from when a connection was free: who waits in line
counts.
"""

import argparse
import asyncio
import json
import time
from pathlib import Path

_HEAD = "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n\r\n"


def main() -> None:
    """Load a route and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("bodies", type=Path, help="JSON list of bodies, sent by turns")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=float, help="requests a second; without, as fast as answers come")
    options = parser.parse_args()
    print(json.dumps(asyncio.run(_load(options))))


async def _load(options: argparse.Namespace) -> dict[str, float]:
    bodies = [json.dumps(each).encode() for each in json.loads(options.bodies.read_text())]
    requests = [_HEAD.format(path=options.path, size=len(body)).encode() + body for body in bodies]
    seconds: list[float] = []
    failed = [0]
    start = time.perf_counter() + 0.1
    ready = [0]  # of the requests that were sent

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", options.port)
        while True:
            number = ready[0]
            ready[0] += 1
            due = start + number / options.rate if options.rate else time.perf_counter()
            if due > start + options.seconds:
                break
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            writer.write(requests[number % len(requests)])
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            failed[0] += not head.startswith(b"HTTP/1.1 200")
            seconds.append(time.perf_counter() - due)
        writer.close()

    await asyncio.gather(*[client() for _ in range(options.connections)])
    took, ordered = time.perf_counter() - start, sorted(seconds)
    return {
        "requests": len(ordered),
        "failed": failed[0],
        "per_second": len(ordered) / took,
        "median_milliseconds": 1000 * ordered[len(ordered) // 2],
        "p99_milliseconds": 1000 * ordered[int(0.99 * len(ordered))],
    }


if __name__ == "__main__":
    main()
