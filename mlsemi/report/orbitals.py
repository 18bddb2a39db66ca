"""Which orbitals a report shows, what they are called, and the diagram of their energies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlsemi.units import HARTREE_IN_EV

MINUS = "\N{MINUS SIGN}"
SPINS = ("α", "β")

_HEIGHT, _TOP, _BOTTOM = 590, 34, 16
_COLUMN, _LABEL, _AXIS = 84, 116, 46
_LINE = 14.5
"""Least distance of two lines of text."""
_SAME = 3.0
"""Levels nearer than this in the picture are drawn side by side."""
_DEEP = 30.0
"""Levels further than this below the next one [eV], those of inner shells, are drawn below a break of the axis."""
_BREAK = 46
"""Height of what is below the break."""


@dataclass(frozen=True)
class Orbital:
    """One orbital of the report.

    Attributes:
        spin: index of the spin axis.
        index: index among the orbitals of its spin, from 0.
        name: such as HOMO or LUMO+1, with its spin if there are two.
        energy: in Eh.
        occupation: 0, 1 or 2.
    """

    spin: int
    index: int
    name: str
    energy: float
    occupation: float

    @property
    def key(self) -> str:
        """Name within the page."""
        return f"mo{self.spin}-{self.index}"


def frontier(mo_energy: np.ndarray, mo_occ: np.ndarray, *, n: int) -> list[Orbital]:
    """The n highest occupied and n lowest empty orbitals of each spin, ascending in energy.

    Args:
        mo_energy: shape (spin, mo), ascending [Eh].
        mo_occ: occupations, shape (spin, mo).
        n: how many of either; fewer where there are fewer.
    """
    found = []
    for spin, (energy, occ) in enumerate(zip(mo_energy, mo_occ, strict=True)):
        filled = int((occ > 0).sum())
        suffix = f" {SPINS[spin]}" if len(mo_energy) == 2 else ""
        for k in range(max(0, filled - n), min(len(energy), filled + n)):
            name = _name("HOMO", MINUS, filled - 1 - k) if k < filled else _name("LUMO", "+", k - filled)
            found.append(Orbital(spin, k, name + suffix, float(energy[k]), float(occ[k])))
    return found


def _name(name: str, sign: str, distance: int) -> str:
    return f"{name}{sign}{distance}" if distance else name


def number(value: float, digits: int, *, plus: bool = False) -> str:
    """A number with a minus sign instead of a hyphen, and no negative zero."""
    text = f"{0.0 + round(value, digits):{'+' if plus else ''}.{digits}f}"
    return text.replace("-", MINUS)


def diagram(orbitals: Sequence[Orbital], *, n_spins: int) -> str:
    """The orbital energies as a drawing (SVG), each level to be pressed; one column for each spin."""
    width = _AXIS + n_spins * _COLUMN + (2 * _LABEL + 6 if n_spins == 2 else _LABEL + 14)
    energies = sorted((o.energy * HARTREE_IN_EV for o in orbitals), reverse=True)
    n_shown = next((k for k in range(1, len(energies)) if energies[k - 1] - energies[k] > _DEEP), len(energies))
    low, high = energies[n_shown - 1], energies[0]
    pad = max(0.04 * (high - low), 0.3)
    low, high = low - pad, high + pad
    floor = _HEIGHT - _BOTTOM - (_BREAK if n_shown < len(energies) else 0)

    def y(energy_ev: float) -> float:
        if energy_ev < low:
            return _HEIGHT - _BOTTOM - 8.0
        return _TOP + (high - energy_ev) / (high - low) * (floor - _TOP)

    parts = [
        f'<svg class="diagram" viewBox="0 0 {width} {_HEIGHT}" width="{width}" role="radiogroup" '
        'aria-label="Orbital energies; choose an orbital to show">',
        *_axis(low, high, y, width),
    ]
    if n_shown < len(energies):
        zigzag = "".join(f"l10 {-6 if k % 2 else 6}" for k in range(int(width - _AXIS) // 10))
        parts.append(f'<path class="break" d="M{_AXIS - 4} {floor + 12}{zigzag}"/>')
    for spin in range(n_spins):
        mine = [o for o in orbitals if o.spin == spin]
        left = _AXIS + 8 + (_LABEL if n_spins == 2 else 0) + spin * _COLUMN
        if n_spins == 2:
            middle = left + (_COLUMN - 14) / 2
            parts.append(f'<text class="spin" x="{middle}" y="{_TOP - 16}" text-anchor="middle">{SPINS[spin]}</text>')
        parts += _column(mine, y, left, labels_left=n_spins == 2 and spin == 0, n_spins=n_spins)
        parts += _gap(mine, y, left) if n_spins == 1 else []
    return "\n".join([*parts, "</svg>"])


def _axis(low: float, high: float, y, width: float) -> list[str]:
    step = next(s for s in (0.5, 1, 2, 5, 10, 20, 50, 100, 1000, 1e9) if (high - low) / s <= 9)
    parts = [f'<text class="unit" x="{_AXIS - 8}" y="{_TOP - 16}" text-anchor="end">eV</text>']
    tick = np.ceil(low / step) * step
    while tick <= high:
        line = "zero" if abs(tick) < 1e-9 else "tick"
        parts.append(f'<line class="{line}" x1="{_AXIS - 4}" x2="{width}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        text = number(float(tick), 1 if step < 1 else 0)
        parts.append(f'<text class="axis" x="{_AXIS - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{text}</text>')
        tick += step
    return parts


def _column(orbitals: Sequence[Orbital], y, left: float, *, labels_left: bool, n_spins: int) -> list[str]:
    """The levels of one spin, those of the same height side by side, and their labels without overlap."""
    heights = [y(o.energy * HARTREE_IN_EV) for o in orbitals]
    groups: list[list[int]] = []
    for k, height in enumerate(heights):
        if groups and groups[-1] and heights[groups[-1][-1]] - height < _SAME:
            groups[-1].append(k)
        else:
            groups.append([k])
    text_y = _apart([heights[k] for k in range(len(heights))])
    width = _COLUMN - 14
    anchor, text_x = ("end", left - 12) if labels_left else ("start", left + width + 12)
    edge = left if labels_left else left + width
    parts = []
    for group in groups:
        each = (width - 4 * (len(group) - 1)) / len(group)
        for place, k in enumerate(group):
            x = left + place * (each + 4)
            o = orbitals[k]
            ev = number(o.energy * HARTREE_IN_EV, 2)
            bend = edge - 8 if labels_left else edge + 8
            parts.append(
                f'<g class="level {"occupied" if o.occupation else "empty"}" role="radio" aria-checked="false" '
                f'tabindex="-1" data-surface="{o.key}" aria-label="{o.name}, {ev} electronvolt, '
                f'{_electrons(o.occupation)}">'
                f"<title>{o.name}: {ev} eV, {number(o.energy, 5)} Eh</title>"
                f'<rect class="hit" x="{min(left, text_x - (98 if labels_left else 0)):.1f}" y="{text_y[k] - 7.5:.1f}" '
                f'width="{width + 110}" height="15" rx="3"/>'
                f'<polyline class="leader" points="{edge},{heights[k]:.1f} {bend},{text_y[k]:.1f}"/>'
                f'<line class="bar" x1="{x:.1f}" x2="{x + each:.1f}" y1="{heights[k]:.1f}" y2="{heights[k]:.1f}"/>'
                f"{_arrows(o, x + each / 2, heights[k], n_spins)}"
                f'<text x="{text_x}" y="{text_y[k] + 4:.1f}" text-anchor="{anchor}">{o.name.split()[0]} '
                f'<tspan class="energy">{ev}</tspan></text></g>'
            )
    return parts


def _apart(heights: Sequence[float]) -> list[float]:
    """Places for lines of text near these heights (descending), not nearer to each other than `_LINE`."""
    blocks: list[list[float]] = []  # sum of (height + offset), number of lines
    for height in heights:
        blocks.append([height, 1])
        while len(blocks) > 1 and _foot(blocks[-2]) - _LINE < _head(blocks[-1]):
            total, count = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total + count * _LINE * blocks[-1][1], blocks[-1][1] + count]
    return [_head(block) - k * _LINE for block in blocks for k in range(int(block[1]))]


def _head(block: list[float]) -> float:
    """Height of the first, lowest line of a block: the mean of what its lines want, in terms of the first."""
    return block[0] / block[1]


def _foot(block: list[float]) -> float:
    return _head(block) - (block[1] - 1) * _LINE


def _electrons(occupation: float) -> str:
    return {"0": "empty", "1": "one electron", "2": "two electrons"}.get(f"{occupation:g}", f"{occupation:g} electrons")


def _arrows(orbital: Orbital, x: float, y: float, n_spins: int) -> str:
    """Half arrows for electrons, as in textbooks."""
    if not orbital.occupation:
        return ""
    up = f"M{{:.1f}} {y + 5.5:.1f}v-11l-3 4"
    down = f"M{{:.1f}} {y - 5.5:.1f}v11l3 -4"
    wanted = [(up, x - 3.5), (down, x + 3.5)] if n_spins == 1 else [(down if orbital.spin else up, x)]
    return "".join(f'<path class="electron" d="{path.format(at)}"/>' for path, at in wanted)


def _gap(orbitals: Sequence[Orbital], y, left: float) -> list[str]:
    """A double arrow from HOMO to LUMO with the gap."""
    homo = max((o.energy for o in orbitals if o.occupation), default=None)
    lumo = min((o.energy for o in orbitals if not o.occupation), default=None)
    if homo is None or lumo is None:
        return []
    y1, y2 = y(homo * HARTREE_IN_EV) - 9, y(lumo * HARTREE_IN_EV) + 4
    if y1 - y2 < 24:
        return []
    x = left + (_COLUMN - 14) / 2
    text = f"{number((lumo - homo) * HARTREE_IN_EV, 2)} eV"
    arrow = f"M{x - 3} {y2 + 5:.1f}l3 -5l3 5M{x} {y2:.1f}V{y1:.1f}m-3 -5l3 5l3 -5"
    return [
        f'<path class="gap" d="{arrow}"/>',
        f'<text class="gap" x="{x + 6}" y="{(y1 + y2) / 2 + 4:.1f}">{text}</text>',
    ]
