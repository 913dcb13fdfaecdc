"""Seccomp filters for the tests: system calls that fail with an error of one's choice."""

import ctypes
import platform
import struct

NUMBERS = {
    "x86_64": {"clone": 56, "unshare": 272, "io_uring_setup": 425, "io_uring_enter": 426},
    "aarch64": {"clone": 220, "unshare": 97, "io_uring_setup": 425, "io_uring_enter": 426},
}[platform.machine()]
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, MODE_FILTER = 38, 22, 2
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000


def load(offset):
    return struct.pack("HBBI", LOAD_WORD, 0, 0, offset)


def refuse(call, errno, **args):
    """What subprocess is to run before exec: `call` fails, where its arguments are these (arg1=0)."""
    wanted = [(16 + 8 * int(name[3:]), value) for name, value in args.items()]
    code = []
    for offset, value in [(0, NUMBERS[call]), *wanted]:
        code += [load(offset), [value]]
    code.append(struct.pack("HBBI", RETURN, 0, 0, ERRNO | errno))
    code.append(struct.pack("HBBI", RETURN, 0, 0, ALLOW))
    program = b""
    for index, one in enumerate(code):
        if isinstance(one, list):
            # Anything else jumps to the last one, which allows it.
            one = struct.pack("HBBI", JUMP_IF_EQUAL, 0, len(code) - index - 2, one[0])
        program += one
    libc = ctypes.CDLL(None, use_errno=True)

    def install():
        buffer = ctypes.create_string_buffer(program, len(program))
        header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
        assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        assert libc.prctl(PR_SET_SECCOMP, MODE_FILTER, header, 0, 0) == 0

    return install
