"""Attempts of programs to get out, to stay, or to take the machine: none of them works.

Each attempt prints ESCAPED where it succeeds. Whatever it prints, afterwards the
canaries outside are as they were, nothing of it runs on, and the sandbox serves the next program.
"""

import os
import re
import socket
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from megatron_qwen3.posttrain.sandbox import ProgramLimits, Sandbox
from tests.sandboxes import needs_sandbox

LIMITS = ProgramLimits(seconds=20, cpu_seconds=2, output_bytes=1 << 16, memory_bytes=256 << 20)
SPINS = ProgramLimits(seconds=20, cpu_seconds=1, output_bytes=1 << 16, memory_bytes=256 << 20)
WAITS = ProgramLimits(seconds=0.6, cpu_seconds=5, output_bytes=1 << 16, memory_bytes=256 << 20)

NETWORK = {
    "TCP to a server of this machine": """
        socket.create_connection(("127.0.0.1", PORT), 3).sendall(b"out")
    """,
    "TCP to the world": """
        socket.create_connection(("1.1.1.1", 53), 3)
    """,
    "UDP to a server of this machine": """
        sent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"out", ("127.0.0.1", PORT))
        assert sent == 0
    """,
    "IPv6": """
        socket.create_connection(("::1", PORT), 3)
    """,
    "an abstract socket of this machine": """
        socket.socket(socket.AF_UNIX).connect("\\0" + NAME)
    """,
    "a socket to the machine's host": """
        socket.socket(40, socket.SOCK_STREAM)
    """,
    "netlink": """
        socket.socket(16, socket.SOCK_RAW)
    """,
    "raw packets": """
        socket.socket(17, socket.SOCK_RAW)
    """,
    "a service of the kernel": """
        socket.socket(38, socket.SOCK_SEQPACKET)
    """,
    "names of the network": """
        socket.gethostbyname("localhost.localdomain.example.com")
    """,
}
READING = {
    "HOME": "assert os.listdir(HOME)",
    "/root": "assert os.listdir('/root')",
    "/home": "assert os.listdir('/home')",
    "/etc/shadow": "open('/etc/shadow').read()",
    "/etc/passwd": "open('/etc/passwd').read()",
    "a file whose path is known": "open(CANARY).read()",
    "the working tree": "os.listdir(TREE)",
    "the file by a symbolic link": "os.symlink(CANARY, '/tmp/l'); open('/tmp/l').read()",
    "the file by /proc/1/root": "open('/proc/1/root' + CANARY).read()",
    "the file by the parents of the root": "open('/../../..' + CANARY).read()",
    "the file by the folder of a process": "open('/proc/self/cwd/../..' + CANARY).read()",
    "the environment": "assert 'MQ3_CANARY' in os.environ",
    "the environment of pid 1": "assert 'MQ3_CANARY' in open('/proc/1/environ').read()",
    "the command of our process": """
        numbers = [name for name in os.listdir("/proc") if name.isdigit()]
        assert any("pytest" in read(f"/proc/{number}/cmdline") for number in numbers)
    """,
    "our memory": "open(f'/proc/{PARENT}/mem', 'rb')",
    "disks": "open('/dev/vda', 'rb').read(1)",
    "messages of the kernel": "open('/dev/kmsg').read(1)",
}
WRITING = {
    "the canary": "open(CANARY, 'w').write('x')",
    "beside the canary": "open(CANARY + '.new', 'w').write('x')",
    "by a hard link": "os.link(CANARY, '/tmp/link')",
    "to the root": "open('/x', 'w').write('x')",
    "to /usr": "open('/usr/bin/x', 'w').write('x')",
    "to the program": "open('/program.py', 'w').write('x')",
    "to settings of the kernel": "open('/proc/sys/kernel/hostname', 'w').write('x')",
    "to sysrq": "open('/proc/sysrq-trigger', 'w').write('h')",
    "64 MB to the root": "fill('/', 64 << 20)",
    "to the limit of /tmp and beyond": "fill('/tmp', 64 << 20)",
    "to the limit of /dev/shm and beyond": "fill('/dev/shm', 64 << 20)",
    "to /dev": "fill('/dev', 1 << 20)",
}
PROCESSES = {
    "killing our process": "os.kill(PARENT, 9)",
    "killing its parent": """
        os.kill(os.getppid(), 9)
        time.sleep(0.2)
        assert not os.path.exists(f"/proc/{os.getppid()}")
    """,
    "killing everything": "os.kill(-1, 9)",
    "stopping pid 1": """
        os.kill(1, signal.SIGSTOP)
        assert "T (stopped)" in read("/proc/1/status")
    """,
    "tracing its parent": "ptrace(16, os.getppid())",
    "tracing pid 1": "ptrace(0x4206, 1)",
    "tracing itself": "ptrace(0, 0)",
    "reading another's memory by a call": "assert libc.process_vm_readv(1, 0, 0, 0, 0, 0) == 0",
    "a fork bomb": """
        for _ in range(60):
            if not os.fork():
                time.sleep(30)
    """,
    "a bomb of threads": """
        for _ in range(60):
            threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
    """,
    "priority": "os.nice(-5)",
    "real time": "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))",
}
PRIVILEGES = {
    "mount": "assert libc.mount(b'none', b'/tmp', b'tmpfs', 0, 0) == 0",
    "remounting the root": "assert libc.mount(b'', b'/', b'', 32, 0) == 0",
    "umount": "assert libc.umount2(b'/tmp', 2) == 0",
    "chroot": "os.chroot('/tmp')",
    "pivot_root": "assert libc.syscall(155, b'/tmp', b'/tmp') == 0",
    "mknod": "os.mknod('/tmp/disk', 0o60666, os.makedev(254, 0)); open('/tmp/disk', 'rb').read(1)",
    "setuid": "os.setuid(0)",
    "setgroups": "os.setgroups([0])",
    "a program that is setuid": """
        import subprocess
        done = subprocess.run(["/usr/bin/su", "-c", "id -u"], capture_output=True, text=True)
        assert done.stdout.strip() == "0"
    """,
    "a nested user namespace": "assert libc.unshare(0x10000000) == 0",
    "a nested namespace by clone": "assert libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0) > 0",
    "a namespace of another process": "assert libc.setns(os.open('/proc/1/ns/net', 0), 0) == 0",
    "capabilities": "assert int(read('/proc/self/status').split('CapBnd:')[1].split()[0], 16)",
    "kernel modules": "assert libc.syscall(175, 0, 0, b'') == 0",
    "bpf": "assert libc.syscall(321, 0, 0, 0) >= 0",
    "keys of the kernel": "assert libc.syscall(250, 0, -3, 1, 0, 0) >= 0",
    "io_uring": "assert libc.syscall(425, 1, 0) >= 0",
    "characters typed into our terminal": """
        import fcntl
        for fd in range(3):
            fcntl.ioctl(fd, 0x5412, b"x")
    """,
    "our terminal": "open('/dev/tty', 'w').write('x')",
    "higher limits": "resource.setrlimit(resource.RLIMIT_NPROC, (1000, 1000))",
    "longer time": "resource.setrlimit(resource.RLIMIT_CPU, (1000, 1000))",
}
TAKING = {
    "memory": "a = [bytearray(64 << 20) for _ in range(50)]",
    "memory that is shared": "assert libc.shmget(0, 512 << 20, 0o1600) != -1",
    "memory in files without a name": "os.memfd_create('x')",
    "memory that is locked": "assert libc.mlockall(3) == 0; a = bytearray(128 << 20)",
    "descriptors": "files = [open('/dev/null') for _ in range(500)]",
    "one large file": "open('/tmp/x', 'wb').truncate(1 << 40)",
    "inherited descriptors": """
        found = [fd for fd in range(3, 256) if is_open(fd)]
        for fd in found:
            os.write(fd, b"x")
        assert found
    """,
}
# How a program is kept from something: another error would be a fault of the attempt.
KEPT = "AssertionError|[A-Za-z]*OSError|PermissionError|FileNotFoundError|ConnectionRefusedError|"
KEPT += "gaierror|ProcessLookupError|BlockingIOError|MemoryError|ValueError.'not allowed|"
KEPT += "RuntimeError..can't start new thread"
ALL = {
    f"{kind}: {name}": text
    for kind, attempts in [
        ("reaching", NETWORK),
        ("reading", READING),
        ("writing", WRITING),
        ("acting on", PROCESSES),
        ("gaining", PRIVILEGES),
        ("taking", TAKING),
    ]
    for name, text in attempts.items()
}
HEAD = """
import ctypes, os, resource, signal, socket, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)

def read(path):
    return open(path, errors="replace").read()

def fill(folder, most):
    written, files = 0, []
    try:
        for k in range(200):
            files.append(open(os.path.join(folder, f"f{k}"), "wb", buffering=0))
            for _ in range(8):
                written += files[-1].write(bytes(1 << 20))
    except OSError:
        assert written >= most

def ptrace(request, pid):
    assert libc.ptrace(request, pid, 0, 0) == 0

def is_open(fd):
    try:
        os.fstat(fd)
        return True
    except OSError:
        return False
"""
# How programs go on where they ought to end: (program, limits, which of them ends it).
ENDLESS = {
    "an endless loop": ("while True: pass", SPINS, "cpu"),
    "a loop that takes no signal": (
        "import signal\nfor s in range(1, 32):\n"
        "    try: signal.signal(s, signal.SIG_IGN)\n    except OSError: pass\nwhile True: pass",
        SPINS,
        "cpu",
    ),
    "a sleep": ("import time; time.sleep(1000)", WAITS, "time"),
    "a sleep that takes no signal": (
        "import signal, time\nsignal.signal(15, signal.SIG_IGN)\ntime.sleep(1000)",
        WAITS,
        "time",
    ),
    "reading input for ever": ("import os\nr, w = os.pipe()\nos.read(r, 1)", WAITS, "time"),
    "standard output for ever": ("while True: print('x' * 1000)", LIMITS, "output"),
    "standard error for ever": (
        "import sys\nwhile True: print('x' * 1000, file=sys.stderr)",
        LIMITS,
        "output",
    ),
    "output by drops": (
        "import time\nwhile True: print('x', flush=True); time.sleep(0.01)",
        WAITS,
        "time",
    ),
    "nothing open": ("import os, time\nos.closerange(0, 64)\ntime.sleep(1000)", WAITS, "time"),
    "C code that holds the interpreter": ("sum(range(10**12))", SPINS, "cpu"),
    "a number without an end": ("x = 9 ** 9 ** 8", SPINS, "cpu"),
    "an expression that backtracks": (
        "import re; re.match('(a+)+$', 'a' * 40 + 'b')",
        LIMITS,
        "cpu",
    ),
    "memory of several processes": (
        "import os, time\nfor _ in range(2): os.fork()\na = b'x' * (120 << 20)\ntime.sleep(1000)",
        LIMITS,
        "memory",
    ),
    "files by the million": (
        "for k in range(10**7): open(f'/tmp/{k}', 'w').close()",
        ProgramLimits(seconds=60, cpu_seconds=50, memory_bytes=64 << 20),
        "memory",
    ),
    "a stopped process": ("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", WAITS, "time"),
}
# How programs leave something behind: each ends by itself.
STAYING = {
    "a daemon": """
        if not os.fork():
            os.setsid()
            if not os.fork():
                os.closerange(0, 64)
                time.sleep(1000)
            os._exit(0)
    """,
    "children that nobody waits for": """
        for _ in range(8):
            if not os.fork():
                os._exit(0)
    """,
    "children that take no signal": """
        for s in range(1, 32):
            try:
                signal.signal(s, signal.SIG_IGN)
            except OSError:
                pass
        for _ in range(5):
            if not os.fork():
                time.sleep(1000)
    """,
    "a stopped child": """
        child = os.fork()
        if not child:
            time.sleep(1000)
        os.kill(child, signal.SIGSTOP)
    """,
    "threads": """
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    """,
    "a child that holds the output": """
        if not os.fork():
            while True:
                time.sleep(1)
    """,
}


