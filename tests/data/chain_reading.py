"""A reader of chains who knows their texts alone."""


def evaluated(question: str) -> list[int]:
    """Calculate what a question asks; return the number that it starts with and all results."""
    start, *steps = question.removeprefix("Start with ").split(", ")
    values = [int(start)]
    for step in steps:
        operator, number = step.split(" ")
        left, right = values[-1], int(number)
        values.append({"+": left + right, "-": left - right, "*": left * right}[operator])
    return values
