"""All kinds of pages, in the order in which they are exported."""

from pipeline.viewer import compare_page, rollout_page, run_page, step_page
from pipeline.viewer.page import Kind

KINDS: tuple[Kind, ...] = (
    run_page.INDEX,
    run_page.RUN,
    compare_page.COMPARE,
    step_page.STEP,
    rollout_page.ROLLOUT,
)
