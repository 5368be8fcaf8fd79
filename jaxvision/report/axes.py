"""Empty figures in the theme's colours, for everything that draws with matplotlib."""

from jaxvision.report import theme


def new_figure(
    width: float, height: float
) -> tuple["matplotlib.figure.Figure", "matplotlib.axes.Axes"]:
    """Returns an empty (figure, axes) of that many inches, in the theme's colours."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    framed_axes(axes)
    return figure, axes


def framed_axes(axes: "matplotlib.axes.Axes") -> None:
    """Gives axes a grid, and lines on the left and below only."""
    axes.grid(True, color=theme.LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    plain_axes(axes)
    axes.spines[["top", "right"]].set_visible(False)


def plain_axes(axes: "matplotlib.axes.Axes") -> None:
    """Gives axes the theme's colours, on whatever is behind them."""
    axes.set_facecolor("none")
    axes.tick_params(colors=theme.MUTED, labelcolor=theme.INK, labelsize=9)
    axes.xaxis.label.set_color(theme.INK)
    axes.yaxis.label.set_color(theme.INK)
    for spine in axes.spines.values():
        spine.set_color(theme.MUTED)