@pytest.fixture(scope="module")
def sandbox():
    os.environ["MQ3_CANARY"] = "secret"
    with needs_sandbox(), Sandbox(LIMITS, workers=2) as it:
        yield it
    del os.environ["MQ3_CANARY"]


@pytest.fixture(scope="module")
def servers():
    """A port that counts who connects or sends, and an abstract socket."""
    name = f"mq3-test-{os.getpid()}"
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        port = tcp.getsockname()[1]
        udp.bind(("127.0.0.1", port))
        unix.bind("\0" + name)
        unix.listen()
        for server in (tcp, udp, unix):
            server.settimeout(0.001)
        yield port, name, lambda: [server for server in (tcp, udp, unix) if _is_reached(server)]


def _is_reached(server):
    try:
        if server.type == socket.SOCK_DGRAM:
            server.recv(10)
        else:
            server.accept()
    except TimeoutError:
        return False
    return True


@pytest.fixture
def canary(tmp_path):
    """A file that every user of this machine may read and write."""
    path = tmp_path / "canary"
    path.write_text("secret")
    path.chmod(0o666)
    yield path
    assert path.read_text() == "secret"
    assert sorted(os.listdir(tmp_path)) == ["canary"]


def _program(text, canary, servers):
    port, name, _ = servers
    told = {
        "PORT": port,
        "NAME": name,
        "CANARY": str(canary),
        "HOME": os.path.expanduser("~"),
        "TREE": str(Path(__file__).resolve().parents[2]),
        "PARENT": os.getpid(),
    }
    lines = [f"{key} = {value!r}" for key, value in told.items()]
    body = textwrap.indent(textwrap.dedent(text).strip() + '\nprint("ESCAPED")', "    ")
    caught = "except (Exception, SystemExit) as error:\n    print('kept:', repr(error)[:200])"
    return "\n".join([*lines, HEAD, f"try:\n{body}\n{caught}"])


