"""A store's samples as figures: which fields belong together, and what of them is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from parbake import human
from parbake.browse import figures
from parbake.browse.charts import (
    ROW_HEIGHT_IN,
    Image,
    Scalar,
    draw_flat,
    draw_image,
    draw_scalars,
    image_height_in,
    scalar_rows,
)
from parbake.browse.kinds import Form, Kind, axis_of, even_sides, form_of, node_axes
from parbake.browse.lines import CURVES_MAX, SECONDS, Curve, Signals, draw_signals, height_in
from parbake.browse.maps import (
    CHANNELS_ALONE_MAX,
    CHANNELS_MAX,
    Map,
    Maps,
    arrangement,
    draw_maps,
)
from parbake.errors import RecipeError
from parbake.store.index import normalised_index

if TYPE_CHECKING:
    from matplotlib.figure import Figure, FigureBase

    from parbake.store.document import StoredField
    from parbake.store.store import Store

Reals = NDArray[np.float64]

COARSE, INTERPOLATED, FINE = "coarse_features", "coarse_interp", "fine_features"
RESIDUAL = "residual"  # which the difference of both shows
_STAGES = {COARSE: "coarse", INTERPOLATED: "interpolated", FINE: "fine"}
_F0, _HZ = "f0", "Hz"
_PANELS_MAX = 3  # of one figure
_TOLD_MAX = 4  # scalars in a headline
_FLAT_HEIGHT_IN, _TITLE_HEIGHT_IN = 2.4, 0.4
SCALARS_MAX = 12
_RUNS, _RUN_SAMPLES = 64, 4096  # of a distribution: as many whole chunks, spread over the store


@dataclass(frozen=True)
class Panel:
    """Fields that are shown together."""

    kind: Kind
    fields: tuple[str, ...]


# ---- what is shown


def panels_of(store: Store, field: str | None = None) -> tuple[Panel, ...]:
    """What a figure of a sample shows: lines over alike axes together, a mesh pair together, else one by one.

    Scalars only where there is nothing else. Raises RecipeError for an unknown field.
    """
    names = store.chosen(None if field is None else (field,))
    forms = {name: form_of(store.fields[name], store.coords) for name in names}
    if field is not None:
        return (Panel(forms[field].kind, (field,)),)
    panels: list[Panel] = []
    lines: dict[tuple[Any, ...], list[str]] = {}
    stages = _stages(store, forms)
    for name, form in forms.items():
        if form.kind is Kind.LINE:
            lines.setdefault(_axis_kind(store, store.fields[name], form), []).append(name)
        elif stages and name in (*stages, RESIDUAL) and form.kind is Kind.MESH:
            continue
        elif form.kind is not Kind.SCALAR:
            panels.append(Panel(form.kind, (name,)))
    if stages:
        panels.insert(0, Panel(Kind.MESH, stages))
    panels = [*(Panel(Kind.LINE, tuple(together)) for together in lines.values()), *panels]
    if not panels:
        return (Panel(Kind.SCALAR, tuple(forms)),)
    return tuple(panels)


def _stages(store: Store, forms: Mapping[str, Form]) -> tuple[str, ...]:
    """The fields of a mesh pair that are shown together: both at the same nodes, the coarse one if alike."""

    def alike(name: str) -> tuple[Any, ...]:
        field, form = store.fields[name], forms[name]
        across = None if form.channel is None else (field.dims[form.channel], field.shape[form.channel])
        return len(node_axes(field, store.coords)), across, field.units

    found = [name for name in _STAGES if name in forms and forms[name].kind is Kind.MESH]
    if not {INTERPOLATED, FINE} <= set(found):
        return ()
    one, other = store.fields[INTERPOLATED], store.fields[FINE]
    if (one.dims, one.shape, one.units) != (other.dims, other.shape, other.units):
        return ()
    return tuple(name for name in found if name != COARSE or alike(COARSE) == alike(FINE))


def _axis_kind(store: Store, field: StoredField, form: Form) -> tuple[Any, ...]:
    """What lines need to have in common to be drawn over one another."""
    dim = field.dims[form.axes[0]]
    coord = axis_of(dim, store.coords)
    # inputs and outputs may have steps of their own, but a depth and a wavelength are two axes
    over = coord.units if coord is not None and coord.units in SECONDS else dim
    channels = 1 if form.channel is None else field.shape[form.channel]
    return over, field.units, channels, field.dtype.kind == "c"


def figure_of(store: Store, sample: int | None = None, field: str | None = None) -> Figure:
    """A figure of one sample (the middle one unless named), or of one of its fields.

    Lines with their spectra, mesh fields as maps, images; where there are scalars alone, or one is named,
    their distribution over the samples. Reads only what it shows. The figure belongs to no window.

    Raises IndexError for a sample beyond the store, RecipeError for an unknown field or where matplotlib is
    not installed, DamagedStoreError.
    """
    panels = panels_of(store, field)
    if not store.samples:
        raise RecipeError(f"{store.path}: no samples to show")
    if isinstance(sample, str):
        raise RecipeError(f"{store.path}: a sample is a number; for a field: plot(field={sample!r})")
    if all(panel.kind is Kind.SCALAR for panel in panels):
        names = tuple(name for panel in panels for name in panel.fields)
        number = None if sample is None else int(normalised_index([sample], store.samples)[0])
        return scalars_figure(store, names, number)
    number = int(normalised_index([store.samples // 2 if sample is None else sample], store.samples)[0])
    shown = panels[:_PANELS_MAX]
    names = tuple(name for panel in shown for name in panel.fields)
    read = store.read([number], (*names, *_told_scalars(store), *_tone(store)))
    values = {name: array[0] for name, array in read.items()}
    return _sample_figure(store, number, shown, values, len(panels) - len(shown))


def _told_scalars(store: Store) -> tuple[str, ...]:
    """The scalars whose values a headline gives."""
    scalars = [n for n, f in store.fields.items() if f.shape == () and f.dtype.kind in "biuf"]
    return tuple(scalars[:_TOLD_MAX])


def _tone(store: Store) -> tuple[str, ...]:
    """The scalar that is the fundamental of the lines, in Hz, if there is one."""
    f0 = store.fields.get(_F0)
    is_tone = f0 is not None and f0.units == _HZ and f0.shape == () and f0.dtype.kind in "iuf"
    return (_F0,) if is_tone else ()


def _sample_figure(
    store: Store, number: int, panels: tuple[Panel, ...], values: Mapping[str, NDArray[Any]], more: int
) -> Figure:
    drawings = [_drawing(store, panel, values) for panel in panels]
    heights = [drawing.height_in for drawing in drawings]
    width = max(drawing.width_in for drawing in drawings)
    shown = figures.figure(sum(heights) + _TITLE_HEIGHT_IN, width)
    parts = shown.subfigures(len(drawings), 1, squeeze=False, height_ratios=heights)[:, 0]
    for drawing, part in zip(drawings, parts, strict=True):
        drawing.draw(part)
    told = [_valued(store.fields[name], values[name]) for name in _told_scalars(store) if name in values]
    if len(panels) == 1 and len(panels[0].fields) == 1:
        told.insert(0, figures.plain(panels[0].fields[0]))
    for panel in panels:
        count, named = _channels_drawn(store, panel)
        if panel.kind is Kind.MESH and count < named:
            told.append(f"{count} of {named} channels")
    if more:
        told.append(f"{human.count(more, 'field')} not drawn: name one")
    where = f"{figures.plain(store.path.name)}, sample {number:,} of {store.samples:,}"
    figures.headline(shown, ": ".join([where, ", ".join(told)] if told else [where]))
    return shown


def _valued(field: StoredField, value: NDArray[Any]) -> str:
    """``f0 440 Hz``, ``-12.3 dB`` where the name is the unit."""
    units = figures.plain(field.units or "", 12)
    number = _number(value.item()).replace("-", "\N{MINUS SIGN}")
    name = "" if field.name == field.units else f"{figures.plain(field.name, 16)} "
    return f"{name}{number}{f' {units}' if units not in ('', '1') else ''}"


def _number(value: float) -> str:
    """Four digits, or all before the point where these are up to seven."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.4g}"


