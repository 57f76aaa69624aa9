#!/usr/bin/env python3
"""Holds ecoprobe's GPU joules against a real NVIDIA GPU, in one go.

    sudo python3 benches/gpu_check.py [--seconds 20] [--device 0] [--binary target/release/ecoprobe]

Builds ecoprobe (as the user who called sudo), puts a real load on the device (PyTorch where it is
installed, else a kernel of our own through the CUDA driver), and prints one table:

  * joules by ecoprobe and by the device's own counter, read by this program, over the same window:
    one process, and two that share the device;
  * what the load computes with and without ecoprobe beside it;
  * p50 and p99 of each NVML call: device idle, device loaded, and `nvidia-smi` running beside it.

It has not been run on real hardware yet: what needs no GPU (the calls and their timing, the command
lines, the comparison with the counter) has been tried against the simulator, the loads have not.

Needs root, an NVIDIA driver, Rust's cargo, and Python 3.9; nothing else is installed. The figures are
kept as JSON under benches/results/.
"""

import argparse
import bisect
import ctypes
import datetime
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benches" / "results"
SYSTEM_LIBRARY = "libnvidia-ml.so.1"


class Nvml:
    """The few calls that are needed, through ctypes: a program independent of ecoprobe."""

    def __init__(self, library, index):
        try:
            self.lib = ctypes.CDLL(library)
        except OSError as error:
            sys.exit(f"{error}: this check needs a machine with an NVIDIA GPU and its driver")
        self.check("nvmlInit_v2")
        self.handle = ctypes.c_void_p()
        self.check("nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(self.handle))
        buffer = ctypes.create_string_buffer(96)
        self.check("nvmlDeviceGetName", self.handle, buffer, 96)
        self.name = buffer.value.decode()
        self.check("nvmlDeviceGetUUID", self.handle, buffer, 96)
        self.uuid = buffer.value.decode()
        self.driver = "unknown"
        if self.call("nvmlSystemGetDriverVersion", buffer, 96) == 0:
            self.driver = buffer.value.decode()

    def call(self, name, *arguments):
        function = getattr(self.lib, name, None)
        return 13 if function is None else function(*arguments)

    def check(self, name, *arguments):
        code = self.call(name, *arguments)
        if code != 0:
            sys.exit(f"{name} failed with code {code}")

    def has_counter(self):
        value = ctypes.c_ulonglong()
        name = "nvmlDeviceGetTotalEnergyConsumption"
        return self.call(name, self.handle, ctypes.byref(value)) == 0

    def energy_mj(self):
        value = ctypes.c_ulonglong()
        self.check("nvmlDeviceGetTotalEnergyConsumption", self.handle, ctypes.byref(value))
        return value.value

    def timed_calls(self, rounds=200):
        """Microseconds of each call that ecoprobe makes: name -> sorted list."""
        big = ctypes.create_string_buffer(1 << 16)
        word = ctypes.c_ulonglong()
        field = ctypes.create_string_buffer(64)

        def processes(name):
            count = ctypes.c_uint(1024)
            return self.call(name, self.handle, ctypes.byref(count), big)

        def utilisation():
            count = ctypes.c_uint(1024)
            since = ctypes.c_ulonglong(int((time.time() - 1) * 1e6))
            name = "nvmlDeviceGetProcessUtilization"
            return self.call(name, self.handle, big, ctypes.byref(count), since)

        def power():
            ctypes.memset(field, 0, 64)
            ctypes.cast(field, ctypes.POINTER(ctypes.c_uint))[0] = 186
            return self.call("nvmlDeviceGetFieldValues", self.handle, 1, field)

        def single(name):
            return self.call(name, self.handle, ctypes.byref(word))

        calls = {
            "energy": lambda: single("nvmlDeviceGetTotalEnergyConsumption"),
            "instant power": power,
            "average power": lambda: single("nvmlDeviceGetPowerUsage"),
            "compute processes": lambda: processes("nvmlDeviceGetComputeRunningProcesses_v3"),
            "graphics processes": lambda: processes("nvmlDeviceGetGraphicsRunningProcesses_v3"),
            "process utilisation": utilisation,
            "utilisation": lambda: single("nvmlDeviceGetUtilizationRates"),
        }
        times = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                start = time.perf_counter_ns()
                call()
                times[name].append((time.perf_counter_ns() - start) / 1e3)
            time.sleep(0.005)
        return {name: sorted(values) for name, values in times.items()}


class Watch(threading.Thread):
    """Records the counter, every 10 ms, with the wall clock's time of each change."""

    def __init__(self, nvml):
        super().__init__(daemon=True)
        self.nvml, self.times, self.counts, self.ended = nvml, [], [], threading.Event()

    def run(self):
        while not self.ended.wait(0.01):
            before = time.time()
            count = self.nvml.energy_mj()
            if not self.counts or count != self.counts[-1]:
                self.times.append((before + time.time()) / 2)
                self.counts.append(count)

    def at(self, when):
        right = bisect.bisect_left(self.times, when)
        if right == 0 or right == len(self.times):
            raise ValueError("the window is not inside what was watched")
        (t0, t1), (c0, c1) = self.times[right - 1 : right + 1], self.counts[right - 1 : right + 1]
        return c0 + (c1 - c0) * (when - t0) / (t1 - t0)

    def joules(self, start, seconds):
        return (self.at(start + seconds) - self.at(start)) / 1e3


# ---- the load ------------------------------------------------------------------------------------

# x = 3.9 x (1 - x): it neither settles nor grows, so that bits keep flipping, which is what draws power.
PTX = b"""
.version 6.0
.target sm_50
.address_size 64
.visible .entry burn(.param .u32 rounds) {
    .reg .pred %p; .reg .u32 %r<3>; .reg .f32 %f<3>;
    ld.param.u32 %r1, [rounds];
    mov.f32 %f1, 0f3ECCCCCD; mov.u32 %r2, 0;
again:
    fma.rn.f32 %f2, %f1, 0fBF800000, 0f3F800000;
    mul.rn.f32 %f2, %f2, 0f4079999A; mul.rn.f32 %f1, %f1, %f2;
    add.u32 %r2, %r2, 1; setp.lt.u32 %p, %r2, %r1; @%p bra again;
    setp.eq.f32 %p, %f1, 0f12345678; @%p trap;
    ret;
}
"""


def load_by_driver(index):
    """Launches a kernel through libcuda; yields after each."""
    cuda = ctypes.CDLL("libcuda.so.1")

    def check(name, *arguments):
        code = getattr(cuda, name)(*arguments)
        if code != 0:
            sys.exit(f"{name} failed with code {code}")

    device, context = ctypes.c_int(), ctypes.c_void_p()
    module, kernel = ctypes.c_void_p(), ctypes.c_void_p()
    check("cuInit", 0)
    check("cuDeviceGet", ctypes.byref(device), index)
    check("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    check("cuCtxSetCurrent", context)
    check("cuModuleLoadData", ctypes.byref(module), PTX)
    check("cuModuleGetFunction", ctypes.byref(kernel), module, b"burn")
    rounds = ctypes.c_uint(200_000)
    arguments = (ctypes.c_void_p * 1)(ctypes.cast(ctypes.byref(rounds), ctypes.c_void_p))
    while True:
        check("cuLaunchKernel", kernel, 1024, 1, 1, 256, 1, 1, 0, None, arguments, None)
        check("cuCtxSynchronize")
        yield


def load_by_torch(index):
    import torch

    side = 4096
    a = torch.randn(side, side, device=f"cuda:{index}", dtype=torch.float16)
    while True:
        for _ in range(10):
            torch.mm(a, a)
        torch.cuda.synchronize(index)
        yield


def load(seconds, duty, index):
    """The child process: computes for `duty` of the time, prints how much it got done."""
    try:
        import torch

        kind = "torch" if torch.cuda.is_available() else "driver"
    except ImportError:
        kind = "driver"
    steps = load_by_torch(index) if kind == "torch" else load_by_driver(index)
    next(steps)
    print("ready", flush=True)
    done, start = 0, time.monotonic()
    while time.monotonic() - start < seconds:
        before = time.monotonic()
        next(steps)
        done += 1
        time.sleep((time.monotonic() - before) * (1 / duty - 1))
    print(json.dumps({"kind": kind, "steps_per_s": done / (time.monotonic() - start)}))


def end(child):
    """Whatever happened, it is gone afterwards."""
    child.kill()
    child.wait()
    if child.stdout is not None:
        child.stdout.close()


def remove(cgroup):
    """It is busy for a moment after its last process was waited for."""
    for _ in range(100):
        try:
            return cgroup.rmdir()
        except FileNotFoundError:
            return None
        except OSError:
            time.sleep(0.05)
    print(f"left behind: {cgroup}", file=sys.stderr)


def start_load(seconds, index, duty=1.0, cgroup=None):
    command = [sys.executable, __file__, "--load", str(seconds), "--duty", str(duty)]
    command += ["--device", str(index)]
    # CUDA numbers the fastest device first unless it is told to do as NVML does.
    environment = {**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        if cgroup is not None:
            (cgroup / "cgroup.procs").write_text(str(child.pid))
    except OSError:
        end(child)
        raise
    return child


def wait_until_ready(child):
    if child.stdout.readline().strip() != "ready":
        sys.exit("the load does not start on this device")


def run_load(seconds, index):
    """A load by itself, to its end: what it got done."""
    child = start_load(seconds, index)
    try:
        out, _ = child.communicate()
    finally:
        end(child)
    if child.returncode != 0:
        sys.exit("the load failed")
    return json.loads(out.splitlines()[-1])


# ---- the checks ----------------------------------------------------------------------------------


def cgroup2_mount():
    for line in pathlib.Path("/proc/mounts").read_text().splitlines():
        parts = line.split()
        if parts[2] == "cgroup2":
            return pathlib.Path(parts[1])
    sys.exit("no cgroup2 file system is mounted")


def ecoprobe(args, cgroups, *options):
    command = [args.binary, "--gpu-energy", "nvml", "--format", "json", *options]
    if args.nvml_lib != SYSTEM_LIBRARY:
        command += ["--nvml-lib", args.nvml_lib]
    for cgroup in cgroups:
        command += ["--cgroup", str(cgroup)]
    return command


def profiled(args, nvml, duties):
    """Loads in cgroups of their own, ecoprobe beside them: its report, and the counter's joules."""
    mount = cgroup2_mount()
    groups = [mount / f"ecoprobe-gpu-check-{os.getpid()}-{i}" for i in range(len(duties))]
    watch, children = Watch(nvml), []
    try:
        for group in groups:
            group.mkdir()
        watch.start()
        for duty, group in zip(duties, groups):
            # Until it is killed: how long the others take to start is not known.
            children.append(start_load(args.seconds + 600, args.device, duty, group))
        for child in children:
            wait_until_ready(child)
        time.sleep(3)  # the device warms up
        command = ecoprobe(args, groups, "--duration", f"{round(args.seconds * 1000)}ms")
        out = subprocess.run(command, stdout=subprocess.PIPE)
        if out.returncode != 0:
            sys.exit(f"ecoprobe ended with {out.returncode}")
        report = json.loads(out.stdout)
        if any(child.poll() is not None for child in children):
            sys.exit("the load failed")
        # The counter moves once more.
        time.sleep(0.5)
    finally:
        watch.ended.set()
        for child in children:
            end(child)
        for group in groups:
            remove(group)
    gpu = report["node"]["gpu"]
    # The report has an order of its own.
    of = {workload["cgroup"].rsplit("/", 1)[-1]: workload for workload in report["workloads"]}
    workloads = [of[group.name] for group in groups]
    billed = [workload["energy_j"]["gpu"] for workload in workloads]
    if gpu["measured_j"] is None or None in billed:
        sys.exit(f"ecoprobe could not bill GPU energy: {'; '.join(report['warnings'])}")
    theirs = watch.joules(timestamp(report["window"]["start"]), report["window"]["seconds"])
    return {
        "duties": duties,
        "seconds": report["window"]["seconds"],
        "counter_j": theirs,
        "ecoprobe_j": gpu["measured_j"],
        "idle_j": gpu["idle_j"],
        "unattributed_j": gpu["unattributed_j"],
        "other_j": gpu["other_j"],
        "workloads_j": billed,
        "methods": [[gpu["method"] for gpu in w["gpus"]] for w in workloads],
        "nvml_us": report["self"]["nvml_us"],
        "warnings": report["warnings"],
    }


def timestamp(rfc3339):
    """Seconds since the epoch. Python before 3.11 reads neither `Z` nor nanoseconds."""
    whole, fraction = re.fullmatch(r"([^.Z]+)(\.\d+)?Z", rfc3339).groups()
    start = datetime.datetime.fromisoformat(whole).replace(tzinfo=datetime.timezone.utc)
    return start.timestamp() + float(fraction or 0)


def throughput(args):
    """What the load gets done alone and with ecoprobe beside it, taken in turns."""
    alone, beside = [], []
    for _ in range(3):
        alone.append(run_load(args.seconds / 2, args.device))
        probe = subprocess.Popen(ecoprobe(args, ["/"]), stdout=subprocess.DEVNULL)
        try:
            beside.append(run_load(args.seconds / 2, args.device))
            if probe.poll() is not None:
                sys.exit(f"ecoprobe ended with {probe.returncode}")
            probe.send_signal(signal.SIGINT)
            probe.wait(30)
        finally:
            end(probe)
    rate = lambda runs: [run["steps_per_s"] for run in runs]
    return {"load": alone[0]["kind"], "alone": rate(alone), "beside": rate(beside)}


def latencies(args, nvml):
    found = {"idle": nvml.timed_calls()}
    if not args.no_load:
        child = start_load(600, args.device)
        try:
            wait_until_ready(child)
            time.sleep(1)
            found["loaded"] = nvml.timed_calls()
        finally:
            end(child)
    if shutil.which("nvidia-smi"):
        beside = subprocess.Popen(["nvidia-smi", "-lms", "100"], stdout=subprocess.DEVNULL)
        try:
            time.sleep(1)
            found["nvidia-smi"] = nvml.timed_calls()
        finally:
            end(beside)
    quantile = lambda values, q: values[min(len(values) - 1, int(q * len(values)))]
    return {
        state: {call: [quantile(us, 0.5), quantile(us, 0.99)] for call, us in calls.items()}
        for state, calls in found.items()
    }


def build():
    """Builds as whoever called sudo, with that user's toolchain; returns the binary's path."""
    cargo = "cargo build --release --package ecoprobe --message-format json-render-diagnostics"
    command = ["sh", "-c", f"cd {shlex.quote(str(ROOT))} && {cargo}"]
    user = os.environ.get("SUDO_USER")
    if user and user != "root":
        # A login shell: sudo has taken the user's PATH away.
        command = ["sudo", "-H", "-u", user, "bash", "-l", *command[1:]]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if out.returncode != 0:
        sys.exit("ecoprobe could not be built; build it yourself and name it with --binary")
    artifacts = [json.loads(line) for line in out.stdout.splitlines() if line.startswith("{")]
    binaries = [artifact["executable"] for artifact in artifacts if artifact.get("executable")]
    return binaries[-1]


def table(result):
    print(f"\n{result['device']}, driver {result['driver']}\n")
    for title, name in [("one process", "one"), ("two processes, one device", "two")]:
        run = result.get(name)
        if run is None:
            continue
        off = 100 * (run["ecoprobe_j"] / run["counter_j"] - 1)
        print(f"{title}, {run['seconds']:.1f} s")
        print(f"  device's counter   {run['counter_j']:12.1f} J")
        print(f"  ecoprobe           {run['ecoprobe_j']:12.1f} J   {off:+.2f} %")
        for duty, joules, method in zip(run["duties"], run["workloads_j"], run["methods"]):
            print(f"    load at {duty:4.0%}     {joules:12.1f} J   {', '.join(method)}")
        print(f"    other processes  {run['other_j']:12.1f} J")
        print(f"    idle             {run['idle_j']:12.1f} J")
        print(f"    unattributed     {run['unattributed_j']:12.1f} J")
    if "throughput" in result:
        rates = result["throughput"]
        alone, beside = statistics.median(rates["alone"]), statistics.median(rates["beside"])
        noise = 100 * (max(rates["alone"]) - min(rates["alone"])) / alone
        print(f"load ({rates['load']}): {alone:.1f} steps/s alone, {beside:.1f} with ecoprobe:", end="")
        print(f" {100 * (beside / alone - 1):+.2f} % (runs alone differ by {noise:.2f} %)")
    states = list(result["nvml_us"])
    print("NVML call, us (p50 / p99)".ljust(28) + "".join(state.rjust(20) for state in states))
    for call in result["nvml_us"]["idle"]:
        row = (result["nvml_us"][state][call] for state in states)
        print(f"  {call:26}" + "".join(f"{p50:10.0f} /{p99:8.0f}" for p50, p99 in row))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20, help="length of each profiled run")
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--nvml-lib", default=SYSTEM_LIBRARY)
    parser.add_argument("--binary", help="use this ecoprobe instead of building one")
    parser.add_argument("--no-load", action="store_true", help="only time the NVML calls")
    parser.add_argument("--load", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--duty", type=float, default=1.0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load is not None:
        return load(args.load, args.duty, args.device)

    nvml = Nvml(args.nvml_lib, args.device)
    result = {"device": nvml.name, "uuid": nvml.uuid, "driver": nvml.driver}
    if not args.no_load:
        if os.geteuid() != 0:
            sys.exit("ecoprobe's probe needs root: run this with sudo")
        if not nvml.has_counter():
            sys.exit("this device has no energy counter to compare with; --no-load times the calls")
        args.binary = args.binary or build()
    result["nvml_us"] = latencies(args, nvml)
    if not args.no_load:
        result["one"] = profiled(args, nvml, [1.0])
        result["two"] = profiled(args, nvml, [1.0, 0.4])
        result["throughput"] = throughput(args)
        RESULTS.mkdir(parents=True, exist_ok=True)
        name = "-".join(nvml.name.lower().split())
        file = RESULTS / f"gpu-{name}.json"
        file.write_text(json.dumps(result, indent=2) + "\n")
        if "SUDO_UID" in os.environ:
            os.chown(file, int(os.environ["SUDO_UID"]), int(os.environ["SUDO_GID"]))
        print(f"kept in {file.relative_to(ROOT)}")
    table(result)


if __name__ == "__main__":
    main()
