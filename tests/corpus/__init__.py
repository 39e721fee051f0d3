"""Bad and odd inputs, each made from one small phantom, run in three ways and judged alike."""
