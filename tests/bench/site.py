#!/usr/bin/env python3
"""The operator under load, on a real apiserver, with simulated agents that speak the real protocol.

    site.py BIN KUBE OUT.jsonl [BLADES ...]

BIN: folder with whetstone-operator, whet-fleet and examples/bare_patches (release builds). KUBE: folder with whet-local and kubectl.
For each number of blades (default 500 5000): a fresh control plane, one tranche, every blade accepted; then a while at
rest, without evidence and with a real agent's readings; then a fault on 1,000 blades (or a fifth, if there are fewer) at once:
first with the circuit breaker, then past it; then at rest with a tenth of the connections, again without and with readings; then
as much evidence as the operator takes; then as many nodes patched by a client that does nothing else.
One JSON object for each measurement goes to OUT.jsonl. Everything is on loopback and ends by itself.
"""

import base64
import http.client
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

BIN, KUBE, OUT = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
SIZES = [int(n) for n in sys.argv[4:]] or [500, 5000]
INSTANCE = "5"
INTAKE, HTTP = 27801, 27802
# As the operator asks agents to report in production.
INTERVAL_S = 10
# How long the site is watched at rest.
REST_S = 40
# What a real agent with 8 GPUs has each minute (docs/agent.md).
READINGS = 24
# Full reports, one after the other, of so many agents for so long.
FLOOD_AGENTS, FLOOD_S = 100, 30
# The projection's site: blades, and connections as the operator keeps them by default.
LARGE, LARGE_CONNECTIONS = 100_000, 20_000
# Serials in one call for tokens.
CHUNK = 1000


def log(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def run(*args, **kwargs):
    return subprocess.run([str(a) for a in args], check=True, **kwargs)


class Api:
    """The apiserver, with the administrator's certificate."""

    def __init__(self, kubeconfig, folder):
        text = Path(kubeconfig).read_text()
        field = lambda name: re.search(rf'"?{name}"?:\s*"?([^"\s,]+)', text).group(1)
        self.host, self.port = re.search(r"https://([^:/]+):(\d+)", field("server")).groups()
        files = {}
        for key in ("certificate-authority-data", "client-certificate-data", "client-key-data"):
            files[key] = folder / key
            files[key].write_bytes(base64.b64decode(field(key)))
        self.tls = ssl.create_default_context(cafile=str(files["certificate-authority-data"]))
        self.tls.load_cert_chain(files["client-certificate-data"], files["client-key-data"])

    def connect(self):
        return http.client.HTTPSConnection(self.host, int(self.port), context=self.tls, timeout=60)

    def call(self, connection, method, path, body=None, kind="application/json"):
        connection.request(method, path, body=None if body is None else json.dumps(body), headers={"content-type": kind})
        answer = connection.getresponse()
        data = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {data[:300]}")
        return json.loads(data)

    def create_all(self, path, objects, threads=8):
        parts = [objects[i::threads] for i in range(threads)]
        failed = []

        def work(part):
            try:
                connection = self.connect()
                for item in part:
                    self.call(connection, "POST", path, item)
            except Exception as error:  # said below, in the thread that asked
                failed.append(error)

        workers = [threading.Thread(target=work, args=(part,)) for part in parts]
        [w.start() for w in workers]
        [w.join() for w in workers]
        if failed:
            raise failed[0]


class NodeWatch:
    """When each node came to carry our taint and cordon for a fault, by a watch on the apiserver. First the taint says that the
    blade is being drained, for pods may be on it; when it is empty, `fault`."""

    def __init__(self, api, version):
        self.at, self.stop, self.api, self.version = {}, False, api, version
        self.begin()
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def begin(self):
        self.connection = self.api.connect()
        self.connection.request("GET", f"/api/v1/nodes?watch=true&resourceVersion={self.version}&timeoutSeconds=600")
        self.answer = self.connection.getresponse()

    def read(self):
        try:
            while not self.stop:
                # An apiserver that has much to do may end a watch that reads too slowly: it goes on where it was.
                ended = "the apiserver ended the watch of nodes"
                try:
                    for line in self.answer:
                        self.note(json.loads(line)["object"])
                except TimeoutError:
                    ended = "no node was written for a while"
                if not self.stop:
                    log(f"{ended}, {len(self.at)} withheld by then; the watch goes on there")
                    self.begin()
        except Exception:
            if not self.stop:
                raise

    def note(self, node):
        if "name" not in node.get("metadata", {}):
            raise RuntimeError(f"watch of nodes: {node}")
        self.version = node["metadata"]["resourceVersion"]
        if self.withheld(node):
            self.at.setdefault(node["metadata"]["name"], time.monotonic())

    @staticmethod
    def withheld(node):
        taints = node.get("spec", {}).get("taints", [])
        ours = any(t["key"] == "whetstone.dev/withheld" and t.get("value") in ("draining", "fault") for t in taints)
        return ours and node["spec"].get("unschedulable", False)

    def wait(self, names, limit_s):
        """Until all of these are withheld. Where they are not, what the apiserver itself says of them: the watch may have
        missed what is there."""
        try:
            wait("all bad blades withheld", lambda: len(self.at) >= len(names), limit_s)
        except RuntimeError as error:
            nodes = {node["metadata"]["name"]: node for node in self.api.call(self.api.connect(), "GET", "/api/v1/nodes")["items"]}
            unseen = [name for name in names if name not in self.at]
            open_ = [name for name in unseen if not self.withheld(nodes[name])]
            raise RuntimeError(f"{error}; the watch saw not {unseen[:5]} ({len(unseen)}), open are {open_[:5]} ({len(open_)})")

    def end(self):
        self.stop = True
        self.connection.sock and self.connection.sock.close()


def process(pid):
    """Resident bytes and CPU seconds."""
    status = Path(f"/proc/{pid}/status").read_text()
    stat = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    resident = int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) * 1024
    return resident, (int(stat[11]) + int(stat[12])) / 100


