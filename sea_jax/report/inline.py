"""A figure that notebooks show by themselves, whether or not pyplot was imported there."""

import io

from matplotlib.figure import Figure


class InlineFigure(Figure):
    """A matplotlib figure with the picture that IPython asks an object for."""

    def _repr_png_(self) -> bytes:
        """Returns the figure as a PNG."""
        picture = io.BytesIO()
        self.savefig(picture, format="png")
        return picture.getvalue()
