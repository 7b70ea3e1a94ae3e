"""A seccomp filter that refuses system calls which no namespace contains: `program()`.

A seccomp filter in the form that `bwrap --seccomp` reads: an array of `struct sock_filter`, see
linux/filter.h and linux/seccomp.h. It refuses, with EPERM,

- memory that no limit counts: System V shared memory and messages, memfd, kernel keys, io_uring;
- sockets except AF_UNIX: AF_VSOCK reaches the machine's host from any network namespace, and
  buffers of the others are memory of the kernel;
- looking into other processes (ptrace, process_vm_*), and calls that only an administrator needs.
"""

import errno
import platform
import struct

from megatron_qwen3.config import ConfigError

_AF_UNIX = 1
_LOAD_WORD, _JUMP_IF_EQUAL, _JUMP_IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # bytes into struct seccomp_data
_X32 = 0x40000000  # numbers of another ABI of x86-64, which would bypass the list

_AUDIT_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# By name, the numbers of both architectures; below, calls with the same number everywhere.
_REFUSED = {
    "add_key": (248, 217),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "delete_module": (176, 106),
    "finit_module": (313, 273),
    "init_module": (175, 105),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "mount": (165, 40),
    "msgget": (68, 186),
    "open_by_handle_at": (304, 265),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "semget": (64, 190),
    "setns": (308, 268),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "shmget": (29, 194),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "pidfd_getfd": (438, 438),
    "mount_setattr": (442, 442),
    "memfd_secret": (447, 447),
}
_SOCKET = (41, 198)


def program() -> bytes:
    """The filter of this machine's architecture; ConfigError where its numbers are unknown."""
    machine = platform.machine()
    if machine not in _AUDIT_ARCHITECTURE:
        raise ConfigError(
            f"the sandbox knows no system calls of {machine}; valid: "
            f"{', '.join(_AUDIT_ARCHITECTURE)}; leave code and the python tool out here"
        )
    column = list(_AUDIT_ARCHITECTURE).index(machine)
    return _filter(
        _AUDIT_ARCHITECTURE[machine],
        [numbers[column] for numbers in _REFUSED.values()],
        _SOCKET[column],
    )


def _filter(architecture: int, refused: list[int], socket: int) -> bytes:
    refuse = len(refused) + 9  # the place of the last instruction
    lines = [
        (_LOAD_WORD, 0, 0, _ARCHITECTURE),
        (_JUMP_IF_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD_WORD, 0, 0, _NUMBER),
        (_JUMP_IF_AT_LEAST, refuse - 5, 0, _X32),
    ]
    for number in refused:
        lines.append((_JUMP_IF_EQUAL, refuse - len(lines) - 1, 0, number))
    lines += [
        (_JUMP_IF_EQUAL, 0, 2, socket),
        (_LOAD_WORD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_IF_EQUAL, 0, 1, _AF_UNIX),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
    ]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
