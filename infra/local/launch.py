"""What every child runs first: bind its life to the supervisor's, give up root where asked, be the program.

Run as `python -P -m infra.local.launch`. A separate program rather than `preexec_fn`, because Python code
between fork and exec of a process with threads can deadlock. The process id stays the same: exec replaces the
program, not the process.
"""

import argparse
import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CLONE_NEWUSER = 0x10000000
_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION_3 = 0x20080522

NOBODY = 65534
"""The user and group that a root process turns into, by either way."""

CANNOT_LAUNCH = 126
"""Exit status when the program could not be run at all; standard error says why."""

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, *arguments: int) -> None:
    padded = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:4]]
    if _libc.prctl(option, *padded) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def _enter_user_namespace() -> None:
    """Be `NOBODY` in one's own eyes and stay root, without its powers, in everyone else's."""
    gid = os.getegid()
    if _libc.unshare(_CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    own = Path("/proc/self")
    # The kernel lets a process map its own group only once it can no longer drop groups.
    (own / "setgroups").write_text("deny")
    (own / "uid_map").write_text(f"{NOBODY} 0 1")
    (own / "gid_map").write_text(f"{NOBODY} {gid} 1")


def _can_enter_user_namespace() -> bool:
    """Try it in a forked copy: a namespace half entered cannot be left again."""
    pid = os.fork()
    if pid == 0:
        try:
            _enter_user_namespace()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def _become_nobody() -> None:
    """Turn into user nobody, keeping the one power to pass closed folders where root has it to give.

    Without it Postgres could not reach binaries or data below a home folder that is closed to others, which
    is where they are in most containers. The namespace gives no less: there, files stay root's own.
    """
    _prctl(_PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    bit = 1 << _CAP_DAC_OVERRIDE
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)
    if _libc.capset(header, sets) == 0:
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE)
    else:
        # Not root's to give: nobody it is, with nothing; what it cannot reach is reported below.
        none = (ctypes.c_uint32 * 6)()
        _libc.capset(header, none)


def _give(folder: Path, uid: int) -> None:
    """Make a folder and all in it belong to a user; the folder last, so that half a walk is done again."""
    if folder.stat().st_uid == uid:
        return
    for root, folders, files in os.walk(folder, topdown=False):
        for name in (*folders, *files):
            os.chown(os.path.join(root, name), uid, uid, follow_symlinks=False)  # noqa: PTH118 (thousands of them)
    os.chown(folder, uid, uid)


def _give_up_root(folder: Path) -> str:
    """Turn into someone who is not root and owns `folder`; the answer says who, for messages."""
    if _can_enter_user_namespace():
        _give(folder, 0)
        _enter_user_namespace()
        return "root without its powers"
    _give(folder, NOBODY)
    _become_nobody()
    return "user nobody, since user namespaces are forbidden here"


def _refuse(message: str) -> int:
    sys.stderr.write(f"nightcourt: {message}\n")
    return CANNOT_LAUNCH


def main(arguments: list[str]) -> int:
    """Become the program that follows `--`.

    Args:
        arguments: `--parent PID`, `--death-signal N`, where asked `--unprivileged FOLDER`, then `--` and the
            program.

    Returns:
        An exit status, only where the program could not be run.
    """
    # A Ctrl-C between Python's own handler and exec would be lost; the plain action ends the process at once.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Python ignores these two, and exec would hand that down.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)

    parser = argparse.ArgumentParser(prog="infra.local.launch")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--death-signal", type=int, required=True)
    parser.add_argument("--unprivileged", type=Path)
    parser.add_argument("command", nargs="+")
    asked = parser.parse_args(arguments)
    command: list[str] = asked.command

    identity = "this user"
    if asked.unprivileged is not None and os.geteuid() == 0:
        try:
            identity = _give_up_root(asked.unprivileged)
        except OSError as error:
            return _refuse(
                f"{command[0]} must not run as root, and root could not be given up ({error}): "
                "start nightcourt as a normal user"
            )
    # After the change of identity, which would clear it.
    _prctl(_PR_SET_PDEATHSIG, asked.death_signal)
    if os.getppid() != asked.parent:
        # The supervisor died before the line above took hold: no signal will ever come.
        return _refuse("the supervisor is gone")
    try:
        if asked.unprivileged is not None:
            next(asked.unprivileged.iterdir(), None)
        os.execv(command[0], command)  # noqa: S606 (a list of ours, and no shell is the point)
    except OSError as error:
        return _refuse(
            f"{command[0]} cannot be run on {asked.unprivileged or 'this machine'} as {identity} "
            f"({error}): start nightcourt as a normal user, or put it and its data (--data-dir) within reach"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
