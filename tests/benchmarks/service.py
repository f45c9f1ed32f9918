"""What the service costs and stands: sliders, page, memory, load, kills.

    python -m tests.benchmarks.service [--quick] [--seed N] [--part NAME ...] [--kept]

Parts are kept in the result one by one. The run that is asked is of SmolLM2-135M's 30 layers, searched with the default
numbers of pairs on short texts, in runs/benchmark-service; jobs that are killed are of stories260K. Browser and service
share the two cores, and so do load and service.

| part | figure | meaning |
| --- | --- | --- |
| page | `page_seconds` | from opening a run's page to its sliders answering, median of 5 fresh browsers |
| page | `slider_milliseconds` | from a key on a slider to the new prediction on the screen, median of 100 |
| memory | `server_mebibytes` | proportional set size of web process and worker, idle, and after predictions |
| load | `predict_requests_per_second` | single architectures, all different, 16 connections |
| load | `predict_p99_milliseconds` | at 500 a second, from when a request was due |
| load | `predict_architectures_per_second` | in batches of 1,000 as arrays of genes in JSON |
| kills | `kills_survived` | of 20 at random moments, of web process, worker or job; all jobs end with the pairs of an |
| | | undisturbed one, none twice |
| kills | `jobs_at_once` | of 50 queued at once that finish |
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
import psutil

from search.config import parse_config
from search.folder import RunFolder
from search.progress import Reporter
from search.run import run_search
from space import genes_of, sample
from tests.benchmarks.record import DATA, RESULTS, ROOT, finish

HOME = ROOT / "runs" / "benchmark-service"
SHORT = {"sequence_length": 128, "calibrate": 32, "search": 4, "validate": 4, "report_sequences": 8}
ASKED = {
    "model": "smollm2-135m",
    "budget": ["parameters=0.8"],
    "text": {"source": str(DATA / "text" / "c4.jsonl"), **SHORT},
}
PARTS = ("page", "memory", "load", "kills")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
]


def main() -> None:
    """Measure the parts that are missing, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small run and few kills, not recorded")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", action="append", choices=PARTS, help="which, measured anew; those that miss without")
    parser.add_argument("--kept", action="store_true", help="measure nothing: the figures of what is there")
    options = parser.parse_args()
    file = RESULTS / "service.json"
    kept = {} if options.quick or not file.exists() else json.loads(file.read_text())["parts"]
    measures: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
        "page": _page, "memory": _memory, "load": _load, "kills": _kills,
    }  # fmt: skip
    for part in () if options.kept else options.part or [each for each in PARTS if each not in kept]:
        kept[part] = {**measures[part](options), "load_average_before": os.getloadavg()[0]}
        print(f"{part}: {json.dumps(kept[part])}", flush=True)
        finish("service", _figures(kept), {"seed": options.seed, "parts": kept}, options.quick)
    finish("service", _figures(kept), {"seed": options.seed, "parts": kept}, options.quick or options.kept)


