"""A Postgres server that lives no longer than its parent, whatever ends that.

`python postgres_keeper.py FOLDER BINARIES PARENT` makes a cluster in FOLDER, starts it on a socket
there, touches FOLDER/ready, and takes both away when the process PARENT is gone or SIGTERM comes.
"""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

folder, binaries, parent = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
asked = False


def on_signal(*_):
    global asked
    asked = True


signal.signal(signal.SIGTERM, on_signal)
run = {"cwd": folder, "stdout": subprocess.DEVNULL, "check": True}
if os.geteuid() == 0:  # the server refuses to run as root
    account = pwd.getpwnam("nobody")
    os.chown(folder, account.pw_uid, account.pw_gid)
    run |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
run["env"] = {k: v for k, v in os.environ.items() if not k.startswith("PG")} | {"LC_ALL": "C"}
data = folder / "data"
options = f"-c listen_addresses= -c fsync=off -c max_connections=200 -k {folder}"
control = [str(binaries / "pg_ctl"), "-D", str(data), "-w", "-s"]
try:
    subprocess.run(
        [str(binaries / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust"]
        + ["--no-sync", "-E", "UTF8"],
        **run,
    )
    subprocess.run([*control, "-l", str(folder / "log"), "-o", options, "start"], **run)
    try:
        (folder / "ready").touch()
        while os.getppid() == parent and not asked:
            time.sleep(0.1)
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **run)
finally:
    shutil.rmtree(folder, ignore_errors=True)