@pytest.mark.parametrize("name", ALL)
def test_nothing_gets_out(sandbox, canary, servers, name):
    outcome = sandbox.run(_program(ALL[name], canary, servers))
    assert not outcome.failure, outcome
    assert "ESCAPED" not in outcome.stdout, outcome
    assert re.search(rf"kept: ({KEPT})", outcome.stdout), "the attempt itself is broken"
    assert not servers[2](), "a server was reached"
    _is_usable(sandbox)


@pytest.mark.parametrize("name", ENDLESS)
def test_what_does_not_end_is_ended(sandbox, name):
    program, limits, ends_it = ENDLESS[name]
    started = time.monotonic()
    outcome = sandbox.run(program, limits=limits)
    assert outcome.killed_by == ends_it and outcome.status is None, outcome
    assert len(outcome.stdout) <= limits.output_bytes and len(outcome.stderr) <= limits.output_bytes
    assert time.monotonic() - started < limits.seconds + 20
    assert not _inside(), "processes are left as the outcome comes"
    _is_usable(sandbox)


@pytest.mark.parametrize("name", STAYING)
def test_nothing_stays_behind(sandbox, canary, servers, name):
    outcome = sandbox.run(_program(STAYING[name], canary, servers))
    assert outcome.status == 0, outcome
    assert not _inside(), "processes are left as the outcome comes"
    _is_usable(sandbox)


