"""The look that figures and pages share: colours for light and dark, and text fit to show."""

from collections.abc import Iterable

INK = "#1f2328"
MUTED = "#59636e"
LINE = "#d1d9e0"
PAGE = "#ffffff"
PANEL = "#f6f8fa"
BLUE = "#0072b2"
ORANGE = "#d55e00"
RIGHT = "#0b7a55"
WRONG = "#c4320a"
WHITE = "#fefefe"
"""For text on strong colours, light page or dark: unlike the page's own white it never changes."""

DARK = {
    INK: "#e6edf3",
    MUTED: "#9aa4af",
    LINE: "#3d444d",
    PAGE: "#0d1117",
    PANEL: "#161c24",
    BLUE: "#56b4e9",
    ORANGE: "#f28e3c",
    RIGHT: "#3ecf9b",
    WRONG: "#ff7b5c",
}
"""Each light colour's partner on a dark page.

Blue and orange are Okabe and Ito's, which the colour-blind can tell apart; what is right or wrong
carries a sign besides its colour."""

VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
    PAGE: "--page",
    PANEL: "--panel",
    BLUE: "--blue",
    ORANGE: "--orange",
    RIGHT: "--right",
    WRONG: "--wrong",
}
"""The CSS variable of each colour. Figures refer to it, so they follow the page into the dark."""


def clean(text: object, longest: int = 200) -> str:
    """Returns `str(text)` on one line of at most `longest` characters, without unprintable ones.

    Class names come from folder names, which may hold line breaks and broken Unicode.

    >>> clean("two\\nlines")
    'two lines'
    >>> clean("abcdef", longest=4)
    'abc…'
    """
    words = " ".join(str(text).split())
    words = "".join(character if character.isprintable() else "�" for character in words)
    return words if len(words) <= longest else words[: longest - 1] + "…"


def _variables(colors: Iterable[tuple[str, str]]) -> str:
    return "".join(f"{VARIABLES[light]}:{value};" for light, value in colors)


STYLE_SHEET = (
    f":root{{color-scheme:light dark;{_variables((c, c) for c in VARIABLES)}}}"
    f"@media (prefers-color-scheme:dark){{:root{{{_variables(DARK.items())}}}}}"
    """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
  font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Liberation Sans",sans-serif}
main{max-width:72rem;margin:0 auto;padding:1.5rem 1.25rem 4rem}
h1{font-size:1.75rem;line-height:1.25;margin:0 0 .5rem;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:2.5rem 0 .75rem;padding-top:.75rem;border-top:1px solid var(--line)}
nav{display:flex;flex-wrap:wrap;gap:.25rem 1rem;font-size:.9rem}
a{color:var(--blue)}
p{max-width:46rem;overflow-wrap:anywhere}
.notice{padding:.6rem .9rem;border-left:4px solid var(--wrong);background:var(--panel);
  font-weight:600}
.headlines{display:grid;grid-template-columns:repeat(auto-fill,minmax(10rem,1fr));gap:.75rem;
  margin:1rem 0}
.headlines div{padding:.7rem .9rem;border:1px solid var(--line);border-radius:8px;
  background:var(--panel)}
.headlines dt{color:var(--muted);font-size:.85rem}
.headlines dd{margin:0;color:var(--muted);font-size:.85rem;overflow-wrap:anywhere}
.headlines dt+dd{color:var(--ink);font-size:1.5rem;font-weight:600;line-height:1.35;
  font-variant-numeric:tabular-nums}
.headlines .number,.list .number{text-align:left}
.headlines dt+dd.words{font-size:1.05rem}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(24rem,100%),1fr));
  gap:1.25rem 2rem;align-items:start}
.columns>*{min-width:0}
.scroll{overflow-x:auto}
figure{margin:0}
figcaption{color:var(--muted);font-size:.85rem;overflow-wrap:anywhere}
svg{display:block;width:100%;height:auto}
.wide svg{min-width:30rem}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .8rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
td{overflow-wrap:break-word}
th{color:var(--muted);font-weight:600}
.number{text-align:right;white-space:nowrap}
@media (max-width:32rem){th,td{padding:.3rem .45rem}}
details{margin:1rem 0}
summary{cursor:pointer}
.pictures{display:grid;
  grid-template-columns:repeat(auto-fill,minmax(clamp(6.2rem,12vw,7.6rem),1fr));gap:1rem .9rem}
.pictures img{display:block;width:100%;aspect-ratio:1;object-fit:contain;image-rendering:pixelated;
  background:var(--panel);border:3px solid;border-radius:6px}
.pictures figcaption{margin-top:.3rem;line-height:1.35}
.right img{border-color:var(--right)}
.wrong img{border-color:var(--wrong)}
.right figcaption::first-line{color:var(--right);font-weight:600}
.wrong figcaption::first-line{color:var(--wrong);font-weight:600}
.drawings{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(30rem,100%),1fr));
  gap:1rem 1.2rem}
.drawings.small{grid-template-columns:repeat(auto-fill,minmax(min(14rem,100%),1fr))}
.drawings.wide{grid-template-columns:1fr}
.drawings img{display:block;max-width:100%;height:auto;border-radius:4px}
.drawings figcaption{margin-top:.25rem}
"""
)
