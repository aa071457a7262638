"""Finished runs judged on more data: the form, the jobs under way, and the page of one job."""