def test_a_bomb_leaves_room_for_the_sandboxes_beside_it(sandbox):
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    results = []
    thread = threading.Thread(target=lambda: results.append(sandbox.run(bomb, limits=WAITS)))
    thread.start()
    forks = "import os\nfor _ in range(10):\n    if not os.fork(): os._exit(0)\nprint('room')"
    assert sandbox.run(forks).stdout == "room\n"
    thread.join()
    assert results[0].killed_by in ("time", "cpu")


def test_recursion_without_an_end_is_a_fault_of_the_program(sandbox):
    deep = "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()"
    nested = "x = []\nfor _ in range(10**6): x = [x]\nprint(repr(x)[:1])"
    for program in (deep, nested):
        outcome = sandbox.run(program, limits=SPINS)
        assert outcome.status != 0 and not outcome.failure, outcome
        _is_usable(sandbox)


def test_descriptors_that_are_closed_or_written_to_reach_nothing_of_ours(sandbox):
    writes = """
import os
for fd in range(0, 64):
    for path in (fd, f"/proc/self/fd/{fd}"):
        try:
            os.write(path if isinstance(path, int) else os.open(path, os.O_WRONLY), b"x")
        except OSError:
            pass
"""
    outcome = sandbox.run(writes)
    assert outcome.status == 0 and set(outcome.stdout + outcome.stderr) <= {"x"}, outcome
    _is_usable(sandbox)


def test_only_standard_streams_are_open(sandbox):
    lists = "import os\nprint([fd for fd in range(3, 64) if os.path.exists(f'/proc/self/fd/{fd}')])"
    assert sandbox.run(lists).stdout == "[]\n"
    streams = "import os, stat\nprint([stat.S_ISFIFO(os.fstat(fd).st_mode) for fd in range(3)])"
    assert sandbox.run(streams).stdout == "[True, True, True]\n"


def test_processes_of_others_are_not_seen(sandbox):
    lists = "import os; print(sorted(int(p) for p in os.listdir('/proc') if p.isdigit()))"
    assert len(sandbox.run(lists).stdout.split()) <= 3  # the first one, and its own


def _inside():
    """Processes of sandboxes, also those that nobody watches any more; not those of a test that
    runs beside this one."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "-c" in words and any("/program.py" in word for word in words):
            found.append(process)
    ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    return [process for process in found if _starter(process, found) in ours]


def _starter(process, inside):
    """The nearest that is in no sandbox: who started it, or who took it over when that was gone."""
    try:
        return next((p.pid for p in process.parents() if p not in inside), os.getpid())
    except psutil.NoSuchProcess:
        return None


def _is_usable(sandbox):
    number = time.monotonic_ns()
    assert sandbox.run(f"print({number})").stdout == f"{number}\n"