# ---- from values to drawings


@dataclass(frozen=True, eq=False)
class _Drawing:
    """Something to be drawn, and the room that it takes."""

    what: Signals | Maps | Image | tuple[StoredField, NDArray[Any]]
    height_in: float
    width_in: float = figures.WIDTH_IN

    def draw(self, shown: FigureBase) -> None:
        if isinstance(self.what, Signals):
            draw_signals(shown, self.what)
        elif isinstance(self.what, Maps):
            draw_maps(shown, self.what)
        elif isinstance(self.what, Image):
            draw_image(shown, self.what)
        else:
            field, values = self.what
            lengths = dict(zip(field.dims, field.shape, strict=True))
            draw_flat(shown.subplots(), field.name, values, lengths, field.units)


def _drawing(store: Store, panel: Panel, values: Mapping[str, NDArray[Any]]) -> _Drawing:
    numeric = all(store.fields[name].dtype.kind in "biufc" for name in panel.fields)
    if panel.kind is Kind.LINE and numeric:
        signals = _signals(store, panel, values)
        return _Drawing(signals, height_in(signals))
    if panel.kind is Kind.MESH and numeric:
        maps = _maps(store, panel, values)
        plan = arrangement(maps)
        return _Drawing(maps, plan.height_in, plan.width_in)
    if panel.kind is Kind.IMAGE and numeric:
        image = _image(store, panel.fields[0], values[panel.fields[0]])
        return _Drawing(image, image_height_in(image))
    field = store.fields[panel.fields[0]]
    return _Drawing((field, values[field.name]), _FLAT_HEIGHT_IN)


