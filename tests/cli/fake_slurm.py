"""Enough of Slurm to submit to: sbatch, srun, sacct and scontrol as programs that run a job's processes on this machine.

`install(folder)` makes the programs. A job gets the variables that Slurm sets and no others of this process's; all nodes are this
machine. `folder/batch.sh` is what was submitted. Started as a program, this module is the program that its first argument names.
"""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("sbatch", "srun", "sacct", "scontrol")


def install(folder, *, preempt_when=None):
    """Return the environment in which these programs are found. The job is preempted once, when the file `preempt_when` appears."""
    (folder / "bin").mkdir(parents=True)
    for name in PROGRAMS:
        program = folder / "bin" / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(__file__)} {name} "$@"\n')
        program.chmod(0o755)
    env = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SUBMITIT_"))}
    env |= {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "FAKE_SLURM": str(folder)}
    return env | ({"FAKE_SLURM_PREEMPT": str(preempt_when)} if preempt_when else {})


def options(script):
    """Return what the lines #SBATCH ask for."""
    return dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in script.splitlines() if line.startswith("#SBATCH"))


def _free_port():
    """Return a port that Lightning can derive from the last four digits of a job's id."""
    for port in range(15000 + os.getpid() % 9000, 25000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise RuntimeError("no free port")


def sbatch(folder, script):
    shutil.copy(script, folder / "batch.sh")
    job_id = 10000 + _free_port() - 15000
    (folder / "state").write_text("RUNNING")
    subprocess.Popen([sys.executable, __file__, "job", str(job_id)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(f"Submitted batch job {job_id}")


def job(folder, job_id):
    asked = options((folder / "batch.sh").read_text())
    nodes, each = int(asked["nodes"]), int(asked["ntasks-per-node"])
    env = os.environ | {"SLURM_JOB_NAME": asked["job-name"], "SLURM_JOB_NODELIST": "127.0.0.1", "SLURM_NODELIST": "127.0.0.1"}
    env |= {"SLURM_NNODES": str(nodes), "SLURM_JOB_NUM_NODES": str(nodes), "SLURM_NTASKS": str(nodes * each)}
    env |= {"SLURM_NTASKS_PER_NODE": str(each), "SLURM_CPUS_PER_TASK": asked["cpus-per-task"], "SLURM_PROCID": "0"}
    array = re.match(r"0-(\d+)", asked.get("array", ""))
    statuses = []
    for task in range(int(array[1]) + 1 if array else 1):
        env["SLURM_JOB_ID"] = str(int(job_id) + task)
        if array:
            env |= {"SLURM_ARRAY_JOB_ID": job_id, "SLURM_ARRAY_TASK_ID": str(task)}
        status = subprocess.run(["bash", folder / "batch.sh"], env=env, check=False).returncode
        if (folder / "requeue").exists():
            status = subprocess.run(["bash", folder / "batch.sh"], env=env | {"SLURM_RESTART_COUNT": "1"}, check=False).returncode
        statuses.append(status)
    (folder / "state").write_text("FAILED" if any(statuses) else "COMPLETED")


def srun(folder, *arguments):
    flags = [argument for argument in arguments if argument.startswith("--") and "=" in argument]
    output = arguments[arguments.index("--output") + 1]
    command = arguments[next(i for i, argument in enumerate(arguments) if argument == sys.executable) :]
    each = int(os.environ["SLURM_NTASKS_PER_NODE"])
    (folder / "cpus").write_text(os.environ["SRUN_CPUS_PER_TASK"])
    processes = []
    for rank in range(int(os.environ["SLURM_NTASKS"])):
        for mark, name in (("%j", "SLURM_JOB_ID"), ("%A", "SLURM_ARRAY_JOB_ID"), ("%a", "SLURM_ARRAY_TASK_ID")):
            output = output.replace(mark, os.environ.get(name, ""))
        place = {"SLURM_STEP_ID": "0", "SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank // each)}
        with Path(output.replace("%t", str(rank))).open("a") as file:
            env = os.environ | place | {"SLURM_LOCALID": str(rank % each)}
            processes.append(subprocess.Popen(command, env=env, stdout=file, stderr=file))
    preempt_when = Path(os.environ.get("FAKE_SLURM_PREEMPT", "/nonexistent"))
    preempted = "SLURM_RESTART_COUNT" in os.environ
    status = 0
    while any(process.poll() is None for process in processes):
        if not preempted and preempt_when.exists():
            preempted = True
            for process in processes:
                process.send_signal(signal.SIGUSR2)
        status = status or next((process.returncode for process in processes if process.poll()), 0)
        if status and "--kill-on-bad-exit=1" in flags:
            for process in processes:
                process.terminate()
                process.kill()
        time.sleep(0.02)
    sys.exit(1 if status else max(process.returncode != 0 for process in processes))


def sacct(folder, *arguments):
    job_id = arguments[arguments.index("-j") + 1]
    print(f"JobID|State|NodeList\n{job_id}|{(folder / 'state').read_text()}|127.0.0.1")


def scontrol(folder, *arguments):
    (folder / "requeue").write_text(" ".join(arguments))


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(os.environ["FAKE_SLURM"]), *sys.argv[2:])
