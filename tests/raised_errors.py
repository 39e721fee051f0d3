"""Which errors the program raises: every code with its classes and messages, from the source."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import tadiff_rt.errors

ROOT = Path(__file__).parents[1]
PACKAGES = ("tadiff_rt", "tadiff_train", "tadiff_export", "kernels")
Scope: TypeAlias = ast.FunctionDef | ast.Module


@dataclass
class Raised:
    """What is known of one code."""

    classes: set[str] = field(default_factory=set)
    """Names of error classes of `tadiff_rt.errors`."""
    messages: set[str] = field(default_factory=set)
    """Templates: text as it is, values as {name}."""
    files: set[str] = field(default_factory=set)

    @property
    def exits(self) -> set[int]:
        """Exit codes of its classes."""
        return {getattr(tadiff_rt.errors, name).exit_code for name in self.classes}


def error_classes() -> set[str]:
    """Names of the classes that a command answers with an exit code of their own."""
    base = tadiff_rt.errors.TadiffError
    members = vars(tadiff_rt.errors).items()
    return {n for n, kind in members if isinstance(kind, type) and issubclass(kind, base)}


def raised_codes(root: Path = ROOT) -> dict[str, Raised]:
    """By code, in order; counted where an error is made, even if it is raised elsewhere."""
    found: dict[str, Raised] = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            for name, code, messages in _Source(text).errors() if "TD" in text else ():
                entry = found.setdefault(code, Raised())
                entry.classes.add(name)
                entry.messages |= messages
                entry.files.add(path.relative_to(root).as_posix())
    return dict(sorted(found.items()))


class _Source:
    """One file, in which names are followed to what they were given."""

    def __init__(self, text: str) -> None:
        self._module = ast.parse(text)
        nodes = list(ast.walk(self._module))
        self._parents = {child: node for node in nodes for child in ast.iter_child_nodes(node)}
        self._calls = [node for node in nodes if isinstance(node, ast.Call)]

    def errors(self) -> Iterator[tuple[str, str, set[str]]]:
        """(class, code, templates of the message) of every error that is made."""
        classes = error_classes()
        for call in self._calls:
            name = _word(call.func)
            if name in classes and call.args:
                scope = self._scope(call)
                messages = self._texts(call.args[1], scope) if len(call.args) > 1 else set()
                for code in self._codes(call.args[0], scope):
                    yield name, code, messages

    def _codes(self, node: ast.expr, scope: Scope) -> set[str]:
        """What the first argument of an error may be; a parameter is looked up at the callers."""
        parameters = [a.arg for a in scope.args.args] if isinstance(scope, ast.FunctionDef) else []
        if isinstance(node, ast.Name) and node.id in parameters:
            assert isinstance(scope, ast.FunctionDef)
            found: set[str] = set()
            for caller in (call for call in self._calls if _word(call.func) == scope.name):
                given = dict(zip(parameters, caller.args, strict=False))
                given |= {k.arg: k.value for k in caller.keywords if k.arg}
                found |= self._codes(given[node.id], self._scope(caller))
            return found
        return {text for text in self._texts(node, scope) if text.startswith("TD")}

    def _scope(self, node: ast.AST) -> Scope:
        """The function around a node, or the module."""
        while not isinstance(node, Scope):
            node = self._parents[node]
        return node

    def _texts(self, node: ast.expr, scope: Scope) -> set[str]:
        """What an expression may say: one template for every way through it."""
        match node:
            case ast.Constant(value=str(text)):
                return {text}
            case ast.JoinedStr(values=parts):
                texts = {""}
                for part in parts:
                    texts = {a + b for a in texts for b in self._part(part, scope)}
                return texts
            case ast.IfExp(body=first, orelse=second):
                return self._texts(first, scope) | self._texts(second, scope)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                ends = self._texts(right, scope)
                return {start + end for start in self._texts(left, scope) for end in ends}
            case ast.Name():
                return self._assigned(node, scope) or {f"{{{node.id}}}"}
        return {f"{{{_word(node)}}}"}

    def _part(self, part: ast.expr, scope: Scope) -> set[str]:
        """A piece of an f-string: only a constant of the module is put in its place."""
        if isinstance(part, ast.FormattedValue):
            value = part.value
            constant = isinstance(value, ast.Name) and value.id.isupper()
            return self._texts(value, scope) if constant else {f"{{{_word(value)}}}"}
        return self._texts(part, scope)

    def _assigned(self, name: ast.Name, scope: Scope) -> set[str]:
        """What a name may have been given when it is used: in its function, else in the module."""
        texts: set[str] = set()
        before = [node for node in ast.walk(scope) if isinstance(node, ast.Assign)]
        for node in sorted(before, key=lambda node: -node.lineno):
            values = [value for target, value in _pairs(node) if _word(target) == name.id]
            if not values or node.lineno >= name.lineno or not self._may_follow(node, name):
                continue
            for value in values:
                texts |= self._texts(value, scope)
            if self._always_before(node, name):
                break
        return texts or self._constant(name.id)

    def _constant(self, name: str) -> set[str]:
        """What a name of the module was given."""
        for node in self._module.body:
            if isinstance(node, ast.Assign):
                for target, value in _pairs(node):
                    if _word(target) == name:
                        return self._texts(value, self._module)
        return set()

    def _ancestors(self, node: ast.AST) -> dict[ast.AST, ast.AST]:
        """Every node around this one, with the child that leads to it."""
        found = {}
        while node in self._parents:
            found[self._parents[node]] = node
            node = self._parents[node]
        return found

    def _always_before(self, first: ast.stmt, second: ast.AST) -> bool:
        """Whether whoever comes to `second` has been at `first`, which is above it."""
        return self._parents[first] in self._ancestors(second)

    def _may_follow(self, first: ast.stmt, second: ast.AST) -> bool:
        """Whether `second` can come after `first`: not from one branch of an if to the other."""
        to_first, to_second = self._ancestors(first), self._ancestors(second)
        for node in set(to_first) & set(to_second):
            if not isinstance(node, ast.If):
                continue
            if (to_first[node] in node.body) != (to_second[node] in node.body):
                return False
        return True


def _pairs(node: ast.Assign) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Targets of an assignment with their values; `a, b = x, y` is two."""
    for target in node.targets:
        match target, node.value:
            case ast.Tuple(elts=targets), ast.Tuple(elts=values):
                yield from zip(targets, values, strict=False)
            case ast.Name(), value:
                yield target, value


def _word(node: ast.AST) -> str:
    """The name that says most of what an expression is."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Call(func=ast.Attribute(attr="join"), args=[first, *_]):
            return _word(first)
        case ast.Call(func=function, args=[first, *_]) if not isinstance(function, ast.Attribute):
            inner = _word(first)
            return inner if inner != "..." else _word(function)
        case ast.Call(func=function):
            return _word(function)
        case ast.Subscript(value=value):
            return _word(value)
    return "..."
