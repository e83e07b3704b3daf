"""The report of a sweep: its numbers (`schema`, filled by `results`), statistics over seeds and costs (`summary`), the
flat table (`trial_table`), the plots (`figures`) and the HTML page (`page`).

May import what `sweep` may. `page` and `figures` load matplotlib; a trial's process imports neither."""
