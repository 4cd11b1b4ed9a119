"""A Slurm cluster of two nodes on this machine, in namespaces of its own: ending its first process leaves nothing.

`python -m tests.slurm.cluster up | down FOLDER`, or `run FOLDER COMMAND ...` on its controller. Needs root and Debian's
packages slurm-wlm, munge and iproute2. The nodes share this machine's files; they have names, addresses and GPUs (which
are /dev/null) of their own, joined by a bridge.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

CONTROLLER, NODES = "control", ("nodea", "nodeb")
ADDRESSES = {name: f"10.213.0.{i}" for i, name in enumerate((CONTROLLER, *NODES), 1)}
GPUS = 2
NODE_TIMEOUT = 10
"""Seconds without a word from a node after which Slurm gives it up."""

_PROGRAMS = ("slurmctld", "slurmd", "munged", "ip", "bridge", "unshare", "nsenter", "mungekey")
_NAMESPACES = ("unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
_SECONDS_TO_START = 120

# Times are short so that tests are; cred_expire is also how long a requeued job waits
_CONFIG = """\
ClusterName=onecurve
SlurmctldHost={controller}({address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=10
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdParameters=config_overrides
SlurmdTimeout={node_timeout}
ReturnToService=2
KillWait=10
UnkillableStepTimeout=60
OverTimeLimit=0
MinJobAge=600
JobRequeue=1
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName={nodes} CPUs=4 RealMemory=2000 Gres=gpu:{gpus}
PartitionName=normal Nodes=ALL Default=YES PriorityTier=1 GraceTime=60 PreemptMode=REQUEUE OverSubscribe=NO
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF OverSubscribe=NO
"""

_INIT = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)\nwhile True: signal.pause()"


def missing() -> str:
    """Return why no cluster can be started here; empty when it can."""
    if os.geteuid() != 0:
        return "a Slurm cluster of our own needs root"
    lacking = [name for name in _PROGRAMS if not shutil.which(name)]
    if lacking:
        return f"not installed: {', '.join(lacking)} (Debian: slurm-wlm munge iproute2)"
    tried = subprocess.run([*_NAMESPACES, "true"], capture_output=True, text=True, check=False)
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


class Cluster:
    """The cluster whose files lie in a folder; the folder must not be below /run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._pid = self.folder / "init.pid"

    def up(self) -> None:
        """Start it; returns when both nodes can take jobs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_configuration()
        self._start_namespaces()
        try:
            self._lay_network()
            self._start_daemons()
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """End every process of it; namespaces, mounts and network go with the last."""
        if self._pid.exists():
            pid = int(self._pid.read_text())
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the cluster to end")
            self._pid.unlink()

    def run(self, *command: str, cwd: Path | None = None, check: bool = True, **environment: str) -> str:
        """Run a command on the controller, as a user logged in there would; return what it wrote to stdout."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        done = subprocess.run(
            [*self._inside(), f"--wd={cwd or Path.cwd()}", "--", *command],
            env={**inherited, "SLURM_CONF": str(self.folder / "slurm.conf"), **environment},
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def start_node(self, name: str) -> None:
        """Start a node's daemon."""
        # Not `ip netns exec`: it mounts another /sys, without the cgroups that slurmd insists on
        start = f"hostname {name} && exec slurmd -N {name}"
        self.run("nsenter", f"--net=/run/netns/{name}", "unshare", "--uts", "sh", "-c", start)

    def crash_node(self, name: str) -> None:
        """Kill every process of a node at once, as a power cut would."""
        namespace = self.run("readlink", f"/proc/{self._daemon(name)}/ns/net")
        inside = "for p in /proc/[0-9]*; do [ \"$(readlink $p/ns/net)\" = '%s' ] && echo ${p#/proc/}; done; true"
        pids = self.run("sh", "-c", inside % namespace).split()
        self.run("sh", "-c", f"kill -KILL {' '.join(pids)}")

    def cut(self, name: str) -> None:
        """Take a node off the network; its processes live on."""
        self.run("ip", "link", "set", f"to-{name}", "down")

    def mend(self, name: str) -> None:
        """Put a node back onto the network."""
        self.run("ip", "link", "set", f"to-{name}", "up")

    def isolate_nodes(self, isolated: bool) -> None:
        """Cut the nodes off each other, or join them again; the controller reaches both all the time."""
        for name in NODES:
            self.run("bridge", "link", "set", "dev", f"to-{name}", "isolated", "on" if isolated else "off")

    def _inside(self) -> list[str]:
        return ["nsenter", f"--target={self._pid.read_text()}", "--mount", "--net", "--uts", "--pid"]

    def _daemon(self, name: str) -> str:
        return (self.folder / f"slurmd-{name}.pid").read_text().strip()

    def _write_configuration(self) -> None:
        config = _CONFIG.format(
            folder=self.folder, controller=CONTROLLER, address=ADDRESSES[CONTROLLER], node_timeout=NODE_TIMEOUT,
            nodes=",".join(NODES), gpus=GPUS,
        )  # fmt: skip
        (self.folder / "slurm.conf").write_text(config)
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null,/dev/zero\n")
        hosts = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in ADDRESSES.items())]
        (self.folder / "hosts").write_text("\n".join(hosts) + "\n")
        (self.folder / "state").mkdir(exist_ok=True)
        for name in NODES:
            (self.folder / f"spool-{name}").mkdir(exist_ok=True)

    def _start_namespaces(self) -> None:
        """Start the process that owns the namespaces: killed, it takes with it whatever runs in them."""
        with open(self.folder / "init.log", "w") as log:
            command = [*_NAMESPACES, sys.executable, "-c", _INIT]
            unshare = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children")
        wait_until(lambda: children.read_text().strip(), "namespaces")
        self._pid.write_text(children.read_text().strip())

    def _lay_network(self) -> None:
        lines = [
            "mount -t tmpfs tmpfs /run && mkdir /run/munge",
            f"mount --bind {self.folder}/hosts /etc/hosts && hostname {CONTROLLER} && ip link set lo up",
            f"ip link add br0 type bridge && ip addr add {ADDRESSES[CONTROLLER]}/24 dev br0 && ip link set br0 up",
        ]
        for name in NODES:
            lines += [
                f"ip netns add {name} && ip link add to-{name} type veth peer name eth0 netns {name}",
                f"ip link set to-{name} master br0 && ip link set to-{name} up",
                f"ip -n {name} addr add {ADDRESSES[name]}/24 dev eth0 && ip -n {name} link set eth0 up",
                f"ip -n {name} link set lo up",
            ]
        wait_until(lambda: self.run("ip", "-o", "link", check=False), "the namespaces")
        self.run("sh", "-ec", "\n".join(lines))

    def _start_daemons(self) -> None:
        key, log = self.folder / "munge.key", self.folder / "munged.log"
        self.run("mungekey", "--create", f"--keyfile={key}")
        self.run("munged", "--force", f"--key-file={key}", f"--log-file={log}", f"--seed-file={self.folder}/munge.seed")
        self.run("slurmctld", "-i")
        for name in NODES:
            self.start_node(name)
        states = ("sinfo", "-h", "-N", "-p", "normal", "-o", "%t")
        wait_until(
            lambda: self.run(*states, check=False).split() == ["idle"] * len(NODES),
            f"both nodes to be idle (see {self.folder}/*.log)",
        )


def wait_until(condition: Callable[[], object], what: str, seconds: float = _SECONDS_TO_START) -> None:
    """Wait for a condition, or say what never came."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.1)


def main(verb: str, folder: str, *command: str) -> None:
    cluster = Cluster(Path(folder))
    if verb == "run":
        print(cluster.run(*command))
    elif verb == "up" and missing():
        sys.exit(missing())
    else:
        {"up": cluster.up, "down": cluster.down}[verb]()


if __name__ == "__main__":
    main(*sys.argv[1:])
