"""What people see of a finished run or evaluation: one HTML page.

`data` says what the page shows, `collect` and `examine` find it, `page` draws it. The summary and
the snapshots that it reads are written by the run, in `training`.
"""
