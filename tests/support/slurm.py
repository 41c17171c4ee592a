"""A real Slurm of virtual nodes on loopback, in a folder of its own, for tests with jobs."""

import os
import secrets
import shutil
import socket
import subprocess
from contextlib import suppress
from importlib.util import find_spec
from time import monotonic, sleep

import psutil
from broker import HOST, _free_ports

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "squeue")
PLACES = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin"))
CREDENTIAL_SECONDS = 5  # for so long a job that is queued again waits; by default it is 120
SECONDS = 100  # until it is given up to wait for something
# When its input ends, thus also with the process that started it, however that one ends, it has
# the jobs end, whose processes would outlive the daemons, and then the daemons and itself.
GUARD = """\
read -r line
timeout 10 scancel --user=root
tries=0
while [ $tries -lt 50 ] && [ -n "$(timeout 5 squeue --noheader 2>/dev/null)" ]; do
    tries=$((tries + 1))
    sleep 0.2
done
kill -KILL 0
"""
CONFIGURATION = """\
ClusterName=atomizer
SlurmctldHost={name}({host})
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire={credential_seconds}
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=100000,sched_interval=1,bf_interval=1
OverTimeLimit=0
CompleteWait=0
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
"""
NODE = """\
NodeName={node} NodeHostname={name} NodeAddr={host} Port={port} CPUs={cpus} CoresPerSocket={cpus} \
Sockets=1 ThreadsPerCore=1 RealMemory={memory}
"""
PARTITION = "PartitionName=tests Nodes={nodes} Default=YES MaxTime=INFINITE DefMemPerCPU=64\n"


def missing():
    """Return the names of what tests with Slurm need and this machine or user lacks."""
    lacking = [program for program in PROGRAMS if _path_of(program) is None]
    lacking += [name for name in ("dask_jobqueue",) if find_spec(name) is None]
    return [*lacking, *([] if os.geteuid() == 0 else ["the rights of root"])]


