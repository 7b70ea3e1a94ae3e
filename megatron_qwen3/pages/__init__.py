"""Web pages that need no other file, and their pictures; command lines in `cli/` write them.

`page.py` renders every page, `pictures.py` sets the look of pictures; the others make the content
of each page. matplotlib loads slowly: code that only prints a table imports the modules of rows
alone.
"""
