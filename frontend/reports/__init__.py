"""Finished runs as a report: gathered here, drawn, and written as HTML, PDF, pictures and tables.

`gathered` asks a service or reads folders, `contents` makes tables and figures with captions that
stand alone, `document` makes one page of them, `files` writes everything.
"""