class Slurm:
    """A Slurm that nothing else uses, with nodes that are all this machine.

    Parameters
    ----------
    folder : pathlib.Path
        Where it keeps everything.
    nodes, cpus : int
        How many nodes it has, and cores each; more than there are in truth, if need be.

    Attributes
    ----------
    configuration : pathlib.Path
        What SLURM_CONF has to be for Slurm's commands to speak with it.
    nodes : list of str
    """

    def __init__(self, folder, *, nodes=2, cpus=4):
        self.folder = folder
        self.configuration = folder / "slurm.conf"
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self._guard, self._daemons = None, []
        self._write_configuration(cpus)

    def start(self):
        """Start it, wait until its nodes take jobs, and return it."""
        self._guard = subprocess.Popen(
            ("sh", "-c", GUARD),
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self.environment(),
            process_group=0,
        )
        try:
            self._start_munge()
            self._spawn("slurmctld", "-D", "-f", self.configuration)
            for node in self.nodes:
                self._spawn("slurmd", "-D", "-f", self.configuration, "-N", node)
            self.wait_until(self._idle, "nodes that take jobs")
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self):
        """End its jobs, then itself, and wait until all has ended."""
        if self._guard is None:
            return
        self._guard.stdin.close()
        self._guard.wait()
        for process in self._daemons:
            process.kill()  # if it has left the guard's group
            process.wait()
        for process in self._left():
            process.kill()
        self._guard, self._daemons = None, []

    def environment(self):
        """Return what Slurm's commands need to speak with it, whatever is set for another."""
        foreign = ("SLURM_", "SBATCH_", "SRUN_", "SQUEUE_", "SCANCEL_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return {**kept, "SLURM_CONF": str(self.configuration)}

    def tell(self, program, *arguments, **options):
        """Return what a command of Slurm says to some arguments."""
        done = subprocess.run(
            [_path_of(program), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self.environment(),
            timeout=SECONDS,
            check=False,
            **options,
        )
        if done.returncode:
            raise RuntimeError(f"{program} {arguments} fails: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def submit(self, *arguments, **options):
        """Submit a batch script as sbatch does, and return the id of its job."""
        return self.tell("sbatch", "--parsable", *arguments, **options)

    def jobs(self, *options):
        """Return the ids of jobs that have not ended, in the order of submission."""
        listed = self.tell("squeue", "--noheader", "--format=%A", "--sort=i", *options)
        return listed.split()

    def state(self, job):
        """Return the state of a job, as in RUNNING, COMPLETED or TIMEOUT."""
        return self._fact(job, "JobState")

    def node(self, job):
        """Return the name of the node, or the first of them, that a job runs or ran on."""
        return self._fact(job, "BatchHost")

    def wait_until(self, condition, what, seconds=SECONDS):
        """Wait until a condition holds, and fail with the ends of the logs where it does not."""
        until = monotonic() + seconds
        while not condition():
            ended = [process.args[0] for process in self._daemons if process.poll() is not None]
            if ended or monotonic() > until:
                why = f"{ended[0]} has ended" if ended else f"{seconds} s have passed"
                raise RuntimeError(f"Slurm: no {what}, and {why}:\n{self.log()}")
            sleep(0.05)

    def log(self):
        """Return the ends of what its daemons had to say."""
        logs = sorted(self.folder.glob("*.log"))
        ends = (path.read_text(errors="replace").splitlines()[-20:] for path in logs)
        return "\n".join(line for lines in ends for line in lines)

    def _fact(self, job, name):
        facts = self.tell("scontrol", "--oneliner", "show", "job", job)
        return facts.partition(f" {name}=")[2].split()[0]

    def _write_configuration(self, cpus):
        for name in ("state", "munge", *self.nodes):
            (self.folder / name).mkdir(parents=True)
        port, *ports = _free_ports(1 + len(self.nodes))
        common = {"name": socket.gethostname().partition(".")[0], "host": HOST}
        memory = psutil.virtual_memory().total // 2**20 // len(self.nodes)
        own = {"folder": self.folder, "port": port, "credential_seconds": CREDENTIAL_SECONDS}
        text = CONFIGURATION.format(**own, **common)
        for node, port in zip(self.nodes, ports, strict=True):
            text += NODE.format(node=node, port=port, cpus=cpus, memory=memory, **common)
        self.configuration.write_text(text + PARTITION.format(nodes=",".join(self.nodes)))

    def _start_munge(self):
        """Start what Slurm knows its users by, with a key and a socket of its own."""
        folder = self.folder / "munge"
        (folder / "key").write_bytes(secrets.token_bytes(1024))
        (folder / "key").chmod(0o400)
        names = {"key-file": "key", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
        options = [f"--{option}={folder / name}" for option, name in names.items()]
        # Else it refuses to have its socket in a folder that others cannot read.
        self._spawn("munged", "--foreground", "--force", f"--socket={folder / 'socket'}", *options)
        self.wait_until((folder / "socket").exists, "socket of munged")

    def _spawn(self, program, *arguments):
        with (self.folder / f"{program}{len(self._daemons)}.log").open("ab") as log:
            process = subprocess.Popen(
                [_path_of(program), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(),
                cwd=self.folder,
                process_group=self._guard.pid,
            )
        self._daemons.append(process)

    def _idle(self):
        try:
            listed = self.tell("sinfo", "--noheader", "--states=idle", "--Node", "--format=%N")
        except RuntimeError:  # slurmctld does not listen yet
            return False
        return sorted(listed.split()) == self.nodes

    def _left(self):
        """Return processes of its jobs that go on, which know it by where it is configured."""
        descendants = {process.pid for process in psutil.Process().children(recursive=True)}
        for process in psutil.process_iter():
            with suppress(psutil.Error):  # it has ended, or is another's
                there = process.environ().get("SLURM_CONF")
                if there == str(self.configuration) and process.pid not in descendants:
                    yield process


def _path_of(program):
    return shutil.which(program, path=PLACES)