def _along(values: NDArray[Any], form: Form) -> NDArray[Any]:
    """A sample as [axis..., channel], axes of one left out."""
    kept = (*form.axes, *(() if form.channel is None else (form.channel,)))
    rest = tuple(axis for axis in range(values.ndim) if axis not in kept)
    moved = np.transpose(values, (*kept, *rest)).reshape([values.shape[axis] for axis in kept])
    return moved if form.channel is not None else moved[..., None]


def _channel_names(store: Store, field: StoredField, form: Form) -> tuple[str, ...]:
    """A name for each channel; of a single one without a name, none."""
    if form.channel is None:
        return ("",)
    count = field.shape[form.channel]
    coord = store.coords.get(field.dims[form.channel])
    if coord is not None and coord.labels is not None:
        return coord.labels
    return ("",) if count == 1 else tuple(str(channel) for channel in range(count))


def _signals(store: Store, panel: Panel, values: Mapping[str, NDArray[Any]]) -> Signals:
    first = store.fields[panel.fields[0]]
    dim = first.dims[form_of(first, store.coords).axes[0]]
    coord = axis_of(dim, store.coords)
    curves = [curve for name in panel.fields for curve in _curves(store, store.fields[name], values[name])]
    label = "value" if len(panel.fields) > 1 else panel.fields[0]
    return Signals(
        tuple(curves[:CURVES_MAX]),
        dim,
        coord.units if coord is not None else None,
        figures.with_units(label, first.units),
        next((float(values[name]) for name in _tone(store) if name in values), None),
        max(len(curves) - CURVES_MAX, 0),
    )


def _curves(store: Store, field: StoredField, values: NDArray[Any]) -> Iterator[Curve]:
    form = form_of(field, store.coords)
    along = _along(values, form)
    # a magnitude has another spectrum than the signal
    parts = {"real": along.real, "imaginary": along.imag} if along.dtype.kind == "c" else {"": along}
    coord = axis_of(field.dims[form.axes[0]], store.coords)
    position = np.arange(along.shape[0]) if coord is None else coord.values
    names = _channel_names(store, field, form)
    described = _short(field.description)
    for channel, name in enumerate(names):
        for part, numbers in parts.items():
            role = " ".join(word for word in (field.name, name, part) if word)
            curve = Curve(role, np.asarray(position, np.float64), np.asarray(numbers[:, channel], np.float64))
            alone = described and len(names) == len(parts) == 1
            yield replace(curve, role=f"{role}, {described}") if alone else curve


def _short(description: str | None) -> str:
    return description if description and len(description) <= 32 else ""


def _channels_drawn(store: Store, panel: Panel) -> tuple[int, int]:
    """How many channels of mesh fields are drawn, and how many there are."""
    field = store.fields[panel.fields[0]]
    names = _channel_names(store, field, form_of(field, store.coords))
    return min(len(names), CHANNELS_ALONE_MAX if len(panel.fields) == 1 else CHANNELS_MAX), len(names)


