"""Solutions of HumanEval with one mistake each."""

import ast
import random

SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.GtE,
    ast.LtE: ast.Gt,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Lt,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


def function_of(tree: ast.Module, name: str) -> ast.FunctionDef:
    """The function that tests call; the prompt's helpers stay as they are."""
    (found,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name]
    return found


def operator_changed(code: str, name: str, seed: str) -> str | None:
    """One operator, drawn by the seed, is another one; None: there is no operator."""
    tree = ast.parse(code)
    draw = random.Random(seed)
    nodes = [node for top in function_of(tree, name).body for node in ast.walk(top)]
    places = [node for node in nodes if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp)]
    compares = [node for node in nodes if isinstance(node, ast.Compare)]
    if not places and not compares:
        return None
    chosen = draw.choice([*places, *compares])
    if isinstance(chosen, ast.Compare):
        chosen.ops[0] = SWAPPED[type(chosen.ops[0])]()  # type: ignore[assignment]
    else:
        chosen.op = SWAPPED[type(chosen.op)]()  # type: ignore[assignment]
    return ast.unparse(tree)


def return_removed(code: str, name: str) -> str:
    """The last `return` of the function is `pass`."""
    tree = ast.parse(code)
    returns = [n for n in ast.walk(function_of(tree, name)) if isinstance(n, ast.Return)]
    last = max(returns, key=lambda node: (node.lineno, node.col_offset))

    class Removing(ast.NodeTransformer):
        def visit_Return(self, node: ast.Return) -> ast.stmt:
            return ast.copy_location(ast.Pass(), node) if node is last else node

    return ast.unparse(Removing().visit(tree))


def endless(code: str, name: str) -> str:
    """The function begins with a loop that never ends."""
    tree = ast.parse(code)
    function_of(tree, name).body.insert(0, ast.parse("while True:\n    pass").body[0])
    return ast.unparse(tree)
