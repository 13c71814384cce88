"""A step computed a second time, from docs/method.md alone: the twin behind `srpo check --deep`.

    routing          rewards to correctness, advantages, siblings, routes and prompts; plain Python
    formulas         distributions, losses and weights as pure functions, float64
    step             a whole step, one rollout at a time; `float16_tables` reads rounded rows
    compare_tables   where a run disagrees with it; `tolerances` says how far float32 may be off

It is as plain as can be, and slow. It must never import the code that it checks: nothing of ours
but itself. A test enforces it.
"""
