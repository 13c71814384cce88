"""Think blocks: which templates think, which prompts open one, which responses never close it."""

import pytest

from pipeline.thinking import opens_thinking, template_thinks, unclosed_thinking


@pytest.mark.parametrize(
    ("response", "opened", "unclosed"),
    [
        ("4", False, False),
        ("4", True, True),
        ("", True, True),
        ("", False, False),
        ("two and two</think>4", True, False),
        ("two and two</think>4", False, False),
        ("<think>two and two</think>4", False, False),
        ("<think>two and two", False, True),
        ("<think>two and two, so <answer>4</answer>", False, True),
        ("two and two, so <answer>4</answer>", True, True),
        ("<think>a</think>b<think>c", False, True),
        ("a</think>b<think>c", True, True),
        ("<think>a</think>b<think>c</think>d", False, False),
        ("<think>a<think>b</think>c", False, False),
        ("<think>a</think>b", True, False),
        ("so a <thin", False, False),
    ],
)
def test_unclosed_blocks(response: str, opened: bool, unclosed: bool) -> None:
    assert unclosed_thinking(response, opened) is unclosed


@pytest.mark.parametrize(
    ("prompt", "opens"),
    [
        ("<|assistant|><think>\n", True),
        ("<|assistant|><think>", True),
        ("<|assistant|><think>\n\n</think>\n\n", False),
        ("<|user|>Write <think> first.<|end|><|assistant|>", False),
        ("", False),
    ],
)
def test_prompts_that_open_a_block(prompt: str, opens: bool) -> None:
    assert opens_thinking(prompt) is opens


def test_templates_that_think() -> None:
    assert template_thinks("{{ m.content.split('</think>')[-1] }}")
    assert template_thinks("<|assistant|><think>\n")
    assert not template_thinks("<|im_start|>assistant\n")