def cpu_by_name(folder, pids):
    """CPU seconds so far of each of our processes and of the control plane's, by the program's name."""
    seconds = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            line = (entry / "cmdline").read_text().split("\0")
            if str(folder) in " ".join(line) or int(entry.name) in pids:
                name = Path(line[0]).name
                seconds[name] = seconds.get(name, 0) + process(entry.name)[1]
        except (OSError, AttributeError):  # it ended meanwhile
            pass
    return seconds


def metrics():
    connection = http.client.HTTPConnection("127.0.0.1", HTTP, timeout=10)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    return {m.group(1): float(m.group(2)) for m in re.finditer(r"^(whetstone_\S+) (\S+)$", text, re.M)}


def requests(api):
    """Requests that the apiserver has answered, by kind; watches left out."""
    connection = api.connect()
    connection.request("GET", "/metrics")
    counts = {}
    for line in connection.getresponse().read().decode().splitlines():
        found = re.match(r"apiserver_request_total{(.*)} (\S+)$", line)
        if found:
            label = dict(re.findall(r'(\w+)="([^"]*)"', found.group(1)))
            kind = f"{label['verb']} {label['resource']}" + (f"/{label['subresource']}" if label["subresource"] else "")
            if label["resource"] and label["verb"] != "WATCH":
                counts[kind] = counts.get(kind, 0) + float(found.group(2))
    return counts


def difference(after, before, digits=0):
    moved = {name: round(after[name] - before.get(name, 0), digits) for name in after}
    return {name: count for name, count in sorted(moved.items()) if count}


def quiet(api, per_second):
    """Waits until the apiserver has nothing left of what came before."""

    def calm():
        before = sum(requests(api).values())
        time.sleep(2)
        return sum(requests(api).values()) - before < 2 * per_second

    wait("a quiet apiserver", calm, 300)


def quantile(sorted_values, part):
    return sorted_values[min(len(sorted_values) - 1, int(part * len(sorted_values)))]


def wait(what, condition, limit_s):
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > limit_s:
            raise RuntimeError(f"{what}: not after {limit_s} s")
        time.sleep(0.2)
    return time.monotonic() - begun


