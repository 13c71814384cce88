"""A step computed a second time, from docs/method.md alone: the twin that `--deep` checks with.

    routing          rewards to correctness, advantages, siblings, routes and prompts; plain Python
    formulas         distributions, losses and weights as pure functions, float64
    step             a whole step, one rollout at a time; `float16_tables` reads rounded rows
    compare_tables   where a run disagrees with it; `tolerances` says what float32 may do

It is as plain as it goes and slow. It must never import the code that it checks: nothing of ours
but itself. A test enforces it.
"""
