"""What the rules compare with, in one place, and why."""

FORMAT_SHARE, FORMAT_DROP = 0.85, 0.15
"""Healthy runs lose a few per cent of formats to sampling, not a seventh of them."""
EVALUATED_FORMAT_DROP = 0.10
"""Evaluations sample at low temperature, where a healthy format hardly ever breaks."""
ACCURACY_DROP = 0.10
"""Best results jump by some points between evaluations; the interval may ask for more."""
LENGTH_GROWTH, GROWTH_TOKENS = 2.0, 20.0
"""Responses may grow over dozens of steps; to double within a few is a policy that rambles."""
LENGTH_SHARE, SHRINK_TOKENS = 0.5, 8.0
"""Published runs shrank to answers of 23 tokens."""
DEMONSTRATION_RATIO, RATIO_DROP, DEMONSTRATION_SHARE = 0.7, 0.15, 0.8
"""Shorter than the wrong ones by so much, and than they were: not only the wrong ones grew."""
DEMONSTRATIONS = 4
"""Fewer in a step have no mean length to speak of."""
COLLAPSED = 0.25
"""Of the near past; entropies fall as a policy learns, but over more than a few steps."""
ENTROPY_NATS, WEIGHT_SPREAD = 0.01, 0.02
"""Below these, token weights are even whatever the past was."""
WITHOUT_TEACHING, MASTERED = 10, 0.9
"""Steps, and the correct share above which there is little left to teach."""
TRUNCATED = 0.25
"""A published default of 256 tokens cut 97% of responses without anybody noticing."""
DUPLICATES = 0.3
"""Of responses; on the demo no long text is given to two questions, ever."""
OFF_PATH_SHARE, OFF_PATH_STEPS, OFF_PATH_FALL = 0.5, 5, 0.05
"""On the demo a third stands there and nothing breaks; where three quarters did, formats broke."""
SPIKE, SPIKE_OVER_LARGEST = 10.0, 2.0
"""The gradient is clipped, but such a step says that something is wrong with its samples."""
GAP_NATS = 0.5
"""A typical worst token is then off by 1.6 times; TIS cuts at 2. On the demo it is 1e-6 in
float32 and 0.01 in bfloat16."""
ERRORS, ERROR_SHARE = 2, 0.05
"""Rollouts that could not be judged teach nothing, and in an evaluation they count as wrong."""
TOLD = 0.2
"""Of the gold answers, as a mean over feedback texts. Hints tell none, words shared by chance some
per cent; the tool_use verifier's full feedback tells all."""