def projection(many, few):
    """Memory with 100,000 blades, from two rows at rest with readings: one with a connection for each agent, one with few. What
    they differ by counts as their connections' (what joins and burn-ins left behind is in it, so it is rather too much); what is
    left of the second one grows with the blades."""
    fewer = many["connections"] - few["connections"]
    connection = max(0, many["resident_bytes"] - few["resident_bytes"]) / fewer if fewer > 0 else 0
    blade = (few["resident_bytes"] - few["empty_bytes"] - few["connections"] * connection) / few["blades"]
    total = few["empty_bytes"] + LARGE * blade + LARGE_CONNECTIONS * connection
    return dict(what="projection", rests_on=[many["what"], few["what"]], measured_blades=few["blades"], blades=LARGE,
                connections=LARGE_CONNECTIONS, bytes_per_connection=round(connection), bytes_per_blade=round(blade),
                resident_bytes=round(total))


def measure(blades, folder, put):
    log(f"{blades} blades: control plane")
    cluster = folder / "cluster"
    run(KUBE / "whet-local", "up", "--dir", cluster, "--instance", INSTANCE, "--nodes", "0", stdout=subprocess.DEVNULL)
    children = []
    try:
        kubeconfig = cluster / "admin.kubeconfig"
        crds = Path(__file__).resolve().parents[2] / "deploy/crds"
        kubectl = [KUBE / "kubectl", "--kubeconfig", kubeconfig]
        run(*kubectl, "apply", "-f", crds, stdout=subprocess.DEVNULL)
        run(*kubectl, "wait", "--for=condition=Established", "crd", "--all", stdout=subprocess.DEVNULL)
        api = Api(kubeconfig, folder)

        def ready():
            try:
                connection = http.client.HTTPConnection("127.0.0.1", HTTP, timeout=2)
                connection.request("GET", "/readyz")
                return connection.getresponse().status == 200
            except OSError:
                return False

        def start_operator(*more):
            child = subprocess.Popen(
                [str(a) for a in [
                    BIN / "whetstone-operator", "run", "--store", f"sqlite:{folder}/store.db?mode=rwc",
                    "--pki-dir", folder / "pki", "--pki-create", "--kubeconfig", kubeconfig,
                    "--listen", f"127.0.0.1:{INTAKE}", "--http", f"127.0.0.1:{HTTP}",
                    "--server-name", "localhost", "--report-interval", f"{INTERVAL_S}s", *more]],
                stderr=open(folder / "operator.log", "a"))
            children.append(child)
            wait("operator", ready, 60)
            return child

        operator = start_operator()
        empty, _ = process(operator.pid)
        names = [f"b-{i:05}" for i in range(blades)]
        expected = [{"serial": f"S{i:05}", "name": names[i], "rack": f"r-{i // 16:04}", "sku": "hgx-h100"} for i in range(blades)]
        api.create_all("/api/v1/nodes", [
            {"apiVersion": "v1", "kind": "Node", "metadata": {"name": n},
             "spec": {"taints": [{"key": "whetstone.dev/withheld", "value": "unproven", "effect": "NoSchedule"}]}} for n in names])
        connection = api.connect()
        api.call(connection, "POST", "/apis/whetstone.dev/v1alpha1/tranches", {
            "apiVersion": "whetstone.dev/v1alpha1", "kind": "Tranche", "metadata": {"name": "t-01"},
            "spec": {"suite": "quick", "concurrency": 5000, "blades": expected, "fpr": 0.000001}})
        wait("all blades expected", lambda: metrics().get('whetstone_blades{phase="Expected"}') == blades, 300)

        run(BIN / "whetstone-operator", "pki", "ops-cert", "--pki-dir", folder / "pki", "--user", "bench",
            "--url", f"https://localhost:{INTAKE}", "--out", folder / "ops")
        ops_tls = ssl.create_default_context(cafile=str(folder / "ops/ca.crt"))
        ops_tls.load_cert_chain(folder / "ops/tls.crt", folder / "ops/tls.key")

        def ops(method, path, body):
            connection = http.client.HTTPSConnection("localhost", INTAKE, context=ops_tls, timeout=60)
            connection.request(method, path, body=json.dumps(body), headers={"content-type": "application/json"})
            answer = connection.getresponse()
            data = answer.read()
            if answer.status >= 300:
                raise RuntimeError(f"{method} {path}: {answer.status} {data[:300]}")
            return json.loads(data or b"null")

        with open(folder / "tokens.csv", "w") as tokens:
            tokens.write("serial,token\n")
            serials = [e["serial"] for e in expected]
            for i in range(0, blades, CHUNK):
                for row in ops("POST", "/v1/ops/tokens", {"serials": serials[i:i + CHUNK], "ttl_s": 3600}):
                    tokens.write(f"{row['serial']},{row['token']}\n")
        begun = time.monotonic()
        fleet = subprocess.Popen(
            [str(a) for a in [BIN / "whet-fleet", "--operator", f"127.0.0.1:{INTAKE}", "--ca", folder / "pki/ca.crt",
                              "--tokens", folder / "tokens.csv", "--run-ms", "200"]],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=open(folder / "fleet.log", "w"), text=True)
        children.append(fleet)

        def tell(text):
            fleet.stdin.write(text + "\n")
            fleet.stdin.flush()
            return json.loads(fleet.stdout.readline())

        accepted = lambda: metrics().get('whetstone_blades{phase="Ready"}') == blades
        wait("all blades accepted", accepted, 1200)
        put(what="accepted", blades=blades, seconds=round(time.monotonic() - begun, 1))
        log(f"{blades} blades: accepted after {time.monotonic() - begun:.0f} s; at rest")

        def at_rest(what, readings=0):
            tell(f"readings {readings}")
            time.sleep(20)
            before, (_, cpu_before), at = tell("stats"), process(operator.pid), time.monotonic()
            time.sleep(REST_S)
            after, (resident, cpu_after), now = tell("stats"), process(operator.pid), time.monotonic()
            tell("readings 0")
            seconds = now - at
            row = dict(
                what=what, blades=blades, interval_s=INTERVAL_S, readings_per_minute=readings,
                resident_bytes=resident, empty_bytes=empty,
                bytes_per_blade=round((resident - empty) / blades), cpu_cores=round((cpu_after - cpu_before) / seconds, 4),
                cpu_ms_per_report=round(1000 * (cpu_after - cpu_before) / max(1, after["reports"] - before["reports"]), 3),
                reports_per_s=round((after["reports"] - before["reports"]) / seconds, 1),
                items_per_s=round((after["acked"] - before["acked"]) / seconds, 1),
                connections=metrics()["whetstone_intake_connections"])
            put(**row)
            return row

        at_rest("at_rest")
        many = at_rest("at_rest_readings", READINGS)

        bad = min(1000, blades // 5)
        version = api.call(api.connect(), "GET", "/api/v1/nodes?limit=1")["metadata"]["resourceVersion"]
        watch = NodeWatch(api, version)
        log(f"{blades} blades: {bad} turn bad, breaker in force")
        sent = time.monotonic()
        tell(f"fault {bad} xid-79")
        time.sleep(15)
        held = dict(watch.at)
        m = metrics()
        put(what="breaker", blades=blades, bad=bad, withheld=len(held), breaker_open=m.get("whetstone_breaker_open"),
            first_to_last_s=round(max(held.values()) - min(held.values()), 3) if held else None)
        log(f"{blades} blades: breaker let {len(held)} through; override")
        start = time.monotonic()
        ops("POST", "/v1/ops/breaker", {"override": True})
        watch.wait(names[:bad], 120)
        rest = sorted(t for n, t in watch.at.items() if n not in held)
        if rest:
            put(what="after_override", blades=blades, bad=len(rest), decision_to_last_s=round(rest[-1] - start, 3),
                blades_per_s=round(len(rest) / (rest[-1] - rest[0]), 1) if len(rest) > 1 else None)
        watch.end()

        # Again with the override in force from the start: from evidence to taint, nothing in between.
        log(f"{blades} blades: all well again")
        tell("clear")
        connection = api.connect()
        for name in names[:bad]:
            api.call(connection, "PATCH", f"/apis/whetstone.dev/v1alpha1/blades/{name}", {"spec": {"retest": 1}},
                     "application/merge-patch+json")
        wait("all blades accepted again", accepted, 600)
        log(f"{blades} blades: accepted again; {bad} turn bad, override in force")
        time.sleep(5)
        version = api.call(api.connect(), "GET", "/api/v1/nodes?limit=1")["metadata"]["resourceVersion"]
        watch = NodeWatch(api, version)
        quiet(api, 100)
        asked, before = requests(api), cpu_by_name(cluster, {operator.pid, fleet.pid, os.getpid()})
        sent = time.monotonic()
        tell(f"fault {bad} xid-79")
        watch.wait(names[:bad], 120)
        after = cpu_by_name(cluster, {operator.pid, fleet.pid, os.getpid()})
        times = sorted(t - sent for t in watch.at.values())
        put(what="burst", blades=blades, bad=bad, last_s=round(times[-1], 3),
            blades_per_s=round(bad / (times[-1] - times[0]), 1), from_order_blades_per_s=round(bad / times[-1], 1),
            p50_s=round(quantile(times, 0.5), 3), p99_s=round(quantile(times, 0.99), 3),
            cpu_s=difference(after, before, 2), requests=difference(requests(api), asked))
        watch.end()

        # A site with ten times more agents than connections.
        log(f"{blades} blades: the operator again, with {max(16, blades // 10)} connections")
        operator.terminate()
        operator.wait(30)
        operator = start_operator("--connections", max(16, blades // 10))
        wait("the agents back", lambda: metrics().get('whetstone_agents{state="live"}') == blades, 120)
        at_rest("at_rest_few_connections")
        few = at_rest("at_rest_few_connections_readings", READINGS)
        put(**projection(many, few))

        # Evidence as fast as it is taken: parsed, checked, stored and acknowledged.
        log(f"{blades} blades: the operator again; as much evidence as it takes")
        operator.terminate()
        operator.wait(30)
        operator = start_operator()
        wait("the agents back", lambda: metrics().get('whetstone_agents{state="live"}') == blades, 120)
        time.sleep(10)
        store = lambda: sum(f.stat().st_size for f in folder.glob("store.db*"))
        pids = {operator.pid, fleet.pid, os.getpid()}
        before, bytes_before, cpu_before = metrics(), store(), cpu_by_name(cluster, pids)
        flood = tell(f"flood {min(FLOOD_AGENTS, blades)} {FLOOD_S}")
        cpu = difference(cpu_by_name(cluster, pids), cpu_before, 2)
        # The last reports may be on their way yet.
        time.sleep(2)
        of_readings = 'whetstone_evidence_items_total{kind="reading"}'
        stored = metrics().get(of_readings, 0) - before.get(of_readings, 0)
        if stored < flood["acked"]:
            raise RuntimeError(f"{flood['acked']} items were acknowledged, {stored} are stored")
        put(what="intake", blades=blades, agents=flood["agents"], seconds=round(flood["seconds"], 2), items=flood["acked"],
            items_per_s=round(flood["acked"] / flood["seconds"]), reports_per_s=round(flood["reports"] / flood["seconds"], 1),
            failures=flood["failures"], refused=flood["refused"], bytes_per_item=round(flood["bytes_per_item"]),
            stored_bytes_per_item=round((store() - bytes_before) / max(1, stored)), cpu_s=cpu,
            operator_cpu_us_per_item=round(1e6 * cpu.get("whetstone-operator", 0) / max(1, flood["acked"]), 2))

        # What the apiserver of this very site takes from a client that does nothing else, on nodes that nobody else is at.
        for child in (fleet, operator):
            child.terminate()
            child.wait(30)
        quiet(api, 100)
        bare = json.loads(run(BIN / "examples/bare_patches", kubeconfig, "b-", bad, 2 * bad, stdout=subprocess.PIPE).stdout)
        put(what="bare_client", blades=blades, nodes=bare["nodes"], nodes_per_s=round(bare["per_s"], 1))
    finally:
        for child in reversed(children):
            child.terminate()
            try:
                child.wait(15)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        run(KUBE / "whet-local", "down", "--dir", cluster, stdout=subprocess.DEVNULL)


def main():
    with open(OUT, "w") as out:
        def put(**values):
            out.write(json.dumps(values) + "\n")
            out.flush()
            log(json.dumps(values))

        for blades in SIZES:
            folder = Path(tempfile.mkdtemp(prefix="whetstone-bench-"))
            try:
                measure(blades, folder, put)
            except BaseException:
                for name in ("operator.log", "fleet.log"):
                    text = (folder / name).read_text()[-2000:] if (folder / name).exists() else ""
                    print(f"--- {name}\n{text}", file=sys.stderr)
                raise
            finally:
                shutil.rmtree(folder, ignore_errors=True)


main()
