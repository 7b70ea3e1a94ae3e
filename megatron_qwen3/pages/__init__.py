"""Web pages that need no other file, and their pictures; command lines in `cli/` call them.

`page.py` renders every page, `pictures.py` says how pictures look; the others have what each page
shows. matplotlib loads slowly: who only prints a table imports the modules of rows alone.
"""