def _figures(parts: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of the parts that there are."""
    names = (
        "page_seconds", "slider_milliseconds", "server_mebibytes", "predict_requests_per_second",
        "predict_p99_milliseconds", "predict_architectures_per_second", "kills_survived", "jobs_at_once",
    )  # fmt: skip
    return {name: part[name] for name in names for part in parts.values() if name in part}


def _asked_run(quick: bool) -> RunFolder:
    """Return the run that is asked, searched now or before."""
    if quick:
        values = {**ASKED, "model": str(DATA / "models" / "stories260K"), "budget": ["parameters=0.7"]}
        values["search"] = {"rounds": 1, "random_pairs": 10, "profile_pairs": 8, "guided_pairs": 8}
    else:
        values = ASKED
    run = RunFolder(HOME / ("quick" if quick else "runs") / "asked")
    run_search(parse_config(values), run.path, Reporter())
    return run


@contextlib.contextmanager
def _served(runs: Path, slots: int = 1, wait: bool = True) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Yield the address and the process of a service."""
    command = [sys.executable, "-m", "search.cli", "serve", f"--runs={runs}", "--port=0", f"--slots={slots}"]
    command += [f"--models={DATA / 'models'}", f"--data={DATA}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+:\d+", process.stdout.readline())
        assert found is not None, "the service did not start"
        while wait:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{found.group()}/healthz", timeout=30).status_code == 200:
                    break
            time.sleep(0.05)
        yield found.group(), process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


def _page(options: argparse.Namespace) -> dict[str, Any]:
    """Time a run's page in a real browser."""
    from playwright.sync_api import sync_playwright

    run = _asked_run(options.quick)
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    opened, moved = [], []
    with _served(run.path.parent) as (address, _), sync_playwright() as playwright:
        for visit in range(5):
            browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            started = time.perf_counter()
            page.goto(f"{address}/runs/asked", wait_until="commit")
            page.wait_for_selector("#predicted dd")
            opened.append(time.perf_counter() - started)
            if visit == 4:
                page.wait_for_timeout(3000)
                moved = [_move(page, key) for key in 10 * (["ArrowDown"] * 5 + ["ArrowUp"] * 5)]
            browser.close()
    return {
        "page_seconds": round(median(opened), 3),
        "page_seconds_all": [round(each, 3) for each in opened],
        "slider_milliseconds": round(median(moved), 1),
        "slider_milliseconds_p95": round(sorted(moved)[int(0.95 * len(moved))], 1),
        "layers": run.layout().layers,
    }


def _move(page: Any, key: str) -> float:
    """Return the milliseconds from a key on a slider until the next frame after the new prediction is in the page."""
    page.evaluate(
        """() => {
            const slider = document.querySelector('[aria-label="Layer 3, MLP width"]');
            slider.focus();
            window.moved = new Promise((done) => {
                slider.addEventListener('input', () => {
                    const begun = performance.now();
                    document.addEventListener('predicted', () => requestAnimationFrame(() =>
                        requestAnimationFrame(() => done(performance.now() - begun))), {once: true});
                }, {once: true, capture: true});
            });
        }"""
    )
    page.keyboard.press(key)
    found: float = page.evaluate("() => window.moved")
    page.wait_for_timeout(450)  # so that what follows a stop is over
    return found


def _memory(options: argparse.Namespace) -> dict[str, Any]:
    """Weigh web process and worker."""
    run = _asked_run(options.quick)
    with _served(run.path.parent) as (address, process):
        time.sleep(3)
        idle = _mebibytes(process.pid)
        httpx.post(f"{address}/api/runs/asked/predict", json={}, timeout=60)
        httpx.get(f"{address}/api/runs/asked/figures", timeout=60)
        httpx.get(f"{address}/runs/asked", timeout=60)
        asked = _mebibytes(process.pid)
    return {"server_mebibytes": round(sum(idle.values()), 1), "idle": idle, "after_predictions": asked}


def _mebibytes(pid: int) -> dict[str, float]:
    web = psutil.Process(pid)
    own = {"web": web, **{f"worker {place}": each for place, each in enumerate(web.children())}}
    return {name: round(each.memory_full_info().pss / 2**20, 1) for name, each in own.items()}


def _load(options: argparse.Namespace) -> dict[str, Any]:
    """Load /predict from another process."""
    run = _asked_run(options.quick)
    space, rng = run.search_space(), np.random.default_rng(options.seed)
    drawn = genes_of(space.decode(sample(space, 1000, rng)))
    with _served(run.path.parent) as (address, _), tempfile.TemporaryDirectory() as scratch:
        port, path = int(address.rsplit(":", 1)[1]), "/api/runs/asked/predict"
        singles, batches = Path(scratch) / "singles.json", Path(scratch) / "batches.json"
        singles.write_text(json.dumps([{"genes": [each.tolist()], "targets": ["kl"]} for each in drawn]))
        batches.write_text(json.dumps([{"genes": drawn.tolist(), "targets": ["kl"]}]))

        def load(bodies: Path, *more: str) -> dict[str, float]:
            command = [sys.executable, "-m", "tests.benchmarks.service_load", str(port), path, str(bodies), *more]
            out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
            found: dict[str, float] = json.loads(out)
            assert not found["failed"], found
            return found

        load(singles, "--seconds=3")
        most = load(singles)
        half = load(singles, "--rate=500")
        batch = load(batches, "--connections=2")
    return {
        "predict_requests_per_second": round(most["per_second"]),
        "predict_p99_milliseconds": round(half["p99_milliseconds"], 1),
        "predict_architectures_per_second": round(1000 * batch["per_second"]),
        "at_most": most,
        "at_500_a_second": half,
        "batches_of_1000": batch,
    }


def _kills(options: argparse.Namespace) -> dict[str, Any]:
    """Kill what works on jobs at random moments, and see what comes of them."""
    rng = random.Random(options.seed)
    kills, waiting = (2, 4) if options.quick else (20, 50)
    settings = {
        "model": "stories260K",
        "budget": ["parameters=0.7"],
        "text": {**SHORT, "source": "text/tinystories.txt", "sequence_length": 64},
        "search": {"rounds": 1, "random_pairs": 10, "profile_pairs": 8, "guided_pairs": 8},
    }
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        values = {**settings, "model": str(DATA / "models" / "stories260K")}
        values["text"] = {**settings["text"], "source": str(DATA / "text" / "tinystories.txt")}
        run_search(parse_config(values), runs / "undisturbed")
        expected, done, killed = _pairs(runs / "undisturbed"), 0, []
        while len(killed) < kills:
            name = f"job-{done}"
            _submit_and_kill(runs, name, settings, rng, kills, killed)
            same = _pairs(runs / name) == expected
            print(f"{len(killed)} kills; {name}: {'the same pairs' if same else 'OTHER pairs'}", flush=True)
            killed = [(what, same if job == name else well, job) for what, well, job in killed]
            done += 1
        finished = _many(runs, settings, waiting)
    return {
        "kills_survived": sum(well for _, well, _ in killed),
        "kills": len(killed),
        "of": {what: sum(each == what for each, _, _ in killed) for what in ("web", "worker", "job")},
        "jobs": done,
        "jobs_at_once": finished,
        "queued_at_once": waiting,
    }


def _submit_and_kill(
    runs: Path, name: str, settings: dict[str, Any], rng: random.Random, most: int, killed: list[tuple[str, bool, str]]
) -> None:
    """Work on one job until it is finished, killing something every few seconds while there are kills left."""
    with contextlib.ExitStack() as stack:
        address, process = stack.enter_context(_served(runs))
        asked = {"kind": "run", "name": name, "settings": settings}
        httpx.post(f"{address}/api/jobs", json=asked, headers={"Idempotency-Key": name}, timeout=60).raise_for_status()
        while True:
            wait = rng.uniform(0.5, 20.0)  # a job takes six seconds to begin, and fifteen to end
            end = time.monotonic() + wait
            while time.monotonic() < end:
                state = httpx.get(f"{address}/api/jobs/{name}", timeout=60).json()["state"]
                if state not in ("queued", "running"):
                    assert state == "succeeded", state
                    return
                time.sleep(0.05)
            if len(killed) == most:
                continue
            what = rng.choice(["web", "worker", "job"])
            try:
                web = psutil.Process(process.pid)
                victims = {"web": [web], "worker": web.children()}
                victims["job"] = [child for worker in web.children() for child in worker.children()]
                if not victims[what]:
                    continue
                rng.choice(victims[what]).kill()
            except psutil.NoSuchProcess:  # it has just ended by itself
                continue
            killed.append((what, False, name))
            if what == "web":
                process.wait()
                address, process = stack.enter_context(_served(runs))


def _pairs(run: Path) -> list[tuple[Any, ...]]:
    """Return what a run measured, without times."""
    with contextlib.closing(sqlite3.connect(run / "measurements.db")) as connection:
        return connection.execute("SELECT fingerprint, protocol, kl, nll, origin FROM pairs ORDER BY id").fetchall()


def _many(runs: Path, settings: dict[str, Any], count: int) -> int:
    """Queue many searches at once and return how many finish."""
    with _served(runs, slots=2) as (address, _):
        asked = [{"kind": "run", "name": f"many-{place}", "settings": settings} for place in range(count)]
        told = [httpx.post(f"{address}/api/jobs", json=each, timeout=60).json()["id"] for each in asked]
        while any(each["state"] in ("queued", "running") for each in _jobs(address)):
            time.sleep(1)
        return sum(each["state"] == "succeeded" for each in _jobs(address) if each["id"] in told)


def _jobs(address: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.get(f"{address}/api/jobs?limit=1000", timeout=60).json()
    return found


if __name__ == "__main__":
    main()
