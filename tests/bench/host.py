"""The host tests beside their peers: alternating runs, medians, ratios. Called by host.sh."""

import argparse
import datetime
import os
import platform
import re
import statistics
import subprocess
import sys

PEER_GEMM = """
import sys, time, numpy as np
n, kind, rounds = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
draw = np.random.default_rng(1)
a, b = (draw.integers(-100, 100, (n, n)).astype(kind) for _ in range(2))
c = np.matmul(a, b)
for _ in range(rounds):
    start = time.perf_counter(); np.matmul(a, b, out=c); took = time.perf_counter() - start
    print(f"numpy {2 * n**3 / took / 1e9:.2f} GFLOP/s")
"""

raw = []


def run(command, pattern, **env):
    """Every number that `pattern` finds in what the command prints; all of it goes to the raw file."""
    setting = " ".join(f"{k}={v}" for k, v in env.items())
    shown = [os.path.basename(command[0])] + [word if "\n" not in word else "<PEER_GEMM of host.py>" for word in command[1:]]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env}, timeout=300)
    text = done.stdout + done.stderr
    raw.append(f"$ {setting} {' '.join(shown)}".replace("$  ", "$ ") + "\n" + text)
    numbers = [float(number) for number in re.findall(pattern, text)]
    if done.returncode != 0 or not numbers:
        sys.exit(f"host.py: no number from {' '.join(shown)} (exit {done.returncode}):\n{text[-2000:]}")
    return numbers


class Series:
    """Medians of runs: what a run gives is the median of its rounds."""

    def __init__(self):
        self.runs = []
        self.best = 0.0

    def add(self, numbers):
        # The first round of a run finds cold caches and unmapped pages.
        self.best = max(self.best, *numbers)
        self.runs.append(statistics.median(numbers[1:] or numbers))

    def median(self):
        return statistics.median(self.runs)

    def noise(self):
        """Largest distance of a run from the median, percent."""
        return 100 * max(abs(r - self.median()) for r in self.runs) / self.median()


def main():
    args = argparse.ArgumentParser()
    for name in ("--ours", "--stream", "--out"):
        args.add_argument(name, required=True)
    args.add_argument("--rounds", type=int, default=7)
    args = args.parse_args()
    cores = len(os.sched_getaffinity(0))
    threads = sorted({1, cores})
    load = os.getloadavg()[0]

    rows, series = [], {}

    def alternate(name, unit, ours, peers):
        mine, others = Series(), {peer: Series() for peer in peers}
        for _ in range(args.rounds):
            mine.add(ours())
            for peer, command in peers.items():
                others[peer].add(command())
        series[name] = mine
        for peer, other in others.items():
            rows.append((name, unit, mine, peer, other))
            print(f"{name}: {mine.median():.1f} {unit}, {peer} {other.median():.1f}, "
                  f"ratio {mine.median() / other.median():.2f}, of the best rounds {mine.best / other.best:.2f}", flush=True)

    for kind, dtype in (("fp64", "float64"), ("fp32", "float32")):
        for n in (1024,) if kind == "fp32" else (1024, 2048):
            for count in threads:
                ours = lambda: run([args.ours, "gemm", kind, str(n), str(count), "12"], r"verified=([\d.]+)")
                numpy = lambda: run([sys.executable, "-c", PEER_GEMM, str(n), dtype, "12"], r"numpy ([\d.]+)",
                                    OPENBLAS_NUM_THREADS=str(count))
                alternate(f"GEMM {kind} {n}x{n}x{n}, {count} thread(s), every element verified", "GFLOP/s", ours,
                          {"numpy / OpenBLAS": numpy})

    for count in threads:
        # Both hold 512 MiB for each thread.
        ours = lambda: run([args.ours, "dram", "512", str(count), "6"], r"pattern=([\d.]+)")
        stream = lambda: run([args.stream, "256", str(count), "6"], r"copy ([\d.]+)")
        alternate(f"DRAM pattern pass, {count} thread(s), written + read and verified", "GB/s", ours,
                  {"STREAM copy (gcc -O3 -march=native), read + written": stream})

    # stressapptest counts a copied byte twice (read and written) and checks it as it is read; MB are 2^20.
    ours = lambda: run([args.ours, "dram", "512", str(cores), "6"], r"verified=([\d.]+)")
    sat = lambda: [n / 2 * 1.048576 / 1000 for n in
                   run(["stressapptest", "-s", "5", "-M", str(512 * cores), "-m", str(cores)],
                       r"Memory Copy: [\d.]+M at ([\d.]+)MB/s")]
    alternate(f"DRAM bytes verified, {cores} thread(s)", "GB/s", ours, {"stressapptest": sat})

    # One bogo operation of this method is one product of two matrices of floats.
    n = 256
    ours = lambda: run([args.ours, "gemm", "fp32", str(n), "1", "40"], r"verified=([\d.]+)")
    ng = lambda: [ops * 2 * n**3 / 1e9 for ops in
                  run(["stress-ng", "--matrix", "1", "--matrix-method", "prod", "--matrix-size", str(n), "--verify",
                       "-t", "5", "--metrics"], r"matrix\s+([\d.]+) prod matrix ops")]
    alternate(f"CPU matrix product fp32 {n}x{n}x{n}, 1 thread, verified", "GFLOP/s", ours, {"stress-ng --verify": ng})

    facts = run([sys.executable, "-c", "import numpy, threadpoolctl as t; i = t.threadpool_info()[0]; "
                 "print(numpy.__version__, 'OpenBLAS', i['version'], 'kernel', i['architecture'], 1)"], r"(1)$") and raw[-1]
    cpu = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
               platform.processor())
    date = datetime.date.today().isoformat()
    base = os.path.join(args.out, f"host-{date}")
    os.makedirs(args.out, exist_ok=True)
    with open(base + ".txt", "w") as out:
        out.write("\n".join(raw))
    with open(base + ".md", "w") as out:
        out.write(f"# Host tests beside their peers, {date}\n\n")
        out.write(f"Command: `tests/bench/host.sh {args.rounds}`. Raw output of every run: `host-{date}.txt`.\n\n")
        out.write(f"Machine: {cpu}, {cores} logical CPUs, {platform.system()} {platform.release()}; load average when it "
                  f"began: {load:.2f}. numpy {facts.splitlines()[1].rsplit(' ', 1)[0]}.\n\n")
        out.write(f"Runs of ours and of the peer in turns, {args.rounds} each; a run gives the median of its rounds, the table the "
                  "median of the runs. Noise: the run farthest from that median. The ratio is ours / peer; more is better. Where "
                  "other work shares the machine the best round of each is the better measure, so its ratio stands beside.\n\n")
        out.write("| what | ours | noise | peer | its result | noise | ratio | best rounds | ratio |\n|---|---|---|---|---|---|---|---|---|\n")
        for name, unit, mine, peer, other in rows:
            out.write(f"| {name} | {mine.median():.1f} {unit} | {mine.noise():.0f} % | {peer} | {other.median():.1f} {unit} | "
                      f"{other.noise():.0f} % | **{mine.median() / other.median():.2f}** | {mine.best:.1f} / {other.best:.1f} | "
                      f"**{mine.best / other.best:.2f}** |\n")
        out.write("\nWhat the peers do: OpenBLAS and STREAM verify nothing. stressapptest verifies by checksum while it copies (its "
                  "rate counts a byte twice; here once). stress-ng's product is a "
                  "plain triple loop: the same work asked of the core, not the same code.\n")
    print(f"written: {base}.md, {base}.txt")


main()
