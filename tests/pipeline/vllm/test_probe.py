"""The prompts by which an engine is run_probe."""

from pipeline.vllm.probe import probe_groups


def test_probe_prompts_are_the_same_and_differ_from_their_start() -> None:
    groups = probe_groups(148, 224)
    assert groups == probe_groups(148, 224)
    assert [len(g.prompt_ids) for g in groups] == [216] * 4
    assert len({tuple(g.prompt_ids[:8]) for g in groups}) == 4
    assert all(0 <= i < 148 for g in groups for i in g.prompt_ids)
