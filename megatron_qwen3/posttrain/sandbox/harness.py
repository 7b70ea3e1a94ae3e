"""The Python source that begins a sandbox: it says that all walls stand, and runs the program.

The first argument is a descriptor: one byte to it tells that what follows is the program's doing.
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
# A program as `python program.py` runs it; `exit` and `quit`, which site would bring, work.
RUN = f"""\
{_BEGIN}
__file__ = "/program.py"
exec(compile(open(__file__, "rb").read(), __file__, "exec"))
"""


def beside_the_program(source: str) -> str:
    """Begins `source`, which does with the program what it likes."""
    return _BEGIN + source