def _maps(store: Store, panel: Panel, values: Mapping[str, NDArray[Any]]) -> Maps:
    fields = [store.fields[name] for name in panel.fields]
    forms = [form_of(field, store.coords) for field in fields]
    names = _channel_names(store, fields[0], forms[0])
    chosen = names[: _channels_drawn(store, panel)[0]]
    alike = []
    for field, form in zip(fields, forms, strict=True):
        axes = node_axes(field, store.coords)
        points = np.stack([np.asarray(store.coords[axis].values, np.float64) for axis in axes], axis=1)
        shown = figures.real(_along(values[field.name], form))[:, : len(chosen)]
        plain_axes = tuple(axis.removeprefix("coarse_") for axis in axes)
        title = _STAGES[field.name] if len(fields) > 1 else field.name if field.dtype.kind == "c" else ""
        alike.append(Map(figures.magnitude(title, field.dtype), shown, points, plain_axes))
    difference = None
    if len(fields) > 1:
        least, most = (_along(values[name], forms[-1]) for name in (INTERPOLATED, FINE))
        difference = replace(
            alike[-1],
            title=figures.magnitude("fine \N{MINUS SIGN} interpolated", fields[-1].dtype),
            values=figures.real(_difference(most, least))[:, : len(chosen)],
        )
    axes = node_axes(fields[0], store.coords)
    units = {axis.removeprefix("coarse_"): store.coords[axis].units for axis in axes}
    return Maps(tuple(alike), chosen, difference, fields[0].units, units)


def _difference(values: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    wide = np.result_type(values, np.float64)
    return np.asarray(values.astype(wide) - other.astype(wide))


def _image(store: Store, name: str, values: NDArray[Any]) -> Image:
    field = store.fields[name]
    form = form_of(field, store.coords)
    dims = [field.dims[axis] for axis in form.axes]
    sides = even_sides(field, form, store.coords)
    # pixels of a side of uneven steps are counted
    extent, labels = None, [f"{figures.plain(dim)}{', by number' * (dim in store.coords)}" for dim in dims]
    if sides is not None:
        (bottom, top), (left, right) = (_edges(side.values) for side in sides)
        extent = (left, right, bottom, top)
        labels = [figures.with_units(dim, side.units) for dim, side in zip(dims, sides, strict=True)]
    pixels = _along(values, form)
    channels = _channel_names(store, field, form)
    return Image(name, pixels, (labels[1], labels[0]), field.units, extent, channels)


def _edges(values: NDArray[Any]) -> tuple[float, float]:
    """Where the first pixel begins and the last one ends."""
    first, second, last = (float(values[i]) for i in (0, 1, -1))  # of unsigned ones a difference may wrap
    half = (second - first) / 2
    return first - half, last + half


# ---- distributions


def scalars_figure(store: Store, names: tuple[str, ...], sample: int | None = None) -> Figure:
    """Distributions of scalars over the samples; the values of ``sample`` are marked."""
    names = tuple(n for n in names if store.fields[n].dtype.kind in "biuf")[:SCALARS_MAX] or names[:1]
    index = spread(store.samples)
    read = store.read(index, names)
    own = store.read([sample], names) if sample is not None else {}
    scalars = [
        Scalar(n, store.fields[n].units, read[n].ravel(), own[n].item() if n in own else None) for n in names
    ]
    shown = figures.figure(scalar_rows(len(scalars)) * ROW_HEIGHT_IN + _TITLE_HEIGHT_IN)
    draw_scalars(shown, scalars, "samples")
    where = f"{figures.plain(store.path.name)}, "
    if sample is not None:
        where += f"sample {sample:,} marked among "
    of = f" of {store.samples:,}" if len(index) < store.samples else ""
    figures.headline(shown, f"{where}{len(index):,}{of} samples")
    return shown


def scalar_names(store: Store) -> tuple[str, ...]:
    """The scalars that have a distribution."""
    return tuple(
        name
        for name, field in store.fields.items()
        if form_of(field, store.coords).kind is Kind.SCALAR and field.dtype.kind in "biuf"
    )


def spread(samples: int) -> NDArray[np.int64]:
    """Samples from which a distribution is told, ascending: all, or runs of them over the whole store."""
    if samples <= _RUNS * _RUN_SAMPLES:
        return np.arange(samples)
    starts = np.linspace(0, samples - _RUN_SAMPLES, _RUNS).astype(np.int64)
    return np.asarray((starts[:, None] + np.arange(_RUN_SAMPLES)).ravel())
