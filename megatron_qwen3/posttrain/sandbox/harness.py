"""Python source that starts within a sandbox: reports that all walls stand, and runs the program.

The first argument is a descriptor: a byte to it means that from here on the program acts.
"""

_BEGIN = """\
def _begin():
    import builtins, os, sys
    os.write(int(sys.argv[1]), b"1")
    os.close(int(sys.argv[1]))
    sys.path[:] = [folder for folder in sys.path if folder]
    sys.argv[:] = ["/program.py", *sys.argv[2:]]
    builtins.exit = builtins.quit = sys.exit
_begin()
del _begin
"""
# Runs a program as `python program.py` does, with `exit` and `quit`, which site would define.
RUN = f"""\
{_BEGIN}
__file__ = "/program.py"
exec(compile(open(__file__, "rb").read(), __file__, "exec"))
"""


def beside_the_program(source: str) -> str:
    """`source` after the start of the sandbox; it may run the program as it likes."""
    return _BEGIN + source
