"""Runs a systemd unit without systemd: the commands of its file, in an installed root, with the
notify socket, credentials and folders that systemd would give them."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time

# A user that nobody has, as DynamicUser= would choose.
USER = 61_234
PATIENCE = 60


class Unit:
    """A service of a root folder in which the package is installed."""

    def __init__(self, root, name, environment=None):
        self.root, self.name = str(root), name
        stem, _, instance = name.removesuffix(".service").partition("@")
        self.instance = instance
        file = f"{stem}@.service" if instance else f"{stem}.service"
        self.settings = {}
        with open(self.path(f"/usr/lib/systemd/system/{file}"), encoding="utf-8") as lines:
            for line in lines:
                if "=" in line and not line.startswith("#"):
                    key, _, value = line.strip().partition("=")
                    self.settings.setdefault(key, []).append(value)
        self.environment = environment or {}
        self.main = None
        self.messages = []
        self.notify = None

    def path(self, inside):
        return self.root + inside

    def expand(self, text):
        values = {
            "%t": "/run",
            "%S": "/var/lib",
            "%d": f"/run/credentials/{self.name}",
            "%i": self.instance,
        }
        return re.sub("%[tSdi]", lambda match: values[match[0]], text)

    def prepare(self):
        """The folders, the credentials and the socket."""
        self.folder(f"/run/credentials/{self.name}")
        for setting in self.settings["LoadCredential"]:
            credential, _, source = setting.partition(":")
            self.copy(source, f"/run/credentials/{self.name}/{credential}")
        for kind, parent in (("Runtime", "/run"), ("State", "/var/lib"), ("Logs", "/var/log")):
            for setting in self.settings[f"{kind}Directory"]:
                self.folder(f"{parent}/{self.expand(setting)}")
        os.makedirs(self.path("/run/systemd"), exist_ok=True)
        inside = f"/run/systemd/notify-{self.name}"
        if os.path.exists(self.path(inside)):
            os.remove(self.path(inside))
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(self.path(inside))
        os.chmod(self.path(inside), 0o777)
        variables = dict(
            self.expand(setting).split("=", 1) for setting in self.settings["Environment"]
        )
        self.environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
            "NOTIFY_SOCKET": inside,
            "WATCHDOG_USEC": str(int(self.settings["WatchdogSec"][0]) * 1_000_000),
            "CREDENTIALS_DIRECTORY": f"/run/credentials/{self.name}",
            **variables,
            **self.environment,
        }

    def folder(self, inside):
        os.makedirs(self.path(inside), exist_ok=True)
        os.chown(self.path(inside), USER, USER)
        os.chmod(self.path(inside), 0o700)

    def copy(self, source, target):
        shutil.copyfile(self.path(source), self.path(target))
        os.chown(self.path(target), USER, USER)
        os.chmod(self.path(target), 0o400)

    def command(self, setting):
        is_root = setting.startswith("+")
        words = shlex.split(self.expand(setting.lstrip("+")))
        words = [word.replace("$MAINPID", str(self.main and self.main.pid)) for word in words]
        user = [] if is_root else [f"--userspec={USER}:{USER}"]
        return inside(self.root, *words, options=user)

    def run(self, setting):
        done = subprocess.run(
            self.command(setting),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, f"{setting}: {done}"

    def start(self):
        self.prepare()
        for setting in self.settings["ExecStartPre"]:
            self.run(setting)
        (setting,) = self.settings["ExecStart"]
        log = self.path("/run/journal")
        with open(log, "ab") as journal:
            self.main = subprocess.Popen(
                self.command(setting), env=self.environment, stdout=journal, stderr=journal
            )
        self.await_message("READY=1")

    def reload(self):
        seen = len(self.messages)
        for setting in self.settings["ExecReload"]:
            self.run(setting)
        self.await_message("RELOADING=1", seen)
        self.await_message("READY=1", seen)

    def stop(self):
        """Stops the unit, and returns the exit code."""
        self.main.send_signal(signal.SIGTERM)
        code = self.main.wait(PATIENCE)
        self.drain_messages()
        return code

    def journal(self):
        with open(self.path("/run/journal"), encoding="utf-8") as file:
            return file.read()

    def await_message(self, line, since=0):
        """Waits for a notification that contains this line, after the first `since` of them."""
        deadline = time.monotonic() + PATIENCE
        while not any(line in message.split("\n") for message in self.messages[since:]):
            assert self.main.poll() is None, self.journal()
            assert time.monotonic() < deadline, (line, self.messages, self.journal())
            self.notify.settimeout(0.5)
            try:
                self.messages.append(self.notify.recv(65_536).decode())
            except TimeoutError:
                continue

    def drain_messages(self):
        self.notify.setblocking(False)
        while True:
            try:
                self.messages.append(self.notify.recv(65_536).decode())
            except BlockingIOError:
                return


def inside(root, *words, options=()):
    """A command that runs in a root folder, with its own /proc, and in the place of its starter."""
    script = 'mount -t proc proc "$1/proc" && shift && exec chroot "$@"'
    start = ["unshare", "--mount", "sh", "-c", script, "sh", str(root)]
    return [*start, *options, str(root), *words]
