"""Boxes of a tensor: whether they are disjoint, and their intersections.

A box is (offsets, sizes), elements [offset, offset + size) along every axis.
"""

from collections.abc import Sequence

Box = tuple[tuple[int, ...], tuple[int, ...]]
_MOST_PAIRS = 1 << 22
_MOST_TURNS = 100  # splits per box; a real checkpoint needs about ten


def apart(boxes: Sequence[Box]) -> bool:
    """Whether no two boxes have an element in common.

    Boxes are split along any axis into groups without common elements, and the groups again, as far
    as possible; the rest is compared in pairs, and taken to overlap where there are too many.
    """
    todo = [[box for box in boxes if 0 not in box[1]]]
    work = _MOST_TURNS * len(boxes)
    while todo:
        group = todo.pop()
        if len(group) < 2:
            continue
        work -= len(group)
        if work < 0:
            return False
        groups = _split(group)
        if groups:
            todo += groups
        elif len(group) ** 2 > _MOST_PAIRS or any(
            meeting(a, b) for n, a in enumerate(group) for b in group[:n]
        ):
            return False
    return True


def _split(group: list[Box]) -> list[list[Box]]:
    """Groups along the first axis that separates boxes; [] where none does."""
    for axis in range(len(group[0][0])):
        groups: list[list[Box]] = []
        end = -1
        for box in sorted(group, key=lambda box: box[0][axis]):
            first = box[0][axis]
            if first >= end:
                groups.append([])
            groups[-1].append(box)
            end = max(end, first + box[1][axis])
        if len(groups) > 1:
            return groups
    return []


def meeting(a: Box, b: Box) -> Box | None:
    """The intersection of two boxes; None where it is empty."""
    low = tuple(map(max, a[0], b[0]))
    high = tuple(min(x + m, y + n) for x, m, y, n in zip(*a, *b, strict=True))
    sizes = tuple(h - at for at, h in zip(low, high, strict=True))
    return (low, sizes) if all(size > 0 for size in sizes) else None
