"""Statements on jobs, in a module for each process or task that moves them. No other package writes rows of `jobs`.

* `accept`: the API inserts a client's job.
* `find`, `run`: a worker picks, claims, keeps and ends jobs.
* `lines`: the scheduler makes a batch's lines jobs.
* `rescue`: the scheduler takes jobs from dead workers and expires queued ones.
* `cancel`: a client or an operator cancels.
* `label`, `erase`: a client changes or deletes the content of a job; the scheduler prunes it.
* `read`, `lists`: nothing moves.

`columns`, `fragments` and `usage` hold parts that several statements share.
"""
