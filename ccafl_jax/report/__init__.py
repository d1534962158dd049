"""What a run leaves for people: the summary and its table, snapshots of stages, and a page.

`data` says what a page shows, `collect` and `examine` find it, `page` draws it. The summary and the
snapshots are written while a run goes on; all else reads what is finished.
"""
