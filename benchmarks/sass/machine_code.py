"""What a disassembly says of a kernel's hot loop: its way through the loop, instruction by instruction.

Every instruction is a node of a graph whose edges are fall-through and branches. A loop is an edge of a depth-first
search back to an instruction on its stack, with all that lies between the two.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

FUNCTION = re.compile(r"^\s*Function : (\S+)", re.MULTILINE)
INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)([^;]*);", re.MULTILINE)
WIDTHS = {"8": 1, "16": 2, "64": 8, "128": 16, "256": 32}  # by suffix; 4 bytes without one


@dataclass(frozen=True)
class Instruction:
    """`next` are the places in its kernel's list of the instructions that may follow it."""

    opcode: str
    next: tuple[int, ...]

    @property
    def global_bytes(self) -> int:
        """What one thread moves from or to global memory; atomics are not counted."""
        if self.opcode.split(".")[0] not in ("LDG", "STG"):
            return 0
        suffixes = re.findall(r"\.[US]?(8|16|64|128|256)\b", self.opcode)
        return WIDTHS[suffixes[0]] if suffixes else 4

    @property
    def is_shared_atomic(self) -> bool:
        return self.opcode.startswith("ATOMS")


Kernel = list[Instruction]


@dataclass(frozen=True)
class HotLoop:
    """One thread's way through one iteration, or through the kernel if no loop has its widest accesses."""

    n_instructions: int
    widest_bytes: int  # moved by the widest of its accesses, all together


def kernels(disassembly: str) -> Iterator[tuple[str, Kernel]]:
    """The name and the instructions of every kernel in what `cuobjdump -sass` has printed."""
    _, *parts = FUNCTION.split(disassembly)
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        yield name, _parse(text)


def _parse(text: str) -> Kernel:
    lines = [match.groups() for match in INSTRUCTION.finditer(text)]
    places = {int(address, 16): i for i, (address, *_) in enumerate(lines)}
    kernel = []
    for i, (_, predicate, opcode, operands) in enumerate(lines):
        name = opcode.split(".")[0]
        following = [i + 1] if i + 1 < len(lines) else []
        if name in ("EXIT", "RET", "BRX", "BRXU", "BRA") and not _is_conditional(name, predicate, operands):
            following = []
        if name == "BRA":
            following.append(places[int(operands.split()[-1].strip("`()"), 16)])
        kernel.append(Instruction(opcode, tuple(following)))
    return kernel


def _is_conditional(name: str, predicate: str | None, operands: str) -> bool:
    """A branch may carry its condition as a predicate or as its first operand: `BRA P0, 0x80`."""
    return predicate is not None or (name == "BRA" and "," in operands)


def widest_access(kernel: Kernel) -> int:
    """Bytes of the widest global load or store, 0 without any."""
    return max((instruction.global_bytes for instruction in kernel), default=0)


def hot_loop(kernel: Kernel) -> HotLoop:
    """The loop that moves most bytes by the kernel's widest accesses; of a loop and the one around it, the inner.

    A loop has several ways through it: for whole vectors and for ends, with and without options. Taken is the one that
    moves most bytes by the widest accesses; of these the one with most atomics on shared memory, since a histogram's
    stand behind a branch that nearly all weights take; and of these the one of fewest instructions.
    """
    order, back_edges = _search(kernel)
    loops = defaultdict[int, list[int]](list)
    for latch, head in back_edges:
        loops[head].append(latch)
    found = [_best_way(kernel, order, head, _body(kernel, order, head, loops[head]), loops[head]) for head in loops]
    if not any(loop.widest_bytes for loop in found):
        return _best_way(kernel, order, 0, set(order), [i for i in order if not kernel[i].next])
    return max(found, key=lambda loop: (loop.widest_bytes, -loop.n_instructions))


def _search(kernel: Kernel) -> tuple[list[int], list[tuple[int, int]]]:
    """The instructions that are reached, each before those that follow it but for the edges back, and these edges."""
    finished: list[int] = []
    back_edges = []
    on_stack, seen = {0}, {0}
    stack = [(0, iter(kernel[0].next))]
    while stack:
        i, following = stack[-1]
        for target in following:
            if target in on_stack:
                back_edges.append((i, target))
            elif target not in seen:
                seen.add(target)
                on_stack.add(target)
                stack.append((target, iter(kernel[target].next)))
                break
        else:
            stack.pop()
            on_stack.remove(i)
            finished.append(i)
    return finished[::-1], back_edges


def _body(kernel: Kernel, order: list[int], head: int, latches: list[int]) -> set[int]:
    """The instructions between the head of a loop and the edges back to it."""
    before = defaultdict[int, list[int]](list)
    for i in order:
        for target in kernel[i].next:
            before[target].append(i)
    body, left = {head}, list(latches)
    while left:
        i = left.pop()
        if i not in body:
            body.add(i)
            left.extend(before[i])
    return body


def _best_way(kernel: Kernel, order: list[int], head: int, body: set[int], ends: list[int]) -> HotLoop:
    """From head to one of the ends within the body, each instruction at most once."""
    width = widest_access(kernel)
    place = {i: n for n, i in enumerate(order)}
    # bytes, atomics, and instructions counted down: the largest is best
    worth = {i: (_bytes_of_width(kernel[i], width), int(kernel[i].is_shared_atomic), -1) for i in body}
    best = {head: worth[head]}
    for i in order[place[head] :]:
        for target in kernel[i].next if i in best else ():
            if target in body and place[target] > place[i]:
                so_far, added = best[i], worth[target]
                way = (so_far[0] + added[0], so_far[1] + added[1], so_far[2] + added[2])
                best[target] = max(way, best.get(target, way))
    widest_bytes, _, instructions_down = max(best[i] for i in ends if i in best)
    return HotLoop(-instructions_down, widest_bytes)


def _bytes_of_width(instruction: Instruction, width: int) -> int:
    return width if instruction.global_bytes == width else 0
